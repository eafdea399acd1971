"""The config of the convolution's kernels where nobody tuned: a rule, not a list.  Problem -> config -> select

They move memory and compute little: what counts is that every load is 16 bytes wide and that enough of them are under
way.
"""

from __future__ import annotations

from typing import Any

from .part_problem import SHORTEST
from .problem import Problem
from .records import CONV_BACKWARD, CONV_FORWARD, CONV_TILE_BACKWARD, CONV_UPDATE

# bytes of a row that the lanes of a warp load at once, and half of them: in the backward pass a thread with 16 bytes of
# each operand has so many registers that few of them fit a multiprocessor
_WIDE, _NARROW = 512, 256
# warps to have in all for each multiprocessor, at most: forwards those that fit, backwards two turns of them, since of
# one turn some of its schedulers would have a warp more than others
_WARPS, _WARPS_BACKWARD = 16, 28
# channels of a program that updates, where there are so many of them for each multiprocessor: on an H200, of 5376
# channels, 21.2 us for 256 rows instead of 27.2 with 128, and 5.8 for one row, with half as many, instead of 6.7
_UPDATED, _UPDATING = 64, 8


def default_conv(direction: str, problem: Problem, sms: int) -> dict[str, Any]:
    """A config that runs everywhere, for a convolution on a GPU of so many multiprocessors.

    problem: of `part_problem.of_conv`.  Returns: {"schedule", "kernels": {kernel: numbers}} with one kernel:
    "conv_walk" {"block_d", "part", "num_warps"}, "conv_tile" {"block_d", "block_t", "num_warps"} or "conv_update"
    {"block_d", "num_warps"}.
    """
    if direction == CONV_UPDATE:
        return _config("update", _update(problem, sms))
    if direction in (CONV_FORWARD, CONV_BACKWARD):
        return _config("walk", _walk(direction == CONV_BACKWARD, problem, sms))
    return _config("tile", _tile(direction == CONV_TILE_BACKWARD, problem))


def _config(schedule: str, numbers: dict[str, int]) -> dict[str, Any]:
    return {"schedule": schedule, "kernels": {f"conv_{schedule}": numbers}}


def _walk(backward: bool, problem: Problem, sms: int) -> dict[str, int]:
    """part: tokens of a program, at most."""
    dim, seqlen = problem.nheads, problem.seqlen
    block = (_NARROW if backward else _WIDE) // _element_bytes(problem)
    block = min(block, max(32, 1 << (dim - 1).bit_length()))
    along = max(1, -(-dim // block) * problem.batch)
    wanted = (_WARPS_BACKWARD if backward else _WARPS) * sms // along
    parts = max(1, min(wanted, -(-seqlen // SHORTEST)))
    return {"block_d": block, "part": -(-seqlen // parts), "num_warps": 1}


def _tile(backward: bool, problem: Problem) -> dict[str, int]:
    """Long along the tokens, which lie side by side."""
    dim, seqlen = problem.nheads, problem.seqlen
    block_t = min(_WIDE // _element_bytes(problem), max(16, 1 << (seqlen - 1).bit_length()))
    block_d = 1 << max(0, min(2 if backward else 8, dim) - 1).bit_length()
    return {"block_d": block_d, "block_t": block_t, "num_warps": 2 if backward else 4}


def _update(problem: Problem, sms: int) -> dict[str, int]:
    """One warp, so that a thread reads the state before any writes it; of few rows one with fewer channels."""
    programs = problem.batch * -(-problem.nheads // _UPDATED)
    return {"block_d": _UPDATED if programs >= _UPDATING * sms else _UPDATED // 2, "num_warps": 1}


def _element_bytes(problem: Problem) -> int:
    return 4 if problem.dtype == "float32" else 2
