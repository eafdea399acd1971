"""The host's cost on a CPU: each cell is checked before it is timed, and steps really train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import host_cost, training_graph  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402

ARGUMENTS = ["--shapes", "2,20,2,8,4,1 1,30,2,8,4,1", "--quick", "--chunk", "64"]


def test_a_run_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args, **kwargs):
        return 1.1 * mamba_chunk_scan_combined(*args, **kwargs)

    out = tmp_path / "host.json"
    monkeypatch.setattr(host_cost.peer, "load_public", lambda: (wrong, "of the test"))
    assert host_cost.main([*ARGUMENTS, "--out", str(out)], Cpu()) == 0  # type: ignore[arg-type]
    document = json.loads(out.read_text())
    ours, theirs = document["rows"][:3], document["rows"][3:]
    assert [row["host_us"] for row in ours] == [50.0] * 3
    assert [row.get("target_us") for row in ours] == [60.0, 200.0, None]
    assert len(theirs) == 3 and not any("host_us" in row or row["passed"] for row in theirs)
    assert document["whole step"]["passed"] and document["whole step"]["moved"] > host_cost.SAME
    text = capsys.readouterr().out
    assert "WRONG" in text and "the same" in text


def test_steps_that_differ_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((training_graph.WARM, training_graph.WARM + 1))

    def eager(step):
        for _ in range(next(counts)):
            step()
        return step

    monkeypatch.setattr(training_graph, "eager", eager)
    assert not host_cost.whole_step("cpu", d_model=128, seqlen=8)["passed"]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert host_cost.main([]) == 2 and "sees none here" in capsys.readouterr().err
