"""The page holds what the records and studies say, needs nothing from elsewhere, and is the same every time."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")

from ssdgen import gpus
from ssdgen.commands import main
from ssdgen.pack import store, templates
from ssdgen.pack.records import BACKWARD, PREDICTED, Record
from ssdgen.report import content, kernels, page, studies
from tests.pack import made
from tests.report import searches

H200 = gpus.find("h200")


def records() -> tuple[Record, ...]:
    backward = replace(made.RECORD, direction=BACKWARD, time_us=400.0, default_us=None, error=0.006, error_limit=0.008)
    small = replace(made.PROBLEM, batch=1, seqlen=100)
    predicted = replace(made.RECORD, problem=small, provenance=PREDICTED, error=None, error_limit=None)
    return backward, made.RECORD, predicted


def rendered(**changes) -> str:
    found = content.rows(records(), H200)
    splits = [kernels.Split(made.RECORD, (("dt_cumsum", 3.0), ("single_pass", 47.0)), "measured")]
    plain = {"histories": [searches.history()], "splits": splits, "storage": "my.journal", "version": "1.2"}
    return page.render(
        page.Content(H200, made.IDENTITY, found, **{**plain, **changes}), templates.read()[page.TEMPLATE]
    )


def words(text: str) -> str:
    """What a reader sees, without the plots."""
    text = re.sub(r"<(style|svg).*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_rows_say_what_records_do() -> None:
    forward, predicted, backward = content.rows(records(), H200)[1], *content.rows(records(), H200)[::2]
    assert (forward.shape, forward.speedup, forward.used) == ("2.7b", 2.0, 0.2)
    assert backward.direction == "backward" and backward.speedup is None and backward.used == 0.75
    assert not predicted.measured and predicted.shape == "1,100,80,64,128,1" and predicted.used is None
    # the same work in half of the time is twice the rate, and twice as near to the floor
    (fast,) = content.rows([replace(made.RECORD, time_us=25.0)], H200)
    assert fast.tflops == pytest.approx(2 * forward.tflops) and fast.share == pytest.approx(2 * forward.share)
    # no record is above the roof: the floor is the same roofline
    roof = min(H200.bf16_tflops, forward.intensity * H200.copy_tbs)
    assert forward.tflops / roof == pytest.approx(forward.share, rel=1e-6)


def test_everything_stands_on_the_page() -> None:
    said = words(rendered())
    assert "2.00× forward pass, over the built-in config geometric mean of 2 shapes" in said
    assert "2.7b forward, bfloat16 single_pass 100 50.0 2.00×" in said
    assert "1,100,80,64,128,1 forward, bfloat16, predicted" in said
    assert "2.7b forward 0.001 of 0.005" in said and "2.7b backward 0.006 of 0.008" in said
    assert "dt_cumsum 3.0 single_pass 47.0" in said and "measured with a warm L2" in said
    assert "optuna-dashboard my.journal" in said and "Driver 570" in said


def test_nothing_comes_from_elsewhere() -> None:
    text = rendered()
    addresses = set(re.findall(r"""[\w-]*:?//[^\s"'<)]+""", text))
    # names of XML, which nobody fetches
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link(?! rel=\"icon\" href=\"data:)|img|iframe)", text)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text) and "@import" not in text


def test_the_same_page_every_time_and_no_id_twice() -> None:
    two = [searches.history(), searches.history("another", seed=1)]
    text = rendered(histories=two)
    assert text == rendered(histories=two)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text))
    assert {name for pair in used for name in pair if name} <= set(ids)


def test_names_from_files_are_text() -> None:
    text = rendered(histories=[searches.history("<script>alert(1)</script>")], version="<b>")
    assert "<script>" not in text and "&lt;script&gt;" in text and "<b>&" not in text


def test_tags_are_closed() -> None:
    class Tags(HTMLParser):
        empty = {"meta", "link", "br"}

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in self.empty:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Tags()
    parser.feed(rendered())
    assert not parser.open


def test_empty_sections_say_why() -> None:
    missing = {"kernels": "no Triton", "searches": "no journal"}
    said = words(rendered(histories=[], splits=[], missing=missing))
    assert "Where the time goes no Triton" in said and "Searches no journal" in said


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    store.save(tmp_path, made.IDENTITY, [made.RECORD], {})
    journal = searches.journal(tmp_path / "my.journal")
    args = ["report", "--gpu", "h200", "--records", str(tmp_path), "--out", str(tmp_path / "a.html"), "--no-kernels"]
    result = CliRunner().invoke(main, [*args, "--storage", str(journal)])
    assert result.exit_code == 0, result.output
    assert "1 records, 1 searches" in result.output
    text = (tmp_path / "a.html").read_text()
    assert "2.7b, begun on 2026-01-02 at 03:04" in text and "Left out, as asked." in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu", "a100"], "has no records to report on"),
        (["--gpu", "h300"], "h300"),
        (["--gpu", "h200", "--storage", "gone.journal"], "there is no journal gone.journal"),
        (
            ["--gpu", "h200", "--storage", "postgresql://me:secret@nowhere.invalid/db"],
            "cannot open postgresql://nowhere",
        ),
    ],
)
def test_mistakes_are_one_line_without_secrets(tmp_path: Path, more: list[str], message: str) -> None:
    store.save(tmp_path, made.IDENTITY, [made.RECORD], {})
    args = ["report", "--records", str(tmp_path), "--out", str(tmp_path / "a.html"), "--no-kernels", *more]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert "secret" not in result.output and "Traceback" not in result.output
    assert not (tmp_path / "a.html").exists()


def test_importances_find_the_axis_that_matters(tmp_path: Path) -> None:
    (found,) = studies.read(searches.journal(tmp_path / "my.journal"))
    assert found.schedule == "split" and list(found.importances)[0] == "chunk"
    assert sum(found.importances.values()) == pytest.approx(1.0) and found.rejected == 1
    times = [time_us for _, time_us in found.best]
    assert times == sorted(times, reverse=True) and times[-1] == min(time_us for _, time_us in found.trials)


def test_a_study_of_somebody_else_is_left_out(tmp_path: Path) -> None:
    journal = searches.journal(tmp_path / "my.journal")
    searches.add_foreign(journal)
    assert len(studies.read(journal)) == 1
    (tmp_path / "broken.journal").write_text("not a journal\n")
    with pytest.raises(studies.StudyError, match=r"broken\.journal"):
        studies.read(tmp_path / "broken.journal")
