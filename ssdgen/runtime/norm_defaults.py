"""The config of the norms' kernels for a call that nobody tuned: a rule, not a list.  norm_paths -> config

A program has its rows in registers: as many as give each thread some tens of channels.
"""

from __future__ import annotations

from functools import lru_cache

# channels of the longest row that the kernels take; a longer one does not fit a program's registers
LONGEST = 32768
_LANES = 32
_CHANNELS, _CHANNELS_BACKWARD = 32, 16  # of a thread, about; the backward pass keeps three inputs and sums
_WARPS, _WARPS_BACKWARD = 8, 16  # at most, where rows are short enough


@lru_cache(maxsize=4096)
def norm_config(backward: bool, rows: int, group_size: int, ngroups: int, sms: int) -> dict[str, int] | None:
    """{"block_t", "largest", "num_warps", "programs"}, or None where a row is too long.

    block_t: rows of a program at once; largest: the widest tile of channels; programs: those that go through rows side
    by side in the backward pass.
    """
    if group_size > LONGEST:
        return None
    each, most = (_CHANNELS_BACKWARD, _WARPS_BACKWARD) if backward else (_CHANNELS, _WARPS)
    wide = max(16, 1 << (group_size - 1).bit_length())
    warps = max(1, min(16 if wide > _LANES * each * most else most, wide // (_LANES * each)))
    if wide <= _LANES * each:
        # short rows: four warps share some of them
        warps = 4
    block_t = max(1, min(_LANES * each * warps // wide, 1 << (max(rows, 1) - 1).bit_length()))
    found = {"block_t": block_t, "largest": LONGEST, "num_warps": warps}
    if backward:
        # a multiprocessor holds about 16 warps of so many registers
        wanted = -(-sms * max(1, 16 // warps) // ngroups)
        found["programs"] = max(1, min(wanted, -(-rows // block_t)))
    return found
