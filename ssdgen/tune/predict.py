"""The search without a GPU: compile a candidate for it, read its resources, apply the model.  config -> microseconds"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from ..gpus import Gpu
from ..pack.records import PREDICTED
from ..plan.problem import Problem
from . import inputs, kernels, model, work
from .compile import Compiled, compile_launch
from .inputs import Inputs
from .model import Estimate
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
    """Compiles candidates for one GPU; lives in a process of its own."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def report(self, problem: Problem, config: Config, final_states: bool = False) -> Report:
        """Compile every launch of a candidate.  Errors: CompileError."""
        plan = kernels.plan(config, _sizes_only(problem), final_states)
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
def benches(gpu: Gpu, jobs: int) -> Iterator[Callable[[Problem], PredictingBench]]:
    """A bench for any problem.  jobs: processes that compile."""
    with Pool(jobs, Compiler, gpu) as pool:
        yield lambda problem: PredictingBench(problem, pool)


@lru_cache(maxsize=4)
def _sizes_only(problem: Problem) -> Inputs:
    return inputs.random(problem, "meta", 0)
