"""Each benchmark once on a GPU, as small as it goes and without peers: captures, timers, profiler, peak memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import (  # noqa: E402
    end_to_end,
    generate,
    growth,
    host_cost,
    layer_training,
    memory,
    recall_sweep,
    rivals,
)

pytestmark = pytest.mark.gpu


def result(path: Path, main, *arguments: str) -> dict:
    alone = [] if main is recall_sweep.main else ["--no-peer"]
    assert main([*arguments, *alone, "--out", str(path)]) == 0
    return json.loads(path.read_text())


def test_growth(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    found = result(out, growth.main, "--sweep", "length", "growth", "--heads", "8", "--lengths", "512", "1000")
    rows = [row for part in found["sweeps"].values() for row in part["rows"]]
    assert len(rows) == 8 and all(row["gpu_us"] > 0 and row["extra_mb"] > 0 for row in rows)
    assert {row["timed"] for row in rows} == {"graph, cold L2"}


@pytest.mark.parametrize("passes", [growth.FORWARD, growth.BOTH])
def test_attention_is_here(passes: str) -> None:
    from torch.nn.attention import SDPBackend

    from benchmarks import machine, workload

    shape = workload.Shape("test", 1, 1000, 16, 64, 16, 1)
    for name, backend in ((rivals.FLASH, SDPBackend.FLASH_ATTENTION), (rivals.CUDNN, SDPBackend.CUDNN_ATTENTION)):
        row = growth.measure(growth.Cell(rivals.attention(name, backend), shape, passes), machine.Gpu())
        assert row["passed"] and row["gpu_us"] > 0, (name, row)


def test_memory(tmp_path: Path) -> None:
    (row,) = result(tmp_path / "x.json", memory.main, "--shapes", "8,2048,8,64,128,1", "--limits", "4M")["rows"]
    unlimited, limited = row["results"]["ssdgen"], row["results"]["ssdgen, 4M"]
    assert 0 <= limited["extra_mb"] < unlimited["extra_mb"] and unlimited["gpu_us"] > 0


def test_host_cost_and_a_whole_step_in_a_graph(tmp_path: Path) -> None:
    found = result(tmp_path / "x.json", host_cost.main, "--quick", "--shapes", "1,512,8,64,128,1")
    assert found["whole step"]["passed"] and all(row["host_us"] > 0 for row in found["rows"])


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"batch": 2, "seqlen": 256, "steps": 2, "prompt": 300, "tokens": 64}
    ways = {"130m": {"graph": True}, "2.7b": {"checkpoint": True}}
    sizes = {name: end_to_end.Size(256, 2, **small, **way) for name, way in ways.items()}
    monkeypatch.setattr(end_to_end, "SIZES", sizes)
    monkeypatch.setattr(generate, "VOCABULARY", 512)
    rows = result(tmp_path / "x.json", end_to_end.main, "--sizes", "130m", "2.7b")["rows"]
    assert [row["passed"] for row in rows] == [True] * 4
    first = rows[0]["sides"]["ssdgen"]
    assert first["graph_us"] > 0 and first["step_us"] > 0 and {"SSD", "GEMM"} <= set(first["classes"])
    assert rows[2]["sides"]["ssdgen"]["token_us"] > 0


def test_recall_sweep(tmp_path: Path) -> None:
    """One pair of four words is learnt by replays of a graph."""
    arguments = ["--tasks", "64,1", "--states", "16", "--words", "4", "--tokens", "4096", "--steps", "400"]
    (row,) = result(tmp_path / "x.json", recall_sweep.main, *arguments, "--plot", str(tmp_path / "x.png"))["rows"]
    assert row["made"] == "CUDA graph" and row["accuracy"] > 0.9, row


def test_layer_training(tmp_path: Path) -> None:
    arguments = ["--d-model", "256", "--batch", "1", "--seqlen", "512"]
    rows = result(tmp_path / "x.json", layer_training.main, *arguments)["rows"]
    assert rows[layer_training.MAMBA2]["tokens_s"] > 0 and "missing" in rows[layer_training.MAMBA1]
