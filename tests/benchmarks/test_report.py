"""The benchmark's verdict: a shape that is wrong, or worse than the peer, gets no speed-up."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks import forward, report, workload

SHAPE = workload.SHAPES[0]
CEILINGS = {"copy_tbs": 4.27, "bf16_tflops": 790.0}


def measured(gpu_us: float, eager_us: float, relative: float) -> dict[str, float]:
    return {"gpu_us": gpu_us, "eager_us": eager_us, "host_us": 50.0, "relative": relative, "largest": 0.02}


def compared(error: float) -> dict:
    results = {
        "ssdgen": measured(250.0, 260.0, error),
        "mamba_ssm Q=128": measured(750.0, 1000.0, 2.19e-3),
        "mamba_ssm Q=256": measured(700.0, 1100.0, 2.20e-3),
        "mamba_ssm Q=64": {"skipped": "the time budget was spent"},
    }
    return forward.compare(SHAPE, results, CEILINGS)


def test_speedup_is_against_the_best_chunk_size_of_each_kind() -> None:
    row = compared(2.1e-3)
    assert row["passed"] and row["peer"] == "mamba_ssm Q=256"
    assert row["gpu_speedup"] == pytest.approx(2.8)
    assert row["eager_speedup"] == pytest.approx(1000 / 260)
    assert "2.80" in report.table([row])


@pytest.mark.parametrize("error", [2.3e-3, 0.3, float("inf"), float("nan")])
def test_a_larger_error_has_no_speedup(error: float) -> None:
    row = compared(error)
    assert not row["passed"] and "gpu_speedup" not in row and "eager_speedup" not in row
    text = report.table([row])
    assert "WRONG" in text and "2.80" not in text


def test_without_a_peer_the_table_still_prints() -> None:
    row = forward.compare(SHAPE, {"ssdgen": measured(250.0, 260.0, 2.2e-3)}, CEILINGS)
    assert row["passed"] and "gpu_speedup" not in row
    assert "250" in report.table([row])


def test_the_floor_is_the_description_s() -> None:
    """8 x 2048 tokens of the 2.7B shape, y alone: 81 us by bytes on an H200, 61 by FLOPs at a chunk of 64."""
    row = compared(2.1e-3)
    assert row["floor_us"] == pytest.approx(81, abs=1)
    assert row["bound_by"] == "bytes"


def test_no_gpu_is_said_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert forward.main(["--quick"]) == 2
    assert "CUDA GPU" in capsys.readouterr().err
