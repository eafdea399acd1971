"""Convolutions and norms as problems, so that records are found as those of a scan are.  sizes -> Problem -> select

A convolution's heads are its channels, each one wide, and its dstate is the width; rows and length are those of the
sequences, on average.  A norm's heads are its groups, as wide as their channels, and its rows are tokens of one
sequence.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from .problem import Problem
from .records import CONV, CONV_UPDATE, NORM, NORM_FORWARD, PARTS

# of a convolution's walk: tokens of a program at least, at whose ends it reads some of its neighbours' again
SHORTEST = 32

# records are by the bytes of a number: nothing else of the dtype matters as much
_RECORDED = {torch.float16: "bfloat16", torch.bfloat16: "bfloat16"}


@lru_cache(maxsize=4096)
def of_conv(rows: int, length: int, channels: int, width: int, dtype: torch.dtype) -> Problem:
    """The problem of a convolution.  rows: sequences; length: tokens of one of them, on average."""
    return Problem(rows, length, channels, 1, width, 1, _RECORDED.get(dtype, "float32"))


@lru_cache(maxsize=4096)
def of_norm(rows: int, groups: int, group_size: int, dtype: torch.dtype) -> Problem:
    """The problem of a gated norm.  rows: tokens; groups: of channels, each normalised by itself."""
    return Problem(1, rows, groups, group_size, 1, 1, _RECORDED.get(dtype, "float32"))


def describe(direction: str, problem: Problem) -> str:
    """A part's problem as messages call it."""
    p = problem
    if direction == CONV_UPDATE:
        return f"an update of {p.batch} rows, {p.nheads} channels, width {p.dstate}, {p.dtype}"
    if direction in CONV:
        side = "positions" if "tile" in direction else "channels"
        what = f"{p.batch} rows of {p.seqlen} tokens, {p.nheads} channels, width {p.dstate}, {p.dtype}, {side} together"
    else:
        what = f"{p.seqlen} rows, {p.nheads} groups of {p.headdim} channels, {p.dtype}"
    return f"{direction.replace('_tile', '').replace('_', ' ')} of {what}"


def fits(problem: Problem, tuned: Problem, direction: str) -> bool:
    """Whether a norm's rows, which a program has whole, are about as long as those of a record.  Others always fit."""
    return direction not in NORM or (problem.headdim - 1).bit_length() == (tuned.headdim - 1).bit_length()


def fitted(config: dict[str, Any], tuned: Problem, problem: Problem, direction: str) -> dict[str, Any]:
    """The config of a record for sizes that are not its own: as many programs side by side as were tuned."""
    if direction not in PARTS or tuned.bucket() == problem.bucket():
        return config
    ((kernel, numbers),) = config["kernels"].items()
    if direction == NORM_FORWARD and "block_t" in numbers:
        # no rows that are not there
        numbers = {**numbers, "block_t": min(numbers["block_t"], 1 << (max(1, problem.seqlen) - 1).bit_length())}
    elif "part" in numbers:
        before = tuned.batch * -(-tuned.nheads // numbers["block_d"]) * -(-tuned.seqlen // numbers["part"])
        across = max(1, problem.batch) * -(-problem.nheads // numbers["block_d"])
        parts = max(1, min(before // across, -(-problem.seqlen // SHORTEST)))
        numbers = {**numbers, "part": -(-problem.seqlen // parts)}
    elif "programs" in numbers:
        numbers = {**numbers, "programs": max(1, numbers["programs"] * tuned.nheads // problem.nheads)}
    return {**config, "kernels": {kernel: numbers}}
