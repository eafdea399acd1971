"""The search on a GPU: a candidate must be right before it is timed.  config -> error, microseconds

`Judge` lives in a process of its own, `MeasuringBench` speaks to it; compilation happens beside, in a pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from ..gpus import Gpu
from ..mamba2_ops.errors import OptionError
from ..pack.records import MEASURED, Direction, Identity
from ..plan.problem import Problem
from . import gate, load_path
from .errors import ProblemError, RejectedError, TuneError
from .gate import Checked
from .isolate import Worker
from .jobs import Task
from .passes import PASSES
from .pool import Pool
from .predict import Compiler, Report
from .recording import record_of
from .results import Config, Result
from .timing import L2, REPEATS, GpuTimer, Mode, Timer, measure, summarise

# compiled already, as a rule; a launch that has not ended by then never will
TIME_LIMIT_S = 60.0
# inputs and float64 reference of the largest problems
LOAD_LIMIT_S = 300.0
# turns of the finalists: the clock moves with temperature, and all must see the same
ROUNDS = 5
# candidates beyond those that compile at a time: a process that is free finds the next one
SPARE = 4


@dataclass(frozen=True)
class Users:
    """What a record needs before users can find it: whose it is, and {name: fingerprint} of the kernels."""

    identity: Identity
    kernels: dict[str, str]


class Judge:
    """Runs, checks and times candidates on a device.

    users: to check finalists through the public call; None: with the launchers, where that call takes no kernels.
    """

    def __init__(self, timer: Timer, device: str, users: Users | None = None) -> None:
        self._timer, self._device, self._users = timer, torch.device(device), users
        self._drawn: tuple[Any, Any] | None = None

    def wake(self) -> None:
        """Nothing; the process is there afterwards, with torch and the GPU's context."""

    def load(self, direction: Direction, problem: Problem, seed: int) -> None:
        """Make the inputs and the reference of a problem, once for all its candidates.

        Errors: RejectedError if they do not fit.
        """
        # those of the problem before make room
        self._drawn = None
        torch.cuda.empty_cache()
        self._direction, self._pass = direction, PASSES[direction]
        self._problem, self._seed = problem, seed
        self._drawn = self._draw(seed)

    @torch.no_grad()
    def run(self, config: Config, best_us: float | None) -> Result:
        """Check a candidate, then time it.  Errors: RejectedError."""
        given, expected = self._loaded()
        checked = self._checked(lambda: self._launched(config, given, expected, False))
        # arguments of its own: a step that is made again and again moves on, and the next begins with what was drawn
        timed = self._pass.fresh(given)
        timing = measure(self._timer.sampler(lambda: self._pass.run(config, timed, False)), best_us)
        return Result(config, timing.time_us, timing.spread_us, checked.error, checked.limit)

    def finals(self, results: list[Result]) -> list[Result]:
        """Time candidates in turns, after a second check of each: other inputs, with the final states or their adjoint.

        That check takes the way that users take.  Errors: RejectedError if it does not fit.
        """
        standing = self._still_right(results)
        given = self._pass.fresh(self._loaded()[0])
        with torch.no_grad():
            samplers = [
                self._timer.sampler(lambda c=result.config: self._pass.run(c, given, False)) for result, _ in standing
            ]
        samples: list[list[float]] = [[] for _ in samplers]
        for _ in range(ROUNDS):
            for sampler, found in zip(samplers, samples, strict=True):
                found += sampler(REPEATS)
        timed = zip(standing, map(summarise, samples), strict=True)
        return [Result(result.config, t.time_us, t.spread_us, c.error, c.limit) for (result, c), t in timed]

    def _still_right(self, results: list[Result]) -> list[tuple[Result, Checked]]:
        """Those that are right on fresh inputs too, each with the check in which it came nearest to its limit."""
        fresh, expected = self._draw(self._seed + 1, more=True)
        standing = []
        for result in results:
            try:
                checked = self._checked(lambda r=result: self._again(r, fresh, expected))
            except RejectedError:
                continue
            before = Checked(result.error or 0.0, result.error_limit or checked.limit)
            standing.append((result, max(before, checked, key=lambda each: each.share)))
        return standing

    def _loaded(self) -> tuple[Any, Any]:
        assert self._drawn is not None, "load a problem first"
        return self._drawn

    def _draw(self, seed: int, more: bool = False) -> tuple[Any, Any]:
        try:
            drawn = self._pass.draw(self._problem, str(self._device), seed, more)
            return drawn, self._pass.expect(drawn, self._problem)
        except torch.cuda.OutOfMemoryError as error:
            raise RejectedError(f"the inputs and their reference do not fit into the GPU's memory: {error}") from error

    @torch.no_grad()
    def _launched(self, config: Config, given: Any, expected: Any, more: bool) -> Checked:
        with gate.poisoned_memory():
            found = self._pass.run(config, self._pass.fresh(given), more)
        return self._pass.check(found, expected, self._problem)

    def _again(self, result: Result, given: Any, expected: Any) -> Checked:
        if self._users is None:
            return self._launched(result.config, given, expected, True)
        kernels = self._users.kernels
        record = record_of(self._direction, self._problem, result, MEASURED, kernels)
        return load_path.check(record, self._users.identity, kernels, given, expected, self._device)

    def _checked(self, check: Callable[[], Checked]) -> Checked:
        try:
            return check()
        except (torch.cuda.OutOfMemoryError, OutOfResources) as error:
            raise RejectedError(f"it needs more than the GPU has: {str(error).splitlines()[0]}") from error
        except OptionError as error:
            raise RejectedError(str(error)) from error


def gpu_judge(mode: Mode, l2: L2, l2_bytes: int, users: Users) -> Judge:
    """A judge on the current GPU.  mode, l2: see GpuTimer; l2_bytes: size of the cache."""
    return Judge(GpuTimer(mode, l2, l2_bytes), f"cuda:{torch.cuda.current_device()}", users)


class MeasuringBench:
    """Judges candidates on the GPU.  judge: a worker of `gpu_judge`; pool: of `predict.Compiler` for the same GPU.

    max_error: what is less accurate is out, though it is right; None: nothing is.

    Errors: ProblemError where the problem itself does not fit.
    """

    # whichever is compiled first: the GPU waits for none
    in_order = False

    def __init__(self, task: Task, judge: Worker, pool: Pool, seed: int, max_error: float | None = None) -> None:
        self._task, self._judge, self._pool, self._seed = task, judge, pool, seed
        self._max_error = max_error

    @property
    def ahead(self) -> int:
        return self._pool.jobs + SPARE

    def prepare(self, config: Config) -> Future[Report]:
        # the code lands in Triton's cache on disk, where the launch finds it
        return self._compile(config, False)

    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
        prepared.result()
        self._load()
        result: Result = self._judge.call("run", config, best_us, time_limit_s=TIME_LIMIT_S)
        if self._max_error is not None and not (result.error or 0.0) <= self._max_error:
            raise RejectedError(f"its error is {result.error:.2g}, and {self._max_error:g} is asked for")
        return result

    def finals(self, results: list[Result]) -> list[Result]:
        # that with final states, or their adjoint, is other code, and the GPU would wait for the compiler
        wait([self._compile(result.config, True) for result in results])
        self._load()
        return self._judge.call("finals", results, time_limit_s=LOAD_LIMIT_S + TIME_LIMIT_S)

    def _compile(self, config: Config, more: bool) -> Future[Report]:
        return self._pool.submit("report", self._task.direction, self._task.problem, config, more)

    def _load(self) -> None:
        """Have the inputs there; not before the first candidate is compiled, which takes as long."""
        task = self._task
        try:
            self._judge.prepare("load", (task.direction, task.problem, self._seed), time_limit_s=LOAD_LIMIT_S)
        except RejectedError as error:
            raise ProblemError(str(error)) from error


@contextmanager
def benches(
    gpu: Gpu, jobs: int, seed: int, mode: Mode, l2: L2, users: Users, max_error: float | None = None
) -> Iterator[Callable[[Task], MeasuringBench]]:
    """A bench for any task, on the current GPU, which is `gpu`.  jobs: processes that compile."""
    judge = Worker(gpu_judge, mode, l2, gpu.l2_bytes, users)
    try:
        with Pool(jobs, Compiler, gpu) as pool:
            # beside the first compilations; what goes wrong shows when a candidate is judged
            threading.Thread(target=_wake, args=(judge,), daemon=True).start()
            yield lambda task: MeasuringBench(task, judge, pool, seed, max_error)
    finally:
        judge.close()


def _wake(judge: Worker) -> None:
    with suppress(RejectedError, TuneError):
        judge.call("wake", time_limit_s=LOAD_LIMIT_S)
