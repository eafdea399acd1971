"""The judge: right before timed, twice for the finalists, and a bench that survives the loss of its worker."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from ssdgen import gpus
from ssdgen.mamba2_ops.errors import OptionError
from ssdgen.pack.records import Direction
from ssdgen.plan import backward_space
from ssdgen.plan.problem import Problem
from ssdgen.runtime import fallback
from ssdgen.tune import gate, inputs, kernels, measure, passes
from ssdgen.tune.errors import ProblemError, RejectedError, WrongResultError
from ssdgen.tune.inputs import Inputs
from ssdgen.tune.isolate import Worker
from ssdgen.tune.jobs import Task
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

    monkeypatch.setattr(kernels, "run", run)
    made = Judge(timer, "cpu")
    made.load("forward", PROBLEM, 0)
    return made


@pytest.fixture
def backward_judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """The same for the backward pass.  wrong: a gradient that is too large; late: only with an adjoint of the state."""
    timer = StillTimer()

    def run(config: dict[str, Any], *operands: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        timer.speed = config["us"]
        if config.get("refused"):
            raise OptionError("this package has no such kernel")
        found = fallback.backward(*operands, **options, cu_seqlens=None)
        wrong = config.get("wrong")
        if wrong and (options["d_final_states"] is not None or not config.get("late")):
            found[wrong] = found[wrong] * config.get("by", 1.1)
        return found

    monkeypatch.setattr(passes.paths.backward_launcher(), "backward", run)
    made = Judge(timer, "cpu")
    made.load("backward", PROBLEM, 0)
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


def test_gradients_that_are_right_are_timed(backward_judge: Judge) -> None:
    result = backward_judge.run({"us": 20.0}, None)
    assert result.time_us == 20.0 and 1e-3 < (result.error or 0) < 5e-3
    assert result.error_limit == gate.GRADIENT_LIMITS["bfloat16"]["x"]


@pytest.mark.parametrize("name", inputs.OPERANDS)
def test_a_wrong_gradient_is_not_timed(backward_judge: Judge, name: str) -> None:
    with pytest.raises(WrongResultError, match=f"d_{name} has an error"):
        backward_judge.run({"us": 1.0, "wrong": name}, None)
    assert backward_judge._timer.timed == []  # type: ignore[attr-defined]


def test_what_the_launchers_refuse_is_a_rejection(backward_judge: Judge) -> None:
    with pytest.raises(RejectedError, match="no such kernel"):
        backward_judge.run({"us": 1.0, "refused": True}, None)


def test_finalists_of_the_backward_pass_are_checked_with_an_adjoint_of_the_state(backward_judge: Judge) -> None:
    good, late = {"us": 3.0}, {"us": 1.0, "wrong": "dt", "late": True}
    near = {"us": 2.0, "wrong": "A", "by": 1.015}
    given = [backward_judge.run(config, None) for config in (good, late, near)]
    found = {result.config["us"]: result for result in backward_judge.finals(given)}
    assert set(found) == {3.0, 2.0} and found[3.0].error_limit == 8e-3
    # the record keeps what comes nearest to its limit, of both checks
    assert found[2.0].error_limit == 2e-2 and 0.014 < (found[2.0].error or 0) < 0.016


@pytest.mark.interpreter
@pytest.mark.parametrize("segment", [0, 16, 32])
@pytest.mark.parametrize("schedule", backward_space.SCHEDULES)
def test_the_launchers_pass_the_gate(schedule: str, segment: int) -> None:
    """Every buffer of a call is full of NaN before, and a finalist has an adjoint of its final states."""
    made = Judge(StillTimer(), "cpu")
    problem = Problem(1, 50, 4, 16, 16, 2, "float32")
    made.load("backward", problem, 0)
    flat = {**backward_space.flatten(backward_space.minimal(schedule, problem)), "segment": segment}
    config = backward_space.config(schedule, {**flat, "parts": 2} if "parts" in flat else flat)
    result = made.run(config, None)
    assert 0 < (result.error or 0) < 1e-4
    assert [final.config for final in made.finals([result])] == [config]


class OftenTimer(StillTimer):
    """Makes each call that it times again and again."""

    def sampler(self, call):
        for _ in range(3):
            call()
        return super().sampler(call)


@pytest.mark.interpreter
@pytest.mark.parametrize("direction", ["decode", "replay", "conv_update"])
def test_a_step_that_moves_on_is_judged_from_where_it_began(direction: Direction) -> None:
    """States, what is kept and how much of it: timing one candidate changes nothing for the next one."""
    made, problem = Judge(OftenTimer(), "cpu"), Problem(2, 1, 4, 16, 16, 2, "float32")
    problem = replace(problem, dstate=4) if direction == "conv_update" else problem
    made.load(direction, problem, 0)
    config = passes.PASSES[direction].space.default(problem, gpus.find("h200"))
    results = [made.run(config, None) for _ in range(3)]
    assert len({result.error for result in results}) == 1
    assert len(made.finals(results)) == 3


class FakeWorker(Worker):
    """Dies when a config says so; what it is asked for is all that happens."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.living, self.calls = False, []

    @property
    def alive(self) -> bool:
        return self.living

    def call(self, method: str, *args: Any, time_limit_s: float) -> Any:
        self.living = True
        self.calls.append(method)
        if method == "load" and args[1].batch > 100:
            raise RejectedError("out of memory")
        if method == "run" and args[0].get("deadly"):
            self.living = False
            raise RejectedError("died")
        return args[0]


class FakePool:
    jobs = 3

    def __init__(self) -> None:
        self.submitted: list[tuple] = []

    def submit(self, *call: Any) -> Future[Any]:
        self.submitted.append(call)
        future: Future[Any] = Future()
        if call[3].get("large"):
            future.set_exception(RejectedError("does not fit"))
        else:
            future.set_result(None)
        return future


def bench_of(worker: FakeWorker, pool: FakePool, problem: Problem = PROBLEM) -> MeasuringBench:
    return MeasuringBench(Task("small", "forward", problem), worker, pool, seed=0)  # type: ignore[arg-type]


def test_a_bench_loads_again_after_its_worker_died() -> None:
    worker, pool = FakeWorker(), FakePool()
    bench = bench_of(worker, pool)
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
    assert pool.submitted[-1] == ("report", "forward", PROBLEM, {"a": 2}, True) and worker.calls[-1] == "finals"
    # another problem has inputs of its own, the same ones are not made twice
    other = bench_of(worker, pool, replace(PROBLEM, batch=3))
    for bench in (other, other, bench_of(worker, pool)):
        bench.run({"a": 1}, bench.prepare({"a": 1}), None)
    assert worker.calls[6:] == ["load", "run", "run", "load", "run"]


def test_more_is_compiled_ahead_than_compiles_at_a_time_and_inputs_are_not_waited_for() -> None:
    worker = FakeWorker()
    bench = bench_of(worker, FakePool())
    assert bench.ahead > FakePool.jobs and not bench.in_order
    bench.prepare({"a": 1})
    assert worker.calls == []


def test_what_is_less_accurate_than_was_asked_for_is_out() -> None:
    class Measuring(FakeWorker):
        def call(self, method: str, *args: Any, time_limit_s: float) -> Any:
            found = super().call(method, *args, time_limit_s=time_limit_s)
            return Result(found, 1.0, 0.1, found["error"], 5e-3) if method == "run" else found

    task = Task("small", "forward", PROBLEM)
    bench = MeasuringBench(task, Measuring(), FakePool(), seed=0, max_error=1.9e-3)  # type: ignore[arg-type]
    prepared: Future[Any] = Future()
    prepared.set_result(None)
    assert bench.run({"error": 1.8e-3}, prepared, None).error == 1.8e-3
    for error in (2e-3, float("nan")):
        with pytest.raises(RejectedError, match="0.0019 is asked for"):
            bench.run({"error": error}, prepared, None)


def test_a_problem_that_does_not_fit_is_no_fault_of_a_candidate() -> None:
    bench = bench_of(FakeWorker(), FakePool(), replace(PROBLEM, batch=1000))
    with pytest.raises(ProblemError, match="out of memory"):
        bench.run({"a": 1}, bench.prepare({"a": 1}), None)
