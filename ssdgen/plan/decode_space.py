"""The search space of a decode step, with the reason for every bound.  Problem, Gpu -> tune

A problem's dtype is that of the state here, by the bytes of a number, and its seqlen is 1.  A step with a replay
streams the state in the same way and takes the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .kernel_space import KernelSpace, Numbers, powers
from .problem import Problem
from .space import Axis
from .tiles import power_tiles

# numbers of the state that a thread has in registers: with fewer loads it waits, with more they spill
LEAST_EACH, MOST_EACH = 4, 128
MOST_ROWS = 128
WARPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class StepSpace(KernelSpace):
    """Programs that have whole rows of dstate in registers."""

    schedule: str = "step"
    kernel: str = "state_step"

    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        return (
            Axis(
                "block_p",
                _rows(problem),
                "rows of headdim of a program, which divide it so that none is masked; few make many programs for a "
                "small batch, many read B, C and the step size less often",
            ),
            Axis("num_warps", WARPS, "enough loads in flight of each multiprocessor; more warps only wait"),
        )

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        rows = numbers["block_p"]
        if rows not in _rows(problem):
            return f"a tile of {rows} rows does not divide headdim {problem.headdim}"
        each = rows * sum(power_tiles(problem.dstate)) / (32 * numbers["num_warps"])
        if each > MOST_EACH:
            return f"a thread would have {each:g} numbers of the state, more than the {MOST_EACH} that registers hold"
        if each < LEAST_EACH:
            return f"a thread would have {each:g} numbers of the state, fewer than the {LEAST_EACH} of one load"
        return None

    def smallest(self, problem: Problem) -> Numbers:
        return {"block_p": 1, "num_warps": 1}

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        """Programs of a few hundred loads, whole heads or parts of them."""
        pairs = ((64, 4), (32, 4), (16, 4), (16, 2), (8, 2), (4, 1))
        return ({"block_p": rows, "num_warps": warps} for rows, warps in pairs)

    def bounds(self) -> tuple[object, ...]:
        return LEAST_EACH, MOST_EACH, MOST_ROWS


def _rows(problem: Problem) -> tuple[int, ...]:
    """Powers of two that divide headdim."""
    return powers(1, min(MOST_ROWS, problem.headdim & -problem.headdim))
