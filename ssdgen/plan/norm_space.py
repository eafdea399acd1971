"""The search space of the gated norms, with the reason for every bound.  Problem, Gpu -> tune

Of a problem the heads are groups of channels, headdim is their number in a group, and seqlen the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .kernel_space import SUM_EARLY, SUMS, KernelSpace, Numbers, powers, sum_early
from .problem import Problem
from .space import Axis
from .tiles import EQUAL, SMALLEST, cut, equal_count, equal_tile, next_power_of_two

# channels of the longest row that is kept whole in a program's registers
LONGEST = 32768
# channels that a thread has of every operand: with fewer, sums across threads are all it does, with more it spills
LEAST_EACH, MOST_EACH, MOST_EACH_BACKWARD = 2, 64, 24
MOST_ROWS = 32
# warps of a multiprocessor that programs are counted out for: each has so many registers that few fit
RESIDENT = (8, 12, 16, 24, 32, 48)
# of a thread in the backward pass, about: 20 channels are 242 registers, eight warps of which fill a multiprocessor of
# NVIDIA's, and half of them are 128
FULL_EACH, FULL, HALF_EACH, HALF = 24, 8, 12, 16


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
                self._counts(problem),
                "of a row: several of one size, backward, or a wide and a narrow one, forward, pad less than one",
            ),
            Axis("num_warps", (1, 2, 4, 8, 16), "few have no sums across warps, many fewer registers each"),
        ]
        if self.backward:
            why = "programs that go through the rows side by side: more hide latency, fewer leave fewer sums of rows"
            found += [Axis("programs", self._programs(problem, gpu), why), sum_early(gpu)]
        return tuple(found)

    def implied(self) -> Numbers:
        return {SUM_EARLY: False} if self.backward else {}

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        each = numbers["block_t"] * self._width(numbers["tiles"], problem) / (32 * numbers["num_warps"])
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
        if self.backward:
            yield from self._often_backward(problem, gpu)
            return
        for rows, tiles, each in ((1, 2, 16), (1, 1, 16), (4, 2, 16), (2, 2, 16), (1, 2, 32), (4, 1, 32)):
            wide = next_power_of_two(rows * self._width(tiles, problem))
            yield {"block_t": rows, "tiles": tiles, "num_warps": min(16, max(1, wide // (32 * each)))}

    def _often_backward(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        """Programs that fill the multiprocessors once, of threads with many channels and then with half of them."""
        tiles = self._counts(problem)[-1]
        for most, resident in ((FULL_EACH, FULL), (HALF_EACH, HALF)):
            for rows in (1, 2, 4):
                wide = rows * self._width(tiles, problem)
                warps = next_power_of_two(-(-wide // (32 * most)))
                programs = _count(resident, warps, problem, gpu)
                numbers = {"block_t": rows, "tiles": tiles, "num_warps": warps, "programs": programs}
                yield from ({**numbers, SUM_EARLY: early} for early in SUMS)

    def bounds(self) -> tuple[object, ...]:
        return LEAST_EACH, MOST_EACH, MOST_EACH_BACKWARD, EQUAL, self.backward

    def _counts(self, problem: Problem) -> tuple[int, ...]:
        """Tiles of a row, each number of them padding less than the one before it."""
        if not self.backward:
            return (1, 2) if len(cut(problem.headdim, LONGEST)) == 2 else (1,)
        return tuple(sorted({equal_count(problem.headdim, most) for most in EQUAL}))

    def _width(self, tiles: int, problem: Problem) -> int:
        """Channels of the tiles of a row, as the launcher cuts it."""
        if not self.backward and tiles == 2:
            return sum(cut(problem.headdim, LONGEST))
        return tiles * equal_tile(problem.headdim, tiles)

    def _programs(self, problem: Problem, gpu: Gpu) -> tuple[int, ...]:
        """As many as give every multiprocessor so many warps, whatever a program has of them."""
        counts = {_count(resident, warps, problem, gpu) for resident in RESIDENT for warps in (1, 2, 4, 8, 16)}
        return tuple(sorted(count for count in counts if count <= problem.seqlen)) or (1,)


def _count(resident: int, warps: int, problem: Problem, gpu: Gpu) -> int:
    """Programs of a group, no more than run at once: the last of a few more would run alone."""
    return max(1, gpu.sms * max(1, resident // warps) // problem.nheads)
