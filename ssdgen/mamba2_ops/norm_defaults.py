"""The config of the norms' kernels where nobody tuned: a rule, not a list.  Problem -> config -> select

A program has its rows in registers: as many as give each thread some tens of channels.
"""

from __future__ import annotations

from typing import Any

from .problem import Problem
from .records import NORM_BACKWARD

# channels of the longest row that the kernels take; a longer one does not fit a program's registers
LONGEST = 32768
_LANES = 32
_CHANNELS, _CHANNELS_BACKWARD = 32, 24  # of a thread, at most; the backward pass keeps three inputs and sums
_WARPS, _MOST_WARPS = 8, 16  # at most, where rows are short enough, and of any
_CHANNELS_ALONE = 8  # of a thread, where there are few rows
_TILES_BACKWARD = (1, 3, 5)  # of a row, all of one size
# warps of so many registers that a multiprocessor holds
_RESIDENT = 8


def default_norm(direction: str, problem: Problem, sms: int) -> dict[str, Any]:
    """A config that runs everywhere, for a norm of groups of at most LONGEST channels.

    problem: of `part_problem.of_norm`; sms: multiprocessors.  Returns: {"schedule", "kernels": {"norm": {"block_t",
    "tiles", "num_warps", "programs"}}}.  block_t: rows of a program at once; tiles: of the channels of a row, several
    where that pads less; programs: those that go through rows side by side, in the backward pass alone.
    """
    numbers = _backward(problem, sms) if direction == NORM_BACKWARD else _forward(problem, sms)
    return {"schedule": "rows", "kernels": {"norm": numbers}}


def _forward(problem: Problem, sms: int) -> dict[str, int]:
    rows, group_size = problem.seqlen, problem.headdim
    wide = _width(group_size, 1)
    warps = max(1, min(_MOST_WARPS if wide > _LANES * _CHANNELS * _WARPS else _WARPS, wide // (_LANES * _CHANNELS)))
    if rows * problem.nheads <= sms:
        # each has a multiprocessor to itself, and takes as long as a thread: one load of 16 bytes, in two of fp32
        warps = max(1, min(_MOST_WARPS, wide // (_LANES * _CHANNELS_ALONE)))
    elif wide <= _LANES * _CHANNELS:
        # short rows: four warps share some of them
        warps = 4
    block_t = max(1, min(_LANES * _CHANNELS * warps // wide, 1 << (max(rows, 1) - 1).bit_length()))
    if rows * problem.nheads <= sms:
        block_t = 1
    # two tiles of a row where they cover less than one does; none is narrower than 16
    tiles = 2 if wide > 32 and 4 * group_size <= 3 * wide else 1
    return {"block_t": block_t, "tiles": tiles, "num_warps": warps}


def _backward(problem: Problem, sms: int) -> dict[str, int]:
    """A row at once or, of short ones, as many as a warp has registers for."""
    rows, group_size, ngroups = problem.seqlen, problem.headdim, problem.nheads
    tiles = min(_TILES_BACKWARD, key=lambda count: (_width(group_size, count), count))
    wide = _width(group_size, tiles)
    warps = min(16, 1 << (-(-wide // (_LANES * _CHANNELS_BACKWARD)) - 1).bit_length())
    most = max(1, _LANES * _CHANNELS_BACKWARD // wide)
    block_t = min(1 << most.bit_length() - 1, 1 << (max(rows, 1) - 1).bit_length())
    programs = max(1, min(sms * max(1, _RESIDENT // warps) // ngroups, -(-rows // block_t)))
    return {"block_t": block_t, "tiles": tiles, "num_warps": warps, "programs": programs}


def _width(group_size: int, tiles: int) -> int:
    """Channels of so many tiles of one size that cover a row, none of them narrower than 16."""
    return tiles * max(16, 1 << (-(-group_size // tiles) - 1).bit_length())
