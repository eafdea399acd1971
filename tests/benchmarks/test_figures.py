"""The figures show what the results say, and none lags behind."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("matplotlib")

from benchmarks import figures


def digest(svg: str) -> str:
    found = re.search(r"data ([0-9a-f]{16})", svg)
    assert found
    return found[1]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_figure_that_is_checked_in_shows_the_results(name: str) -> None:
    made = figures.FIGURES[name]()
    assert digest((figures.FOLDER / f"{name}.svg").read_text()) == digest(made), "run `make figures`"
    assert made == figures.FIGURES[name](), "the same results give the same bytes"


def test_rows_that_failed_or_were_not_timed_have_no_bar() -> None:
    def row(shape: str, passed: bool, **times: float) -> dict:
        results = {name: {"gpu_us": time} for name, time in times.items()}
        return {"shape": shape, "sizes": [2, 1024, 1, 1, 1, 1], "passed": passed, "results": results}

    rows = [
        row("right_b2", True, ssdgen=10.0, slow=80.0, fast=40.0),
        row("wrong_b2", False, ssdgen=1.0, slow=2.0),
        row("alone_b2", True, ssdgen=5.0),
        row("untimed_b2", True, slow=9.0),
    ]
    rows[0]["results"]["skipped"] = "no time was left"
    found = figures.of_calls({"rows": rows})
    # the peer's best, and tokens in units of 1024
    assert [(bars.label, bars.ours, bars.peer, bars.scale) for bars in found] == [
        ("right\n2 x 1,024", 10.0, 40.0, 2.0),
        ("alone\n2 x 1,024", 5.0, None, 2.0),
    ]


def test_bars_say_their_times_and_what_the_peer_takes() -> None:
    bars = [figures.Bars("row", 250.0, 1500.0, 2.0), figures.Bars("alone", 30.0, None, 1.0)]
    text = figures.figure({"": bars}, "us", "the peer")
    assert all(f">{said}<" in text for said in ("250 us, 6.0 times as fast", "1.50 ms", "30 us", "the peer", "row"))
    assert digest(text) != digest(figures.figure({"": bars[:1]}, "us", "the peer"))
