"""The search spaces of the convolution's kernels, with the reason for every bound.  Problem, Gpu -> tune

Of a problem the heads are channels, each one wide, and dstate is the width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .kernel_space import SUM_EARLY, KernelSpace, Numbers, powers, sum_early
from .problem import Problem
from .space import Axis
from .tiles import next_power_of_two

# bytes that a thread loads of one operand at once: less is no transaction of its own, more are several
LEAST_BYTES, MOST_BYTES = 4, 16
# of those whose registers a cap makes a little fewer: with less it changes nothing, with more a kilobyte spills
CAPPED_BYTES = 8
# tokens of a walk: at its ends it reads some of its neighbours' again, and backwards leaves width + 1 sums
SHORTEST, SHORTEST_BACKWARD = 16, 32
# numbers of a tile that a thread has: with fewer it waits, with more their taps spill
LEAST_EACH, MOST_EACH = 2, 32
WARPS = (1, 2, 4, 8)
# warps that programs are counted out for on each multiprocessor, in one turn of those that fit or in a few
FILLS = (8, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


@dataclass(frozen=True)
class WalkSpace(KernelSpace):
    """Programs that walk along the tokens: channels lie side by side."""

    schedule: str = "walk"
    kernel: str = "conv_walk"
    backward: bool = False

    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        capped = self.backward and gpu.backend == "cuda"
        return (
            Axis("block_d", _channels(problem, 1024), "channels of a program, side by side in memory"),
            Axis(
                "part",
                self._parts(problem, gpu),
                "tokens of a program: short ones fill the multiprocessors, long ones read fewer inputs twice, load "
                "fewer weights and leave fewer sums; those that are no power of two give each multiprocessor so many "
                "warps, and none is left over for a turn of its own",
            ),
            Axis("num_warps", WARPS, "a warp walks alone; several share the scalar work and the launch"),
            Axis(
                "maxnreg",
                (0, 128) if capped else (0,),
                "8 bytes a thread are 136 registers backwards: with a few less, of which a trip spills two, a "
                "sixteenth warp fits a multiprocessor, the fourth of its fourth scheduler",
            ),
            *((sum_early(gpu),) if self.backward else ()),
        )

    def implied(self) -> Numbers:
        return {"maxnreg": 0, **({SUM_EARLY: False} if self.backward else {})}

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        loaded = numbers["block_d"] * problem.element_bytes / (32 * numbers["num_warps"])
        if not LEAST_BYTES <= loaded <= MOST_BYTES:
            return f"a thread would load {loaded:g} bytes of a token, not {LEAST_BYTES} to {MOST_BYTES}"
        if numbers.get("maxnreg") and loaded != CAPPED_BYTES:
            return f"a thread that loads {loaded:g} bytes has too few or far too many registers for a cap"
        return None

    def smallest(self, problem: Problem) -> Numbers:
        return {"block_d": 32, "part": 64, "num_warps": 1}

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        """Forwards 16 bytes a thread are 128 registers, 16 warps of a multiprocessor, and 8 are 72, 28 of them.

        Backwards 8 bytes are 136, 15 warps: in one turn some of its four schedulers have four and others three.
        """
        forward = ((16, 16, 0), (8, 28, 0), (16, 32, 0), (8, 56, 0))
        backward = ((8, 28, 0), (8, 16, 128), (8, 14, 0), (8, 32, 128), (8, 40, 0), (4, 24, 0), (4, 48, 0))
        for warps in (1, 2):
            for loaded, fill, cap in backward if self.backward else forward:
                block = loaded // problem.element_bytes * 32 * warps
                part = self._part(fill, loaded, problem, gpu)
                numbers = {"block_d": block, "part": part, "num_warps": warps, "maxnreg": cap}
                yield numbers | ({SUM_EARLY: False} if self.backward else {})
                if self.backward and warps == 1 and loaded == CAPPED_BYTES:
                    yield {**numbers, SUM_EARLY: True}

    def bounds(self) -> tuple[object, ...]:
        return LEAST_BYTES, MOST_BYTES, CAPPED_BYTES, self.backward

    def _parts(self, problem: Problem, gpu: Gpu) -> tuple[int, ...]:
        shortest = self._shortest()
        found = {part for part in powers(shortest, 4096) if part < problem.seqlen} | {max(shortest, problem.seqlen)}
        loads = (4, 8) if self.backward else (8, 16)
        found |= {self._part(fill, loaded, problem, gpu) for fill in FILLS for loaded in loads}
        return tuple(sorted(found))

    def _part(self, fill: int, loaded: int, problem: Problem, gpu: Gpu) -> int:
        """Tokens of a program, of which each multiprocessor has about so many, and no more, of one warp."""
        block = loaded // problem.element_bytes * 32
        rows = problem.batch * -(-problem.nheads // block)
        return max(self._shortest(), -(-problem.seqlen // max(1, fill * gpu.sms // rows)))

    def _shortest(self) -> int:
        return SHORTEST_BACKWARD if self.backward else SHORTEST


@dataclass(frozen=True)
class TileSpace(KernelSpace):
    """Programs with a tile of tokens and channels: positions lie side by side."""

    schedule: str = "tile"
    kernel: str = "conv_tile"
    backward: bool = False

    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        longest = min(2048, max(16, next_power_of_two(problem.seqlen)))
        channels = min(16, next_power_of_two(problem.nheads))
        return (
            Axis("block_t", powers(16, longest), "positions of a program: side by side in memory, and read by tap"),
            Axis("block_d", powers(1, channels), "channels of a program, which share where their positions are"),
            Axis("num_warps", WARPS, "enough loads in flight; more warps only wait"),
            *((sum_early(gpu),) if self.backward else ()),
        )

    def implied(self) -> Numbers:
        return {SUM_EARLY: False} if self.backward else {}

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        each = numbers["block_t"] * numbers["block_d"] / (32 * numbers["num_warps"])
        most = MOST_EACH // 2 if self.backward else MOST_EACH
        if not LEAST_EACH <= each <= most:
            return f"a thread would have {each:g} numbers of each tap, not {LEAST_EACH} to {most}"
        return None

    def smallest(self, problem: Problem) -> Numbers:
        return {"block_t": 16, "block_d": 1, "num_warps": 1}

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        for block_t, block_d, warps in ((256, 4, 4), (512, 2, 4), (256, 2, 2), (512, 1, 2), (1024, 1, 4)):
            numbers = {"block_t": block_t, "block_d": block_d, "num_warps": warps}
            yield numbers | ({SUM_EARLY: False} if self.backward else {})

    def bounds(self) -> tuple[object, ...]:
        return LEAST_EACH, MOST_EACH, self.backward


@dataclass(frozen=True)
class UpdateSpace(KernelSpace):
    """Programs with the channels of one row, whose state moves on in place."""

    schedule: str = "update"
    kernel: str = "conv_update"

    def numbers(self, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
        return (
            Axis("block_d", _channels(problem, 512), "channels of a program: few make many programs for a small batch"),
            Axis("num_warps", (1,), "only within a warp does every thread read the state before any writes it"),
        )

    def why_not(self, numbers: Numbers, problem: Problem) -> str | None:
        return None if numbers["num_warps"] == 1 else "several warps would read a state that others have moved on"

    def smallest(self, problem: Problem) -> Numbers:
        return {"block_d": 32, "num_warps": 1}

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        return ({"block_d": block, "num_warps": 1} for block in (32, 64, 128))

    def bounds(self) -> tuple[object, ...]:
        return ()


def _channels(problem: Problem, most: int) -> tuple[int, ...]:
    return powers(32, min(most, max(32, next_power_of_two(problem.nheads))))
