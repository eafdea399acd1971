"""The judge: right before timed, twice for the finalists, and a bench that survives the loss of its worker."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import torch

from ssdgen.plan.problem import Problem
from ssdgen.runtime import fallback
from ssdgen.tune import measure
from ssdgen.tune.errors import RejectedError, WrongResultError
from ssdgen.tune.inputs import Inputs
from ssdgen.tune.measure import Judge, MeasuringBench
from ssdgen.tune.results import Result

PROBLEM = Problem(2, 100, 4, 16, 16, 2)


class StillTimer:
    """Takes what the config says.  timed: which, in order."""

    def __init__(self) -> None:
        self.timed: list[float] = []
        self.speed = 0.0

    def sampler(self, call):
        call()
        speed = self.speed

        def sample(count: int) -> list[float]:
            self.timed.append(speed)
            return [speed] * count

        return sample


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """On the CPU; the kernels are the PyTorch path, with the faults that a config asks for."""
    timer = StillTimer()

    def run(config: dict[str, Any], given: Inputs, final_states: bool = False):
        timer.speed = config["us"]
        y, states = fallback.forward(*given.operands(), **given.options(), final_states=final_states)
        out = torch.empty_like(y)  # NaN, if poisoned
        out[:, config.get("skip", 0) :] = y[:, config.get("skip", 0) :]
        if states is not None and config.get("stale"):
            states[:, -1] *= 1.1
        return out, states

    monkeypatch.setattr(measure.kernels, "run", run)
    made = Judge(timer, "cpu")
    made.load(PROBLEM, 0)
    return made


def test_what_is_right_is_timed(judge: Judge) -> None:
    result = judge.run({"us": 20.0}, None)
    assert result.time_us == 20.0 and result.spread_us == 0 and 1e-3 < (result.error or 0) < 5e-3


def test_what_was_never_written_is_not_timed(judge: Judge) -> None:
    with pytest.raises(WrongResultError, match="never written"):
        judge.run({"us": 1.0, "skip": 1}, None)
    assert judge._timer.timed == []  # type: ignore[attr-defined]


def test_finalists_are_checked_with_their_states_and_timed_in_turns(judge: Judge) -> None:
    given = [Result({"us": 3.0}, 9.0, 0.0, 1e-9), Result({"us": 1.0, "stale": True}, 1.0), Result({"us": 2.0}, 2.0)]
    found = judge.finals(given)
    assert [(result.config["us"], result.time_us) for result in found] == [(3.0, 3.0), (2.0, 2.0)]
    assert all((result.error or 0) > 1e-3 for result in found)
    assert judge._timer.timed == [3.0, 2.0] * measure.ROUNDS  # type: ignore[attr-defined]


class FakeWorker:
    """Dies when a config says so."""

    def __init__(self) -> None:
        self.starts, self.alive, self.calls = 0, False, []

    def call(self, method: str, *args: Any, time_limit_s: float) -> Any:
        if not self.alive:
            self.starts, self.alive = self.starts + 1, True
        self.calls.append(method)
        if method == "run" and args[0].get("deadly"):
            self.alive = False
            raise RejectedError("died")
        return args[0]


class FakePool:
    def __init__(self) -> None:
        self.submitted: list[tuple] = []

    def submit(self, *call: Any) -> Future[Any]:
        self.submitted.append(call)
        future: Future[Any] = Future()
        if call[2].get("large"):
            future.set_exception(RejectedError("does not fit"))
        else:
            future.set_result(None)
        return future


def test_a_bench_loads_again_after_its_worker_died() -> None:
    worker, pool = FakeWorker(), FakePool()
    bench = MeasuringBench(PROBLEM, worker, pool, seed=0)  # type: ignore[arg-type]
    for config in ({"a": 1}, {"deadly": True}, {"a": 2}):
        prepared = bench.prepare(config)
        if "deadly" in config:
            with pytest.raises(RejectedError, match="died"):
                bench.run(config, prepared, None)
        else:
            assert bench.run(config, prepared, None) == config
    assert worker.calls == ["load", "run", "run", "load", "run"]
    # what does not compile never reaches the GPU
    with pytest.raises(RejectedError, match="does not fit"):
        bench.run({"large": True}, bench.prepare({"large": True}), None)
    assert worker.calls[-1] == "run" and len(worker.calls) == 5
    # the finalists' code with final states is made beforehand
    bench.finals([Result({"a": 2}, 1.0)])
    assert pool.submitted[-1] == ("report", PROBLEM, {"a": 2}, True) and worker.calls[-1] == "finals"
