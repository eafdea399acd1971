"""Operands that heads share, repeated for every head, and gradients added up again.  -> paths, mirror

The gradients of a layout other than the package's own are plain kernels.  Where every head has its own operands they
may be specialised by warps, and faster by more than the copies cost: of 32 heads that share x and B at 8 x 2048 tokens
on an H200 a backward pass takes 1085 us by the plain ones, 527 with the copies (benchmarks/layouts.py).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from . import memory
from .problem import Problem
from .select import backward_config_for


def repeated(tensor: Tensor, nheads: int) -> Tensor:
    """An operand with an entry for every head.  tensor: [batch, seqlen, heads, ...], heads a divisor of nheads."""
    heads = tensor.shape[2]
    return tensor if heads == nheads else tensor.repeat_interleave(nheads // heads, dim=2)


def added_up(gradient: Tensor, heads: int) -> Tensor:
    """The gradient of an operand with so many heads, from that of the repeated one."""
    return gradient if gradient.shape[2] == heads else gradient.unflatten(2, (heads, -1)).sum(3)


def instead(problem: Problem, x: Tensor) -> Problem | None:
    """The problem that a backward pass is of when operands are repeated; None where it is not worth the copies.

    With a limit to what it may keep (SSDGEN_MEMORY_LIMIT) they are never made.
    """
    if not problem.layout or x.element_size() != 2 or memory.limit():
        return None
    own = replace(problem, ngroups=problem.nheads, layout="")
    config = backward_config_for(own, x.device)
    specialised = config is not None and any(numbers.get("consumers") for numbers in config["kernels"].values())
    return own if specialised else None
