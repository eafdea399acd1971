"""A short search beside a long one: what is started where, and what is made of their records."""

from __future__ import annotations

import sys
from argparse import Namespace
from math import inf
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks import tuning_time
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.mamba2_ops.records import read_root
from ssdgen.pack import store
from ssdgen.pack.records import Identity, Record
from ssdgen.plan.problem import Problem as Sizes

# says that a search has begun, and where
CHILD = """
import os, sys
out = sys.argv[sys.argv.index("--storage") + 1]
given = [each in sys.argv for each in ("--worker", "--resume")]
print("shape 1 of 2 on GPU", os.environ["CUDA_VISIBLE_DEVICES"], *given, flush=True)
open(out, "a").close()
"""


def test_the_shape_has_no_bundled_record() -> None:
    sizes = tuple(map(int, tuning_time.SHAPE.split(",")))
    bundled = read_root(tuning_time.ROOT / "tuned")
    assert bundled and all(
        record.problem.bucket() != Problem(*sizes, "bfloat16").bucket() for g in bundled for record in g.records
    )


def test_who_joins_a_study_says_no_word_of_what_it_is() -> None:
    """`ssdgen tune` takes what the run was started with, and nothing else."""
    for more in ("--worker", "--resume"):
        assert "--shapes" not in tuning_time.command("1,2,3,4,5,6", Path("out"), 3, more)
    whole = tuning_time.command("1,2,3,4,5,6", Path("out"), 3)
    assert Path(whole[1]).is_file() and whole[2] == "tune" and whole[3:5] == ["--shapes", "1,2,3,4,5,6"]


def test_a_study_is_begun_by_one_and_shared_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(tuning_time, "command", lambda shape, out, jobs, *more: _child(child, out, more))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    for resumed in (False, True):
        found = tuning_time.search("1,2,3,4,5,6", 30, [1, 2], tmp_path / "long", 3)
        found.join("1,2,3,4,5,6", 0, 3)
        found.wait()
        logs = sorted(path.read_text() for path in (tmp_path / "long").glob("*.log"))
        first = f"shape 1 of 2 on GPU 5 False {resumed}\n"
        assert logs == ["shape 1 of 2 on GPU 4 True False\n", first, "shape 1 of 2 on GPU 7 True False\n"]


@pytest.mark.parametrize("fails", ["", "--worker"])
def test_a_process_that_fails_is_told(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(shape: str, out: Path, jobs: int, *more: str) -> list[str]:
        bad = (fails in more) if fails else not {"--worker", "--resume"} & {*more}
        (out / "trials.journal").touch()
        return [sys.executable, "-c", f"print('shape 1 of 2', flush=True); raise SystemExit({3 * bad})"]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tuning_time, "command", command)
    found = tuning_time.search("1,2,3,4,5,6", 30, [0, 1], tmp_path / "short", 1)
    with pytest.raises(RuntimeError, match="ended with 3"):
        found.wait()


# left, short, GPUs, within -> seconds, GPU seconds
SPANS = [
    # four GPUs in one call: the first joins after 300 s
    ((1800, 300, 4, inf), (525, 1800)),
    # two of them in calls of 570 s: then both are free
    ((1800, 300, 2, 570), (570, 570 + 270)),
    ((960, 0, 2, 570), (480, 960)),
    # one that is left with what is over, and one alone
    ((100, 300, 2, inf), (100, 100)),
    ((1800, 300, 1, 570), (270, 270)),
    ((1530, 0, 1, 570), (570, 570)),
    ((1800, 300, 1, 300), (0, 0)),
]


@pytest.mark.parametrize(("given", "wanted"), SPANS)
def test_how_long_a_call_searches(given: tuple, wanted: tuple) -> None:
    assert tuning_time.span(*given) == pytest.approx(wanted)


def test_calls_go_on_with_what_earlier_ones_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, float, list[int]]] = []

    class Done:
        def join(self, shape: str, gpu: int, jobs: int) -> None:
            begun.append(("join", 0.0, [gpu]))

        def wait(self) -> None: ...

    def search(shape: str, seconds: float, gpus: list[int], out: Path, jobs: int) -> Done:
        begun.append((out.name, seconds, gpus))
        return Done()

    monkeypatch.setattr(tuning_time, "search", search)
    options = Namespace(shape="1,2", short=300.0, long=1800.0, within=570.0)
    first = tuning_time.go_on(tmp_path, options, [0, 1], 3)
    assert begun == [("short", 300.0, [0]), ("long", 570.0, [1]), ("join", 0.0, [0])]
    assert first == tuning_time.Spent(True, 840.0) == tuning_time.Spent.of(tmp_path)
    begun.clear()
    assert tuning_time.go_on(tmp_path, options, [0, 1], 3).long_s == 1800
    assert begun == [("long", 480.0, [0, 1])]


def test_a_call_that_leaves_work_says_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for given in (["--within", "500"], ["--within", "100", "--folder", str(tmp_path)]):
        with pytest.raises(SystemExit):
            tuning_time.main(given)
    said = capsys.readouterr().err
    assert "say where, with --folder" in said and "the short search alone takes 300" in said


def test_records_are_read_and_compared(tmp_path: Path) -> None:
    problem = Sizes(2, 4096, 128, 64, 128, 1)
    identity = Identity("sm90", "h200", "NVIDIA H200", "1", "2", "3", {})
    for direction in tuning_time.PASSES:
        config = {"schedule": "single_pass", "chunk": 64, "kernels": {}}
        record = Record(
            problem, config, "measured", 10.0, 1.0, None, 1e-3, 5e-3, {"single_pass": "ab"}, "cd", direction
        )
        store.save(tmp_path / "tuned", identity, [record], {})
    assert sorted(tuning_time.found(tmp_path)) == sorted(tuning_time.PASSES)
    slow, fast = tuning_time.rows({"forward": [103.0, 100.0], "backward": [90.0, 100.0]})
    assert slow["ratio"] == pytest.approx(1.03) and fast["ratio"] == 1
    document = {"gpu": "a GPU", "shape": "1,2", "short_s": 5, "long_s": 30, "rows": [slow, fast]}
    assert "1.030" in tuning_time.table(document)


def _child(child: Path, out: Path, more: tuple[str, ...]) -> list[str]:
    return [sys.executable, str(child), "--storage", str(out / "trials.journal"), *more]
