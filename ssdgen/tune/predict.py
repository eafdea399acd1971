"""The search without a GPU: compile a candidate for it, read its resources, apply the model.  config -> microseconds"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..gpus import Gpu
from ..mamba2_ops.errors import OptionError
from ..pack.records import FORWARD, PREDICTED, Direction
from ..plan.problem import Problem
from . import model, work
from .compile import Compiled, compile_launch
from .errors import CompileError
from .model import Estimate
from .passes import PASSES
from .pool import Pool
from .results import Config, Result


@dataclass(frozen=True)
class LaunchReport:
    """One launch of a candidate: its code and its predicted time."""

    code: Compiled
    estimate: Estimate


@dataclass(frozen=True)
class Report:
    """A candidate as compiled.  us: predicted GPU time of a call, microseconds."""

    launches: tuple[LaunchReport, ...]

    @property
    def us(self) -> float:
        return sum(launch.estimate.us for launch in self.launches)


class Compiler:
    """Compiles candidates for one pass on one GPU; lives in a process of its own."""

    def __init__(self, gpu: Gpu, direction: Direction = FORWARD) -> None:
        self._gpu, self._direction = gpu, direction

    def report(self, problem: Problem, config: Config, more: bool = False) -> Report:
        """Compile every launch of a candidate.  more: with the final states or their adjoint.

        Errors: CompileError.
        """
        try:
            plan = PASSES[self._direction].plan(config, _sizes_only(problem, self._direction, more), more)
        except OptionError as error:
            raise CompileError(str(error)) from error
        found = []
        for launch in plan.launches:
            code = compile_launch(launch, self._gpu)
            counted = work.of_launch(launch, config, problem)
            estimate = model.launch_time(counted, code, self._gpu, problem.dtype, launch.num_stages)
            found.append(LaunchReport(code, estimate))
        return Report(tuple(found))


class PredictingBench:
    """Judges candidates by their code.  pool: of `Compiler`."""

    provenance = PREDICTED

    def __init__(self, problem: Problem, pool: Pool) -> None:
        self._problem, self._pool = problem, pool

    def prepare(self, config: Config) -> Future[Report]:
        return self._pool.submit("report", self._problem, config)

    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
        return Result(config, prepared.result().us)

    def finals(self, results: list[Result]) -> list[Result]:
        """A prediction does not change by making it again."""
        return results


@contextmanager
def benches(gpu: Gpu, jobs: int, direction: Direction = FORWARD) -> Iterator[Callable[[Problem], PredictingBench]]:
    """A bench for any problem.  jobs: processes that compile."""
    with Pool(jobs, Compiler, gpu, direction) as pool:
        yield lambda problem: PredictingBench(problem, pool)


@lru_cache(maxsize=4)
def _sizes_only(problem: Problem, direction: Direction, more: bool) -> Any:
    return PASSES[direction].draw(problem, "meta", 0, more)
