"""The part of a two-sided mask above the diagonal: the transpose of a one-sided pass.  duality -> mirror -> autograd

    y_i = sum over j >= i of exp(a_{i+1} + ... + a_j) (c_i . b_j) x_j

With keys and queries exchanged this is the transpose of what `autograd.scan` computes, and the transpose of a linear
map is its gradient: the kernels of the backward pass compute it from x in the place of an adjoint.  Its own gradients
are then a forward pass, for x, and the other gradients of that backward pass.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import autograd
from .autograd import DIFFERENTIABLE
from .problem import Problem

_INPUT = [name == "x" for name in DIFFERENTIABLE]


def mirrored(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, c: Tensor, seq_idx: Tensor | None, problem: Problem | None
) -> Tensor:
    """y [batch, seqlen, nheads, headdim], the diagonal included.

    x: [batch, seqlen, nheads, headdim]; weight: ones, and a: log-decays, [batch, seqlen, nheads]; b, c: [batch, seqlen,
    ngroups, dstate].  problem: the sizes of arguments that were checked, or None for a tracer.
    """
    return _Mirror.apply(problem, x, weight, a, b, c, seq_idx)


def _operands(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, c: Tensor, seq_idx: Tensor | None) -> tuple[Any, ...]:
    """Arguments of the operators, keys and queries exchanged, up to the limits of the step size."""
    return (x, weight, a, c, b, None, None, None, None, seq_idx, None, False, -inf, inf)


def _transposed(problem: Problem | None, d_y: Tensor, given: tuple[Any, ...], needs: list[bool]) -> list[Tensor]:
    if problem is None or is_compiling():
        return autograd.chunk_scan_backward(d_y, None, *given, needs)
    return autograd._backward(problem, d_y, None, *given, needs)


class _Mirror(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem, x, weight, a, b, c, seq_idx):
        ctx.problem = problem
        ctx.save_for_backward(x, weight, a, b, c, seq_idx)
        # only the shape of the first operand counts
        return _transposed(problem, x, _operands(x, weight, a, b, c, seq_idx), _INPUT)[0]

    @staticmethod
    def backward(ctx, d_y):  # type: ignore[override]
        x, weight, a, b, c, seq_idx = ctx.saved_tensors
        _, of_x, _, of_a, of_b, of_c, _ = ctx.needs_input_grad
        given = _operands(d_y, weight, a, b, c, seq_idx)
        d_x = d_a = d_b = d_c = None
        if of_x:
            if ctx.problem is None or is_compiling():
                d_x, _ = autograd.chunk_scan(*given, 64, False, None)
            else:
                d_x, _ = autograd._forward(ctx.problem, *given, 64, False, None)
        needs = {"A": of_a, "B": of_c, "C": of_b}
        if any(needs.values()):
            found = iter(_transposed(ctx.problem, x, given, [needs.get(name, False) for name in DIFFERENTIABLE]))
            d_a, d_c, d_b = (next(found) if needed else None for needed in needs.values())
        return None, d_x, None, d_a, d_b, d_c, None
