"""The cold start's verdict and table: a run that is wrong has no time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from benchmarks import cold_start, training_report, workload
from ssdgen.mamba2_ops import mamba_chunk_scan_combined

LIMITS = {"y": 5e-3, "x": 8e-3}
ENDS = dict(zip(cold_start.PHASES, (1.0, 1.1, 1.5, 2.0, 2.5), strict=True))
AGAIN = ENDS | {"backward": 1.75}


def ran(error: float = 1e-3) -> dict:
    return {"ends": ENDS, "errors": {"y": error, "x": 2e-3}, "kernels": {"loaded": 7, "missed": 1}}


@pytest.mark.parametrize("error", [6e-3, float("nan"), float("inf")])
def test_a_wrong_result_is_no_start(error: float) -> None:
    assert cold_start.verdict(ran(), LIMITS) == ran()
    assert cold_start.verdict(ran(error), LIMITS)["failed"] == "wrong: y"
    assert cold_start.verdict({"failed": "exit 1"}, LIMITS) == {"failed": "exit 1"}


def test_the_table_has_every_phase_and_says_why_a_run_has_none() -> None:
    rows = {"ssdgen, pack with cubins": ran() | {"again": AGAIN}, "mamba_ssm": {"failed": "not done in 90 s"}}
    head, ours, peer = cold_start.table(rows).splitlines()
    assert head.split()[:6] == [*cold_start.PHASES, "again"]
    assert ours.split()[-9:] == ["1.00", "1.10", "1.50", "2.00", "2.50", "1.75", "7", "of", "8"]
    assert peer.split() == ["mamba_ssm", "not", "done", "in", "90", "s"]


def test_limits_are_of_whole_processes() -> None:
    row = ran() | {"again": AGAIN}
    assert cold_start.within(row, 3.0) and not cold_start.within(row, 2.4)
    assert not cold_start.within(row | {"again": ENDS}, 3.0)
    assert not cold_start.within({"failed": "wrong: y"}, 3.0)


def test_a_process_finds_bytecode_and_leaves_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's setting is."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(cold_start, "INSTALLED", ("benchmarks", "no_package_of_this_name"))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "of_a_pack.py").write_text("x = 1\n")
    cold_start.compile_bytecode(tmp_path / "bytecode", [str(tmp_path / "sources")])
    made = {file.name.split(".")[0] for file in (tmp_path / "bytecode").rglob("*.pyc")}
    assert {"workload", "of_a_pack"} <= made
    monkeypatch.setattr(cold_start, "__file__", str(tmp_path / "child.py"))
    child = (
        "import json, sys\nprint(json.dumps({'prefix': sys.pycache_prefix, 'writes': not sys.dont_write_bytecode}))\n"
    )
    (tmp_path / "child.py").write_text(child)
    found = cold_start.run("ssdgen", "any", [], tmp_path / "cache", tmp_path / "bytecode", 60)
    assert found == {"prefix": str(tmp_path / "bytecode"), "writes": True}


def test_a_right_step_passes_its_verdict() -> None:
    """What a process says of its errors is what the verdict reads."""
    args = workload.inputs(workload.Shape("small", 1, 70, 2, 8, 16, 1), "cpu", 0)
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    operands = [leaves[name] for name in ("x", "dt", "A", "B", "C")]
    y = mamba_chunk_scan_combined(*operands, 16, D=leaves["D"], dt_bias=leaves["dt_bias"], dt_softplus=True)
    d_y = torch.randn(y.shape).to(y.dtype)
    y.backward(d_y)
    limits = {"y": 5e-3, **training_report.LIMITS}
    found = {"ends": ENDS, "errors": cold_start.errors(args, d_y, y.detach(), leaves)}
    assert set(found["errors"]) == set(limits)
    assert "failed" not in cold_start.verdict(found, limits)
    leaves["A"].grad.mul_(1.1)
    assert (
        cold_start.verdict(ran() | {"errors": cold_start.errors(args, d_y, y.detach(), leaves)}, limits)["failed"]
        == "wrong: A"
    )


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cold_start.main([]) == 2 and "sees none here" in capsys.readouterr().err
