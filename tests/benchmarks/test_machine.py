"""What benchmarks measure with, as far as it goes without a GPU: the clock that is taken, failures, sums by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from benchmarks import machine, profiling, timing  # noqa: E402


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> machine.Gpu:
    """One whose calls take as many microseconds between events as they return."""
    monkeypatch.setattr(timing, "events_us", lambda call, calls: call() + calls / 100)
    monkeypatch.setattr(timing, "ColdGpuTimer", lambda: lambda call: call() / 2)
    monkeypatch.setattr(profiling, "recover", lambda: None)
    return machine.Gpu()


def test_a_long_call_is_timed_between_events_and_a_short_one_in_a_graph(gpu: machine.Gpu) -> None:
    assert gpu.gpu_us(lambda: 100.0) == (50.0, "graph, cold L2")
    assert gpu.gpu_us(lambda: 2 * machine.LONG_US) == (2 * machine.LONG_US + 0.03, "events")


def test_a_call_that_cannot_be_captured_is_timed_between_events(
    gpu: machine.Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timer(error: RuntimeError):
        def time(call):
            raise error

        return lambda: time

    monkeypatch.setattr(timing, "ColdGpuTimer", timer(RuntimeError("operation not permitted when stream is capturing")))
    assert gpu.gpu_us(lambda: 100.0) == (pytest.approx(100.09), "events")
    for error in (torch.OutOfMemoryError("no memory"), RuntimeError("CUDA error: misaligned address")):
        monkeypatch.setattr(timing, "ColdGpuTimer", timer(error))
        with pytest.raises(machine.DeviceLost if "misaligned" in str(error) else torch.OutOfMemoryError):
            machine.Gpu().gpu_us(lambda: 100.0)


def test_a_failure_is_a_row_and_memory_is_tidied() -> None:
    tidied = []
    here = SimpleNamespace(tidy=lambda: tidied.append(1))

    def raises(error: Exception):
        def call() -> dict:
            raise error

        return machine.attempt(call, here)  # type: ignore[arg-type]

    assert machine.attempt(lambda: {"gpu_us": 1.0}, here) == {"gpu_us": 1.0} and not tidied  # type: ignore[arg-type]
    assert raises(torch.OutOfMemoryError("CUDA out of memory. Tried")) == {"failed": "out of memory"}
    assert raises(ValueError("first\nsecond")) == {"failed": "ValueError: first"}
    assert raises(AssertionError()) == {"failed": "AssertionError: "} and len(tidied) == 3
    with pytest.raises(machine.DeviceLost):
        raises(RuntimeError("CUDA error: unspecified launch failure\nmore"))


def test_earlier_rows_are_those_of_the_same_machine_that_were_measured(tmp_path: Path) -> None:
    here = {"gpu": "x", "torch": "2"}
    rows = [{"a": 1}, {"a": 2, "skipped": "no time"}, {"a": 3, "failed": "out of memory"}]
    path = tmp_path / "file.json"
    assert machine.earlier(path, here) == []
    path.write_text(json.dumps({**here, "rows": rows}))
    assert machine.earlier(path, here) == [{"a": 1}]
    assert machine.earlier(path, {**here, "torch": "3"}) == []


def test_kernels_are_summed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["gemm", "scan", "gemm", "gemm", "scan", "gemm"]
    events = [SimpleNamespace(name=name, time_range=SimpleNamespace(elapsed_us=lambda: 5.0)) for name in names]
    monkeypatch.setattr(profiling, "_events", lambda call, calls, activities: events)
    assert profiling.by_name(lambda: None, calls=2) == {"gemm": (2, 10.0), "scan": (1, 5.0)}
    assert profiling.kernels(lambda: None, calls=2) == (3, 15.0)
