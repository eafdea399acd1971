"""A small search space and a bench that knows every time, so that the search can be tested without a GPU."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune.counted import Work
from ssdgen.tune.errors import RejectedError
from ssdgen.tune.results import Config, Result

PROBLEM = Problem(2, 512, 8, 64, 128, 1)
H200 = gpus.find("h200")


@dataclass(frozen=True)
class Axis:
    name: str
    values: tuple[Any, ...]
    why: str = "a test"


class FakeSpace:
    """Two schedules; "chunk" has other values in each, num_warps the same; chunk 256 is illegal."""

    SCHEDULES = ("walk", "cut")
    AXES = {
        "walk": (Axis("chunk", (32, 64, 128, 256)), Axis("walk.num_warps", (2, 4, 8)), Axis("dt.num_warps", (1, 4))),
        "cut": (Axis("chunk", (64, 128)), Axis("cut.num_warps", (2, 4, 8)), Axis("dt.num_warps", (1, 4))),
    }

    def axes(self, schedule: str, problem: Problem, gpu: gpus.Gpu) -> tuple[Axis, ...]:
        return self.AXES[schedule]

    def config(self, schedule: str, assignment: dict[str, Any]) -> Config:
        config: Config = {"schedule": schedule, "kernels": {}}
        for name, value in assignment.items():
            kernel, _, axis = name.rpartition(".")
            (config["kernels"].setdefault(kernel, {}) if kernel else config)[axis] = value
        return config

    def flatten(self, config: Config) -> dict[str, Any]:
        flat = {name: value for name, value in config.items() if name != "kernels"}
        for kernel, numbers in config["kernels"].items():
            flat |= {f"{kernel}.{axis}": value for axis, value in numbers.items()}
        return flat

    def legal(self, config: Config, problem: Problem, gpu: gpus.Gpu) -> str | None:
        return "too much shared memory" if config["chunk"] == 256 else None

    def minimal(self, schedule: str, problem: Problem) -> Config:
        return self.make(schedule, 64, 2, 1)

    def default(self, problem: Problem, gpu: gpus.Gpu) -> Config:
        return self.make("walk", 64, 4, 4)

    def starts(self, problem: Problem, gpu: gpus.Gpu) -> tuple[Config, ...]:
        return ()

    def fingerprint(self) -> str:
        return "5face"

    def make(self, schedule: str, chunk: int, warps: int, dt_warps: int = 4) -> Config:
        return self.config(schedule, {"chunk": chunk, f"{schedule}.num_warps": warps, "dt.num_warps": dt_warps})


def time_of(config: Config) -> float:
    """A time with one best config: walk, chunk 128, 8 warps, 1 warp for dt."""
    schedule = config["schedule"]
    warps = config["kernels"][schedule]["num_warps"]
    return (
        100.0
        + (0 if schedule == "walk" else 50)
        + abs(config["chunk"] - 128) / 2
        + 5 * abs(warps - 8)
        + config["kernels"]["dt"]["num_warps"]
    )


@dataclass(frozen=True)
class FakeLaunch:
    """A kernel of a config, by its name."""

    kernel: Any
    num_warps: int
    grid: tuple[int, ...] = (64, 1, 1)
    num_stages: int = 2
    maxnreg: int = 0


class FakePass:
    """A pass whose space is small, and of which nothing can be run."""

    space = FakeSpace()

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> None: ...

    def plan(self, config: Config, given: None, more: bool) -> SimpleNamespace:
        kernels = config["kernels"].items()
        named = [FakeLaunch(SimpleNamespace(__name__=name), numbers["num_warps"]) for name, numbers in kernels]
        return SimpleNamespace(launches=named)

    def work(self, launch: FakeLaunch, config: Config, problem: Problem) -> Work:
        """More the further from the best; the model adds to that what it knows of warps."""
        return Work(64, 1, 1, 1e6 * time_of(config), 1e6, 1e6, 1e6, 1e6, 64)


@dataclass
class FakeBench:
    """Judges by `time_of`.  fails: reasons by chunk; interrupt: number of the run in which Ctrl-C comes."""

    fails: dict[int, str] = field(default_factory=dict)
    interrupt: int | None = None
    runs: list[Config] = field(default_factory=list)
    prepared: list[Config] = field(default_factory=list)
    cancelled: int = 0
    ahead: int = 1
    in_order: bool = True

    def prepare(self, config: Config) -> Future[Any]:
        self.prepared.append(config)
        future: Future[Any] = Future()
        future.add_done_callback(self._done)
        return future

    def run(self, config: Config, prepared: Future[Any], best_us: float | None) -> Result:
        prepared.set_result(None)
        self.runs.append(config)
        if len(self.runs) == self.interrupt:
            raise KeyboardInterrupt
        if reason := self.fails.get(config["chunk"]):
            raise RejectedError(reason)
        return Result(config, time_of(config), 1.0, 1e-3, 5e-3)

    def finals(self, results: list[Result]) -> list[Result]:
        return [Result(r.config, r.time_us + 0.5, 0.1, 2e-3, 5e-3) for r in results]

    def _done(self, future: Future[Any]) -> None:
        self.cancelled += future.cancelled()
