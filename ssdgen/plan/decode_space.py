"""The search space of a decode step, with the reason for every bound.  Problem, Gpu -> tune

A problem's dtype is that of the state here, by the bytes of a number, and its seqlen is 1.  A step with a replay
streams the state in the same way and takes the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from .kernel_space import EARLY, KernelSpace, Numbers, powers
from .problem import Problem
from .schedules.step_tiles import AHEAD
from .space import Axis
from .tiles import power_tiles

# numbers of the state that a thread has in registers: with fewer loads it waits, with more they spill
LEAST_EACH, MOST_EACH = 4, 128
# the same where a program has those of the next head as well
MOST_AHEAD = 64
MOST_ROWS = 128
MOST_HEADS = 16
WARPS = (1, 2, 4, 8)
# tiles of a program, 0 for one of the kernels that have one tile or several heads; 32-bit registers of a thread that
# hold them as they are stored
TILES = (0, 1, 2, 4, 8)
MOST_HELD = 128
MOST_AT_ONCE = 4
# numbers of the state below which a launch and its latency are most of a step
FEW = 2**20


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
            Axis(
                "heads",
                _heads(problem),
                "heads of a group that a program goes through: several read B and C once and load ahead, one makes the "
                "most programs; of one tile of dstate alone",
            ),
            Axis(
                "tiles",
                _tiles(problem),
                "tiles of block_p rows that a program loads at once and computes one after the other: several make B, "
                "C and the step size once and have more on its way, 0 is the kernel that goes through heads or tokens; "
                "of one tile of dstate alone",
            ),
            Axis(
                "ahead",
                (0, *(ahead for tiles, ahead in AHEAD if tiles in _tiles(problem))),
                "tiles that are on their way at once, 0 for all of them: the others are loaded while those before them "
                "are computed, so that a program of a whole head makes the step size once and keeps memory busy",
            ),
            Axis(
                "early",
                (False, True) if gpu.arch in EARLY and len(power_tiles(problem.dstate)) == 1 else (False,),
                "True: the launch overlaps with the kernel before, which is much of a small batch's time",
            ),
            Axis(
                "maxnreg",
                (0, 96, 112, 128, 144, 160) if gpu.backend == "cuda" else (0,),
                "a cap on the registers lets more programs share a multiprocessor: only 8-bit states and replays are "
                "bound by arithmetic, the others by what is on its way",
            ),
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
        if numbers["maxnreg"] and 2 * each > numbers["maxnreg"]:
            return f"{each:g} numbers of the state and as many of what they become do not fit {numbers['maxnreg']}"
        tiles = numbers["tiles"]
        if tiles and numbers["heads"] > 1:
            return f"a program has {tiles} tiles of one head, or goes through {numbers['heads']} heads"
        if tiles and problem.headdim % (tiles * rows):
            return f"{tiles} tiles of {rows} rows do not divide headdim {problem.headdim}"
        ahead = numbers["ahead"]
        if (tiles, ahead) not in AHEAD and (ahead or tiles > MOST_AT_ONCE):
            known = ", ".join(f"{most} of {tiles}" for tiles, most in AHEAD)
            return f"{ahead or 'all'} of {tiles} tiles at once; there are kernels for {known}"
        if (ahead or tiles) * each * problem.element_bytes / 4 > MOST_HELD:
            return f"{ahead or tiles} tiles of {each:g} numbers of a thread do not fit {MOST_HELD} registers"
        if numbers["heads"] > 1 and each > MOST_AHEAD:
            return f"a thread would have {each:g} numbers of each of two heads, more than the {MOST_AHEAD} that fit"
        return None

    def smallest(self, problem: Problem) -> Numbers:
        return {"block_p": 1, "num_warps": 1}

    def often(self, problem: Problem, gpu: Gpu) -> Iterable[Numbers]:
        """Programs of a few hundred loads, whole heads or parts of them; first what was fastest on an H200."""
        names = ("block_p", "num_warps", "heads", "tiles", "ahead", "early", "maxnreg")
        few = problem.batch * problem.nheads * problem.headdim * problem.dstate < FEW
        if few:
            found = [
                (8, 2, 1, 1, 0, True, 0),
                (4, 1, 1, 1, 0, True, 0),
                (8, 1, 1, 1, 0, False, 0),
                (16, 2, 1, 1, 0, False, 0),
            ]
        elif problem.element_bytes == 1:
            found = [(16, 2, 1, 4, 0, False, 112), (8, 1, 1, 4, 0, False, 128), (16, 2, 1, 4, 0, False, 0)]
        else:
            found = [
                (16, 2, 1, 4, 0, True, 112),
                (16, 1, 1, 1, 0, False, 0),
                (16, 2, 1, 0, 0, False, 0),
                (8, 1, 1, 4, 0, True, 0),
            ]
        found += [(16, 1, 1, 4, 2, True, 160), (8, 1, 1, 4, 2, True, 128)]
        found += [
            (32, 2, 1, 2, 0, False, 0),
            (16, 2, 1, 4, 0, True, 0),
            (8, 1, 1, 4, 0, False, 0),
            (16, 1, 1, 2, 0, False, 0),
        ]
        found += [(rows, warps, 1, 0, 0, False, 0) for rows, warps in ((64, 4), (32, 4), (16, 2), (8, 2), (4, 1))]
        found += [(32, 2, 4, 0, 0, False, 0), (64, 8, 4, 0, 0, False, 0), (16, 2, 4, 0, 0, False, 0)]
        for numbers in dict.fromkeys(found):
            yield dict(zip(names, numbers, strict=True))

    def implied(self) -> Numbers:
        return {"heads": 1, "tiles": 0, "ahead": 0, "early": False, "maxnreg": 0}

    def bounds(self) -> tuple[object, ...]:
        return LEAST_EACH, MOST_EACH, MOST_ROWS, MOST_AHEAD, MOST_HELD, MOST_AT_ONCE, FEW


def _rows(problem: Problem) -> tuple[int, ...]:
    """Powers of two that divide headdim."""
    return powers(1, min(MOST_ROWS, problem.headdim & -problem.headdim))


def _tiles(problem: Problem) -> tuple[int, ...]:
    """Those that divide headdim."""
    if len(power_tiles(problem.dstate)) > 1:
        return (0,)
    return tuple(tiles for tiles in TILES if not tiles or problem.headdim % tiles == 0)


def _heads(problem: Problem) -> tuple[int, ...]:
    """Powers of two that divide the heads of a group."""
    if len(power_tiles(problem.dstate)) > 1:
        return (1,)
    heads = problem.nheads // problem.ngroups
    return powers(1, min(MOST_HEADS, heads & -heads))
