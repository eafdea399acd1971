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
_CHANNELS, _CHANNELS_BACKWARD = 32, 16  # of a thread, about; the backward pass keeps three inputs and sums
_WARPS, _WARPS_BACKWARD = 8, 16  # at most, where rows are short enough


def default_norm(direction: str, problem: Problem, sms: int) -> dict[str, Any]:
    """A config that runs everywhere, for a norm of groups of at most LONGEST channels.

    problem: of `part_problem.of_norm`; sms: multiprocessors.  Returns: {"schedule", "kernels": {"norm": {"block_t",
    "tiles", "num_warps", "programs"}}}.  block_t: rows of a program at once; tiles: of the channels of a row, 2 where
    that pads less; programs: those that go through rows side by side, in the backward pass alone.
    """
    rows, group_size, ngroups = problem.seqlen, problem.headdim, problem.nheads
    backward = direction == NORM_BACKWARD
    each, most = (_CHANNELS_BACKWARD, _WARPS_BACKWARD) if backward else (_CHANNELS, _WARPS)
    wide = max(16, 1 << (group_size - 1).bit_length())
    warps = max(1, min(16 if wide > _LANES * each * most else most, wide // (_LANES * each)))
    if wide <= _LANES * each:
        # short rows: four warps share some of them
        warps = 4
    block_t = max(1, min(_LANES * each * warps // wide, 1 << (max(rows, 1) - 1).bit_length()))
    # two tiles of a row where they cover less than one does; none is narrower than 16
    tiles = 2 if wide > 32 and 4 * group_size <= 3 * wide else 1
    found = {"block_t": block_t, "tiles": tiles, "num_warps": warps}
    if backward:
        # a multiprocessor holds about 16 warps of so many registers
        wanted = -(-sms * max(1, 16 // warps) // ngroups)
        found["programs"] = max(1, min(wanted, -(-rows // block_t)))
    return {"schedule": "rows", "kernels": {"norm": found}}
