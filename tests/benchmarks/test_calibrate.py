"""What was measured can still be read, and the model that ships ranks it as the table says."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytest.importorskip("triton")

from benchmarks import calibrate, measured
from ssdgen.tune import calibration, compile, model
from ssdgen.tune.shapes import NAMED


@pytest.fixture(scope="module")
def found() -> list[calibration.Sample]:
    rows, left_out = measured.read()
    return calibrate.samples(rows, left_out, calibrate.Known())


def test_every_row_is_read_or_left_out_with_a_reason() -> None:
    rows, left_out = measured.read()
    assert len(rows) >= 200 and all(reason for reason in left_out)
    assert {row.direction for row in rows} == {"forward", "backward"}
    assert len({(row.run, row.direction, row.problem, json.dumps(row.config)) for row in rows}) == len(rows)


def test_nothing_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("run benchmarks/calibrate.py: it keeps what it compiles")

    monkeypatch.setattr(compile, "compile_launch", never)
    rows, left_out = measured.read()
    assert len(calibrate.samples(rows[-20:], left_out, calibrate.Known())) > 15


def test_the_quality_is_what_the_table_says(found: list[calibration.Sample]) -> None:
    kept = json.loads(calibrate.QUALITY.read_text())
    data = calibrate.report(found, [calibration.predicted(sample) for sample in found], Counter())
    assert {row["shape"] for row in data["shapes"] if row["direction"] == "forward"} == set(NAMED)
    assert [(row["gpu"], row["shape"], row["count"]) for row in data["shapes"]] == [
        (row["gpu"], row["shape"], row["count"]) for row in kept["shapes"]
    ]
    for seen, held_out in zip(data["passes"], kept["passes"], strict=True):
        assert (seen["direction"], seen["gpu"]) == (held_out["direction"], held_out["gpu"])
        # constants that have seen a shape rank it no worse than those that have not, but for luck: few rows have more
        slack = 0.05 if held_out["candidates"] > 50 else 0.15
        assert seen["rho_mean"] > held_out["rho_mean"] - slack
        assert held_out["rho_pooled"] > 0.9
    (forward, backward) = (total for total in kept["passes"] if total["gpu"] == "h200")
    assert forward["candidates"] >= 200 and min(forward["rho_mean"], backward["rho_mean"]) >= 0.8
    assert max(forward["ratio_worst"], backward["ratio_worst"]) <= 1.15
    assert calibrate.table(kept) in calibrate.PAGE.read_text()


def test_the_constants_are_fitted_to_these_rows(found: list[calibration.Sample]) -> None:
    kept = json.loads(model.FILE.read_text())
    assert kept["candidates"] == len(found)
    assert calibration.loss(found, model.fitted()) ** 0.5 == pytest.approx(kept["error"], rel=0.02)


def test_a_file_of_candidates_is_read_as_it_is() -> None:
    config = {"schedule": "single_pass", "chunk": 64, "prepared": True, "kernels": {"single_pass": {}, "dt_cumsum": {}}}
    problem = {
        "batch": 8, "seqlen": 2048, "nheads": 80, "headdim": 64, "dstate": 128, "ngroups": 1, "dtype": "bfloat16",
    }  # fmt: skip
    row = {"direction": "forward", "problem": problem, "config": config, "us": 300.0}
    data = {"gpu": "NVIDIA H100 80GB HBM3", "rows": [{**row, "resources": [[40, 0, 0, 4], [255, 16, 99620, 8]]}]}
    (read,) = measured.of_candidates(data, "candidates_nvidia_h100")
    (sample,) = calibrate.samples([read], Counter(), calibrate.Known())
    assert [launch.code.resources.num_warps for launch in sample.launches] == [4, 8]
    assert (sample.us, sample.shape, sample.gpu.name) == (300.0, "2.7b", "h100")
    with pytest.raises(ValueError, match=r"gpus\.py"):
        list(measured.of_candidates({**data, "gpu": "NVIDIA Foo"}, "x"))
