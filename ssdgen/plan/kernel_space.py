"""The search space of a pass that is one kernel: what all such spaces share.  Problem, Gpu -> axes, configs -> tune

A config is {"schedule", "kernels": {kernel: {axis: value}}}; the kernel's axis is "kernel.axis".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .legal import Config
from .problem import Problem
from .space import Axis, Value, digest

Numbers = dict[str, int]

# architectures whose kernels may be launched before the one in front of them has ended
EARLY = ("sm90", "sm100", "sm103", "sm120")
# the axis of passes that end with a sum of parts, and its values: records of before it was there have the first
SUM_EARLY, SUMS = "sum_early", (False, True)


@dataclass(frozen=True)
class KernelSpace(ABC):
    """schedule: the only one.  kernel: the config's name of the kernel."""

    schedule: str
    kernel: str

    @property
    def SCHEDULES(self) -> tuple[str, ...]:
        return (self.schedule,)

    @abstractmethod
    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        """The kernel's axes, by their names in the kernel."""

    @abstractmethod
    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        """Why a kernel with these numbers is not worth compiling, or None."""

    @abstractmethod
    def smallest(self, problem: Problem) -> Numbers:
        """Numbers that run on every GPU."""

    @abstractmethod
    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        """Numbers that are often near the best; those that are not legal are left out."""

    def implied(self) -> Numbers:
        """Numbers that a config leaves out: one config then has one form."""
        return {}

    @abstractmethod
    def bounds(self) -> tuple[object, ...]:
        """The constants that `why_not` goes by, for the fingerprint."""

    def axes(self, schedule: str, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        """The axes for a problem on a GPU.  Raises ValueError for an unknown schedule."""
        self._check(schedule)
        return tuple(Axis(f"{self.kernel}.{a.name}", a.values, a.why) for a in self.numbers(problem, gpu))

    def config(self, schedule: str, assignment: dict[str, Value]) -> Config:
        """The config with these values of the axes."""
        self._check(schedule)
        return self._of({name.partition(".")[2]: value for name, value in assignment.items()})

    def flatten(self, config: Config) -> dict[str, Value]:
        """{axis name: value} of a config, the schedule included."""
        whole = {**self.implied(), **config["kernels"][self.kernel]}
        numbers = {f"{self.kernel}.{axis}": value for axis, value in whole.items()}
        return {"schedule": config["schedule"], **numbers}

    def minimal(self, schedule: str, problem: Problem) -> Config:
        """A config that runs on every GPU."""
        self._check(schedule)
        return self._of(dict(self.smallest(problem)))

    def starts(self, problem: Problem, gpu: Gpu) -> tuple[Config, ...]:
        """Legal configs that are often near the best, for a search to try before it guesses."""
        offered = {axis.name: axis.values for axis in self.numbers(problem, gpu)}
        found = (each for each in self.often(problem, gpu) if all(each[name] in offered[name] for name in offered))
        configs = (self._of(dict(each)) for each in found)
        return tuple(config for config in configs if self.legal(config, problem, gpu) is None)

    def legal(self, config: Config, problem: Problem, gpu: Gpu) -> str | None:
        """Why a config is not worth compiling, or None."""
        numbers = {**self.implied(), **config["kernels"][self.kernel]}
        return None if numbers == {**self.implied(), **self.smallest(problem)} else self.why_not(numbers, problem)

    def fingerprint(self) -> str:
        """What the space offers, as a short text: it changes when an axis, a value or a bound does."""
        return digest(self.axes, self.SCHEDULES, *self.bounds(), later={f"{self.kernel}.{SUM_EARLY}": SUMS})

    def _of(self, numbers: dict[str, Value]) -> Config:
        implied = self.implied()
        kept = {name: value for name, value in numbers.items() if value != implied.get(name)}
        return {"schedule": self.schedule, "kernels": {self.kernel: kept}}

    def _check(self, schedule: str) -> None:
        if schedule != self.schedule:
            raise ValueError(f"unknown schedule {schedule!r}; there is {self.schedule}")


def sum_early(gpu: Gpu) -> Axis:
    """Whether what adds up the parts of a gradient starts before they are all there."""
    return Axis(
        SUM_EARLY,
        SUMS if gpu.arch in EARLY else SUMS[:1],
        "True: the sum of the parts is launched while programs that leave them still end, and waits for them itself: "
        "a call has two launches, and one is hidden",
    )


def powers(first: int, last: int) -> tuple[int, ...]:
    """Powers of two from one to another, both included."""
    return tuple(1 << k for k in range(first.bit_length() - 1, last.bit_length()))
