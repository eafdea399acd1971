"""The benchmark of head layouts where there is no GPU: its ways agree with each other, and its table."""

from __future__ import annotations

import pytest
import torch

from benchmarks import layouts


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_every_way_is_right(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "NHEADS", 4)
    monkeypatch.setattr(layouts, "HEADDIM", 4)
    monkeypatch.setattr(layouts, "DSTATE", 8)
    args = layouts.draw(layout, 2, 1, 20, "cpu")
    ways = layouts.calls(layout)
    for name, call in ways.items():
        off = layouts.errors(call, args)
        assert all(off[key] <= limit for key, limit in layouts.LIMITS.items()), (name, off)
    exact = {name: value.double() for name, value in args.items()}
    found = {name: call(exact) for name, call in ways.items()}
    for name, other in ((f"{layout}, repeated", layout), (f"{layout}, two-sided by flips", f"{layout}, two-sided")):
        if name in found:
            torch.testing.assert_close(found[name].double(), found[other], rtol=1e-2, atol=5e-2)


def test_the_table_says_what_is_wrong() -> None:
    row = {"name": "multi-head", "ngroups": 4, "errors": {"y": 0.5}}
    timed = {**row, "forward_us": 10.0, "step_us": 30.0}
    text = layouts.table({"gpu": "a GPU", "sizes": "small", "rows": [row, timed]})
    assert "WRONG" in text.splitlines()[2] and "30.0" in text.splitlines()[3]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert layouts.main([]) == 2 and "sees none here" in capsys.readouterr().err
