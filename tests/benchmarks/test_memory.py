"""The memory benchmark on a CPU: what is beside what, limits that reach the call, ratios of right results alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import growth, memory, rivals, workload  # noqa: E402
from ssdgen import gpus  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined, select  # noqa: E402
from ssdgen.mamba2_ops.match import Gpu  # noqa: E402
from ssdgen.mamba2_ops.problem import Problem  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402

SHAPE = workload.Shape("test", 2, 20, 2, 8, 4, 1)


def test_results_are_not_extra() -> None:
    """What a step returns is y and a gradient for each operand, in its dtype."""
    args, d_y = growth.inputs(SHAPE, "cpu")
    leaves = {name: value.requires_grad_() for name, value in args.items()}
    found = growth.step(rivals.ours().run, leaves, d_y)
    assert memory.outputs_mb(SHAPE, args) == sum(t.numel() * t.element_size() for t in found.values()) / 1e6


def test_a_limit_holds_inside_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.LIMIT, "7M")
    with memory.limited("1K"):
        assert os.environ[memory.LIMIT] == "1K"
    with pytest.raises(ZeroDivisionError), memory.limited(None):
        assert memory.LIMIT not in os.environ
        raise ZeroDivisionError
    assert os.environ[memory.LIMIT] == "7M"


def result(extra: float, passed: bool = True) -> dict:
    return {"passed": passed, **({"extra_mb": extra, "peak_mb": extra + 5, "gpu_us": 100.0} if passed else {})}


def test_the_ratio_is_to_the_leanest_peer_and_of_what_is_right() -> None:
    theirs = {"mamba_ssm Q=128": result(80.0), "mamba_ssm Q=256": result(50.0), "mamba_ssm Q=64": {"failed": "x"}}
    row = memory.compare(SHAPE, {"ssdgen": result(40.0), "ssdgen, 1G": result(20.0), **theirs})
    assert row["passed"] and row["peer"] == "mamba_ssm Q=256" and row["ratio"] == pytest.approx(0.8)
    text = memory.table([row])
    assert "0.80" in text and "0.40" in text
    wrong = memory.compare(SHAPE, {"ssdgen": result(40.0), "ssdgen, 1G": result(0.0, passed=False), **theirs})
    assert not wrong["passed"] and "ratio" not in wrong
    assert "WRONG" in memory.table([wrong]) and "0.80" not in memory.table([wrong])


def test_a_run_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def scan(*args, **kwargs):
        seen.append(os.environ.get(memory.LIMIT))
        return mamba_chunk_scan_combined(*args, **kwargs)

    monkeypatch.setattr(memory.peer, "load_public", lambda: (scan, "of the test"))
    out = tmp_path / "memory.json"
    arguments = ["--shapes", "2,20,2,8,4,1", "--limits", "1K", "--within", "--chunks", "64", "--out", str(out)]
    cpu = Cpu()
    cpu.extra_mb = lambda call: 3.0  # type: ignore[method-assign]
    assert memory.main(arguments, cpu) == 0  # type: ignore[arg-type]
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["results"]) == ["mamba_ssm Q=64", "ssdgen", "ssdgen, 1K"] and row["ratio"] == pytest.approx(1.0)
    assert seen and set(seen) == {None}
    calls = cpu.calls
    assert memory.main([*arguments, "--resume"], cpu) == 0 and cpu.calls == calls  # type: ignore[arg-type]
    assert json.loads(out.read_text())["rows"] == [row]
    assert memory.main([*arguments, "--budget", "-1"], cpu) == 0  # type: ignore[arg-type]
    assert "no time" in capsys.readouterr().out


def test_within_a_share_of_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is of what is kept, and what a step holds besides comes off it."""
    results = memory.outputs_mb(SHAPE, growth.inputs(SHAPE, "cpu")[0])
    monkeypatch.setattr(memory.peer, "load_public", lambda: (mamba_chunk_scan_combined, "of the test"))

    class Kept(Cpu):
        def extra_mb(self, call) -> float:
            # six parts are kept without a limit, as many as one allows else, and 10 MB are held besides
            kept = 90.0 if (limit := os.environ.get(memory.LIMIT)) is None else 15.0 * (float(limit) / 1e6 // 15.0)
            return results + 10.0 + kept

    out = tmp_path / "memory.json"
    arguments = ["--shapes", "2,20,2,8,4,1", "--limits", "--within", "0.5", "--chunks", "64", "--out", str(out)]
    assert memory.main(arguments, Kept()) == 0  # type: ignore[arg-type]
    found = json.loads(out.read_text())["rows"][0]["results"]
    assert found["mamba_ssm Q=64"]["extra_mb"] == pytest.approx(100.0)
    half = found["ssdgen, 0.5 of the peer's"]
    # 55 would be held with 45 kept
    assert half["extra_mb"] == pytest.approx(40.0) and 30.0 <= half["limit_mb"] < 45.0
    assert memory.main([*arguments, "--no-peer"], Kept()) == 0  # type: ignore[arg-type]
    assert list(json.loads(out.read_text())["rows"][0]["results"]) == ["ssdgen"]


def test_slices_of_a_config_are_there_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.device, "gpu_here", lambda: gpus.find("h200"))
    monkeypatch.setattr(select, "gpu_of", lambda device: Gpu("NVIDIA H200", "sm90", 132))
    monkeypatch.setattr(select, "_backward_configs", {})
    shape = workload.select("2.7b_b1_16k")[0]
    problem, place = Problem(*shape.sizes, "bfloat16"), torch.device("cpu", 0)
    before = select.backward_config_for(problem, place)
    with memory.sliced(shape, 4, "cpu"):
        inside = select.backward_config_for(problem, place)
    assert inside["slices"] == 4 and "slices" not in before
    assert inside["segment"] < before.get("segment", problem.seqlen)
    assert select.backward_config_for(problem, place) is before


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory.main([]) == 2 and "sees none here" in capsys.readouterr().err
