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
from ..mamba2_ops.storage import planned_for
from ..pack.records import Direction
from ..plan.problem import Problem
from . import model
from .compile import Compiled, compile_launch
from .errors import CompileError, RejectedError
from .jobs import Task
from .model import Estimate
from .passes import PASSES
from .pool import Pool
from .remembered import Remembered
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
    """Compiles candidates for one GPU; lives in a process of its own.

    remembers: what is known of the same code in another shape will do; else a launch on the GPU finds its code
    compiled.
    """

    def __init__(self, gpu: Gpu, remembers: bool = False) -> None:
        self._gpu = gpu
        self._compile = Remembered() if remembers else compile_launch

    def report(self, direction: Direction, problem: Problem, config: Config, more: bool = False) -> Report:
        """Compile every launch of a candidate.  more: with the final states or their adjoint.

        Errors: CompileError.
        """
        try:
            with planned_for(self._gpu.capability):
                plan = PASSES[direction].plan(config, _sizes_only(problem, direction, more), more)
        except OptionError as error:
            raise CompileError(str(error)) from error
        found = []
        for launch in plan.launches:
            code = self._compile(launch, self._gpu)
            counted = PASSES[direction].work(launch, config, problem)
            estimate = model.launch_time(counted, code, self._gpu, problem.dtype, launch.num_stages)
            found.append(LaunchReport(code, estimate))
        return Report(tuple(found))


class PredictingBench:
    """Judges candidates by their code.  pool: of `Compiler`."""

    # nothing waits for a candidate that compiles slowly but this search, and the same seed gives the same trials
    in_order = True

    def __init__(self, task: Task, pool: Pool) -> None:
        self._task, self._pool = task, pool

    @property
    def ahead(self) -> int:
        return self._pool.jobs

    def prepare(self, config: Config) -> Future[Report]:
        return self._pool.submit("report", self._task.direction, self._task.problem, config)

    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
        if any(numbers.get("terms") == 1 for numbers in config["kernels"].values()):
            # a model of time would always take it
            raise RejectedError("it rounds scores once, which is less accurate, and no error is measured here")
        return Result(config, prepared.result().us)

    def finals(self, results: list[Result]) -> list[Result]:
        """A prediction does not change by making it again."""
        return results


@contextmanager
def benches(gpu: Gpu, jobs: int) -> Iterator[Callable[[Task], PredictingBench]]:
    """A bench for any task.  jobs: processes that compile."""
    with Pool(jobs, Compiler, gpu, True) as pool:
        yield lambda task: PredictingBench(task, pool)


@lru_cache(maxsize=4)
def _sizes_only(problem: Problem, direction: Direction, more: bool) -> Any:
    return PASSES[direction].draw(problem, "meta", 0, more)
