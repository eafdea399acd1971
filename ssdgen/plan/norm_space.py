"""The search space of the gated norms, with the reason for every bound.  Problem, Gpu -> tune

Of a problem the heads are groups of channels, headdim is their number in a group, and seqlen the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .kernel_space import KernelSpace, Numbers, powers
from .problem import Problem
from .space import Axis
from .tiles import SMALLEST, cut, next_power_of_two

# channels of the longest row that is kept whole in a program's registers
LONGEST = 32768
# channels that a thread has of every operand: with fewer, sums across threads are all it does, with more it spills
LEAST_EACH, MOST_EACH, MOST_EACH_BACKWARD = 2, 64, 32
MOST_ROWS = 32
# warps of a multiprocessor that programs are counted out for: each has so many registers that few fit
RESIDENT = (8, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class RowsSpace(KernelSpace):
    """Programs that have whole rows in registers."""

    schedule: str = "rows"
    kernel: str = "norm"
    backward: bool = False

    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        found = [
            Axis(
                "block_t",
                powers(1, min(MOST_ROWS, next_power_of_two(problem.seqlen))),
                "rows of a program at once: several share the weight, and make loads of short rows 16 bytes wide",
            ),
            Axis(
                "tiles",
                (1, 2) if len(cut(problem.headdim, LONGEST)) == 2 else (1,),
                "of a row: two pad less, one has half as many sums across threads",
            ),
            Axis("num_warps", (1, 2, 4, 8, 16), "few have no sums across warps, many fewer registers each"),
        ]
        if self.backward:
            why = "programs that go through the rows side by side: more hide latency, fewer leave fewer sums of rows"
            found.append(Axis("programs", self._programs(problem, gpu), why))
        return tuple(found)

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        each = numbers["block_t"] * sum(_tiles(numbers, problem)) / (32 * numbers["num_warps"])
        most = MOST_EACH_BACKWARD if self.backward else MOST_EACH
        if not LEAST_EACH <= each <= most:
            return f"a thread would have {each:g} channels of each operand, not {LEAST_EACH} to {most}"
        if self.backward and (numbers["programs"] - 1) * numbers["block_t"] >= problem.seqlen:
            return f"{numbers['programs']} programs of {numbers['block_t']} rows are more than {problem.seqlen} rows"
        return None

    def smallest(self, problem: Problem) -> Numbers:
        wide = next_power_of_two(max(SMALLEST, problem.headdim))
        found = {"block_t": 1, "tiles": 1, "num_warps": min(16, max(1, wide // (32 * 16)))}
        return found | ({"programs": 64} if self.backward else {})

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        for rows, tiles, each in ((1, 2, 16), (1, 1, 16), (4, 2, 16), (2, 2, 16), (1, 2, 32), (4, 1, 32)):
            numbers = {"block_t": rows, "tiles": tiles, "num_warps": 1}
            wide = next_power_of_two(rows * sum(_tiles(numbers, problem)))
            numbers["num_warps"] = min(16, max(1, wide // (32 * each)))
            if not self.backward:
                yield numbers
                continue
            for resident in (16, 24):
                yield {**numbers, "programs": _count(resident, numbers["num_warps"], problem, gpu)}

    def bounds(self) -> tuple[object, ...]:
        return LEAST_EACH, MOST_EACH, MOST_EACH_BACKWARD, self.backward

    def _programs(self, problem: Problem, gpu: Gpu) -> tuple[int, ...]:
        """As many as give every multiprocessor so many warps, whatever a program has of them."""
        counts = {_count(resident, warps, problem, gpu) for resident in RESIDENT for warps in (1, 2, 4, 8, 16)}
        return tuple(sorted(count for count in counts if count <= problem.seqlen)) or (1,)


def _count(resident: int, warps: int, problem: Problem, gpu: Gpu) -> int:
    return -(-gpu.sms * max(1, resident // warps) // problem.nheads)


def _tiles(numbers: Numbers, problem: Problem) -> tuple[int, ...]:
    """Tiles of a row, as the launcher cuts it."""
    tiles = cut(problem.headdim, LONGEST)
    return tiles if numbers["tiles"] == 2 else (max(SMALLEST, next_power_of_two(problem.headdim)),)
