"""The search on a GPU: a candidate must be right before it is timed.  config -> error, microseconds

`Judge` lives in a process of its own, `MeasuringBench` speaks to it; compilation happens beside, in a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

import torch
from triton.runtime.errors import OutOfResources

from ..gpus import Gpu
from ..pack.records import MEASURED
from ..plan.problem import Problem
from . import gate, inputs, kernels, reference
from .errors import RejectedError
from .inputs import Inputs
from .isolate import Worker
from .pool import Pool
from .predict import Compiler, Report
from .results import Config, Result
from .timing import L2, REPEATS, GpuTimer, Mode, Timer, measure, summarise

# compiled already, as a rule; a launch that has not ended by then never will
TIME_LIMIT_S = 120.0
# inputs and float64 reference of the largest problems
LOAD_LIMIT_S = 300.0
# y and the final states of some heads, in fp32 rounded from float64
Expected = tuple[torch.Tensor, torch.Tensor]
# turns of the finalists: the clock moves with temperature, and all must see the same
ROUNDS = 5


class Judge:
    """Runs, checks and times candidates on a device."""

    def __init__(self, timer: Timer, device: str) -> None:
        self._timer, self._device = timer, device
        self._problem: Problem | None = None

    def load(self, problem: Problem, seed: int) -> None:
        """Make the inputs and the reference of a problem.  Errors: RejectedError if they do not fit."""
        # those of the problem before make room
        self._drawn: tuple[Inputs, Expected] | None = None
        torch.cuda.empty_cache()
        self._problem, self._seed = problem, seed
        self._heads = reference.sample_heads(problem.batch, problem.seqlen, problem.nheads, problem.headdim)
        self._drawn = self._draw(seed)

    @torch.no_grad()
    def run(self, config: Config, best_us: float | None) -> Result:
        """Check a candidate, then time it.  Errors: RejectedError."""
        given, expected = self._loaded()
        error = self._check(config, given, expected)
        timing = measure(self._timer.sampler(lambda: kernels.run(config, given)), best_us)
        return Result(config, timing.time_us, timing.spread_us, error)

    @torch.no_grad()
    def finals(self, results: list[Result]) -> list[Result]:
        """Time candidates in turns, after a second check of each: other inputs, and with the final states written."""
        given, _ = self._loaded()
        fresh, expected = self._draw(self._seed + 1)
        standing = []
        for result in results:
            try:
                error = self._check(result.config, fresh, expected, final_states=True)
            except RejectedError:
                continue
            standing.append((result, max(error, result.error or 0.0)))
        del fresh, expected
        samplers = [self._timer.sampler(lambda c=result.config: kernels.run(c, given)) for result, _ in standing]
        samples: list[list[float]] = [[] for _ in samplers]
        for _ in range(ROUNDS):
            for sampler, found in zip(samplers, samples, strict=True):
                found += sampler(REPEATS)
        timed = zip(standing, map(summarise, samples), strict=True)
        return [Result(result.config, t.time_us, t.spread_us, error) for (result, error), t in timed]

    def _loaded(self) -> tuple[Inputs, Expected]:
        assert self._drawn is not None, "load a problem first"
        return self._drawn

    def _draw(self, seed: int) -> tuple[Inputs, Expected]:
        assert self._problem is not None
        try:
            drawn = inputs.random(self._problem, self._device, seed)
            return drawn, reference.forward(drawn, self._heads)
        except torch.cuda.OutOfMemoryError as error:
            raise RejectedError(f"the inputs and their reference do not fit into the GPU's memory: {error}") from error

    def _check(self, config: Config, given: Inputs, expected: Expected, final_states: bool = False) -> float:
        assert self._problem is not None
        try:
            with gate.poisoned_memory():
                y, states = kernels.run(config, given, final_states)
            limit = gate.LIMITS[self._problem.dtype]
            error = gate.check(y, expected[0], self._heads, 2, limit)
            if states is None:
                return error
            return max(error, gate.check(states, expected[1], self._heads, 1, limit, "the final state"))
        except (torch.cuda.OutOfMemoryError, OutOfResources) as error:
            raise RejectedError(f"it needs more than the GPU has: {str(error).splitlines()[0]}") from error


def gpu_judge(mode: Mode, l2: L2, l2_bytes: int) -> Judge:
    """A judge on the current GPU.  mode, l2: see GpuTimer; l2_bytes: size of the cache."""
    return Judge(GpuTimer(mode, l2, l2_bytes), "cuda")


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
        # that with final states is other code, and the GPU would wait for the compiler
        wait([self._pool.submit("report", self._problem, result.config, True) for result in results])
        self._load()
        return self._judge.call("finals", results, time_limit_s=LOAD_LIMIT_S + TIME_LIMIT_S)

    def _load(self) -> None:
        if not self._judge.alive or self._loaded != self._judge.starts:
            self._judge.call("load", self._problem, self._seed, time_limit_s=LOAD_LIMIT_S)
            self._loaded = self._judge.starts


@contextmanager
def benches(gpu: Gpu, jobs: int, seed: int, mode: Mode, l2: L2) -> Iterator[Callable[[Problem], MeasuringBench]]:
    """A bench for any problem, on the current GPU, which is `gpu`.  jobs: processes that compile."""
    judge = Worker(gpu_judge, mode, l2, gpu.l2_bytes)
    try:
        with Pool(jobs, Compiler, gpu) as pool:
            yield lambda problem: MeasuringBench(problem, judge, pool, seed)
    finally:
        judge.close()
