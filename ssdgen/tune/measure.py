"""The search on a GPU: a candidate must be right before it is timed.  config -> error, microseconds

`Judge` lives in a process of its own, `MeasuringBench` speaks to it; compilation happens beside, in a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from ..gpus import Gpu
from ..mamba2_ops.errors import OptionError
from ..pack.records import FORWARD, MEASURED, Direction
from ..plan.problem import Problem
from . import gate
from .errors import RejectedError
from .gate import Checked
from .isolate import Worker
from .passes import PASSES
from .pool import Pool
from .predict import Compiler, Report
from .results import Config, Result
from .timing import L2, REPEATS, GpuTimer, Mode, Timer, measure, summarise

# compiled already, as a rule; a launch that has not ended by then never will
TIME_LIMIT_S = 120.0
# inputs and float64 reference of the largest problems
LOAD_LIMIT_S = 300.0
# turns of the finalists: the clock moves with temperature, and all must see the same
ROUNDS = 5


class Judge:
    """Runs, checks and times candidates for one pass on a device."""

    def __init__(self, timer: Timer, device: str, direction: Direction = FORWARD) -> None:
        self._timer, self._device, self._pass = timer, device, PASSES[direction]
        self._problem: Problem | None = None

    def load(self, problem: Problem, seed: int) -> None:
        """Make the inputs and the reference of a problem.  Errors: RejectedError if they do not fit."""
        # those of the problem before make room
        self._drawn: tuple[Any, Any] | None = None
        torch.cuda.empty_cache()
        self._problem, self._seed = problem, seed
        self._drawn = self._draw(seed)

    @torch.no_grad()
    def run(self, config: Config, best_us: float | None) -> Result:
        """Check a candidate, then time it.  Errors: RejectedError."""
        given, expected = self._loaded()
        checked = self._check(config, given, expected)
        timing = measure(self._timer.sampler(lambda: self._pass.run(config, given, False)), best_us)
        return Result(config, timing.time_us, timing.spread_us, checked.error, checked.limit)

    @torch.no_grad()
    def finals(self, results: list[Result]) -> list[Result]:
        """Time candidates in turns, after a second check of each: other inputs, with the final states or their adjoint.

        Errors: RejectedError if it does not fit.
        """
        given, _ = self._loaded()
        fresh, expected = self._draw(self._seed + 1, more=True)
        standing = []
        for result in results:
            try:
                checked = self._check(result.config, fresh, expected, more=True)
            except RejectedError:
                continue
            before = Checked(result.error or 0.0, result.error_limit or checked.limit)
            standing.append((result, max(before, checked, key=lambda each: each.share)))
        del fresh, expected
        samplers = [
            self._timer.sampler(lambda c=result.config: self._pass.run(c, given, False)) for result, _ in standing
        ]
        samples: list[list[float]] = [[] for _ in samplers]
        for _ in range(ROUNDS):
            for sampler, found in zip(samplers, samples, strict=True):
                found += sampler(REPEATS)
        timed = zip(standing, map(summarise, samples), strict=True)
        return [Result(result.config, t.time_us, t.spread_us, c.error, c.limit) for (result, c), t in timed]

    def _loaded(self) -> tuple[Any, Any]:
        assert self._drawn is not None, "load a problem first"
        return self._drawn

    def _draw(self, seed: int, more: bool = False) -> tuple[Any, Any]:
        assert self._problem is not None
        try:
            drawn = self._pass.draw(self._problem, self._device, seed, more)
            return drawn, self._pass.expect(drawn, self._problem)
        except torch.cuda.OutOfMemoryError as error:
            raise RejectedError(f"the inputs and their reference do not fit into the GPU's memory: {error}") from error

    def _check(self, config: Config, given: Any, expected: Any, more: bool = False) -> Checked:
        assert self._problem is not None
        try:
            with gate.poisoned_memory():
                found = self._pass.run(config, self._pass.fresh(given), more)
            return self._pass.check(found, expected, self._problem)
        except (torch.cuda.OutOfMemoryError, OutOfResources) as error:
            raise RejectedError(f"it needs more than the GPU has: {str(error).splitlines()[0]}") from error
        except OptionError as error:
            raise RejectedError(str(error)) from error


def gpu_judge(mode: Mode, l2: L2, l2_bytes: int, direction: Direction = FORWARD) -> Judge:
    """A judge on the current GPU.  mode, l2: see GpuTimer; l2_bytes: size of the cache."""
    return Judge(GpuTimer(mode, l2, l2_bytes), "cuda", direction)


class MeasuringBench:
    """Judges candidates on the GPU.  judge: a worker of `gpu_judge`; pool: of `predict.Compiler` for the same GPU.

    Errors: RejectedError, if the problem itself does not fit.
    """

    provenance = MEASURED

    def __init__(self, problem: Problem, judge: Worker, pool: Pool, seed: int) -> None:
        self._problem, self._judge, self._pool, self._seed = problem, judge, pool, seed
        # in which of the worker's lives the inputs were loaded
        self._loaded = -1
        self._load()

    def prepare(self, config: Config) -> Future[Report]:
        # the code lands in Triton's cache on disk, where the launch finds it
        return self._pool.submit("report", self._problem, config)

    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
        prepared.result()
        self._load()
        return self._judge.call("run", config, best_us, time_limit_s=TIME_LIMIT_S)

    def finals(self, results: list[Result]) -> list[Result]:
        # that with final states, or their adjoint, is other code, and the GPU would wait for the compiler
        wait([self._pool.submit("report", self._problem, result.config, True) for result in results])
        self._load()
        return self._judge.call("finals", results, time_limit_s=LOAD_LIMIT_S + TIME_LIMIT_S)

    def _load(self) -> None:
        if not self._judge.alive or self._loaded != self._judge.starts:
            self._judge.call("load", self._problem, self._seed, time_limit_s=LOAD_LIMIT_S)
            self._loaded = self._judge.starts


@contextmanager
def benches(
    gpu: Gpu, jobs: int, seed: int, mode: Mode, l2: L2, direction: Direction = FORWARD
) -> Iterator[Callable[[Problem], MeasuringBench]]:
    """A bench for any problem, on the current GPU, which is `gpu`.  jobs: processes that compile."""
    judge = Worker(gpu_judge, mode, l2, gpu.l2_bytes, direction)
    try:
        with Pool(jobs, Compiler, gpu, direction) as pool:
            yield lambda problem: MeasuringBench(problem, judge, pool, seed)
    finally:
        judge.close()
