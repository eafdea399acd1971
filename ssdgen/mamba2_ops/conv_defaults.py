"""The config of the convolution's kernels for a call that nobody tuned: a rule, not a list.  conv_paths -> config

They move memory and compute little: what counts is that every load is 16 bytes wide and that enough of them are under
way.
"""

from __future__ import annotations

from functools import lru_cache

# bytes of a row that the lanes of a warp load at once, and half of them: in the backward pass a thread with 16 bytes of
# each operand has so many registers that few of them fit a multiprocessor
_WIDE, _NARROW = 512, 256
# warps to have in all for each multiprocessor: some turns of those that fit, so that the last turn costs little
_WARPS = 48
_SHORTEST = 32  # tokens of a program: at its ends it reads some of its neighbours' again


@lru_cache(maxsize=4096)
def walk_config(backward: bool, element_bytes: int, rows: int, seqlen: int, dim: int, sms: int) -> dict[str, int]:
    """{"block_d", "part", "num_warps"} of a walk.

    rows: sequences; seqlen: tokens of one of them, on average; part: tokens of a program, at most.
    """
    block = (_NARROW if backward else _WIDE) // element_bytes
    warps = 1
    if backward and dim > block:
        block, warps = 2 * block, 2
    block = min(block, max(32, 1 << (dim - 1).bit_length()))
    along = -(-dim // block) * rows * warps
    parts = max(1, min(-(-_WARPS * sms // along), -(-seqlen // _SHORTEST)))
    return {"block_d": block, "part": -(-seqlen // parts), "num_warps": warps}


@lru_cache(maxsize=4096)
def tile_config(backward: bool, element_bytes: int, seqlen: int, dim: int) -> dict[str, int]:
    """{"block_d", "block_t", "num_warps"} of tiles: long along the tokens, which lie side by side."""
    block_t = min(_WIDE // element_bytes, max(16, 1 << (seqlen - 1).bit_length()))
    block_d = 1 << max(0, min(2 if backward else 8, dim) - 1).bit_length()
    return {"block_d": block_d, "block_t": block_t, "num_warps": 2 if backward else 4}


@lru_cache(maxsize=4096)
def update_config(dim: int) -> dict[str, int]:
    """{"block_d", "num_warps"} of an update: one warp, so that a thread reads the state before any writes it."""
    return {"block_d": min(128, max(32, 1 << (dim - 1).bit_length())), "num_warps": 1}
