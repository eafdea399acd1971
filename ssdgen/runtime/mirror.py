"""What a two-sided mask has above the diagonal, added to what is there.  duality -> mirror -> paths, autograd

    y_i += sum over j > i of exp(a_{i+1} + ... + a_j) (c_i . b_j) weight_j x_j

Where a walk back has enough programs, one kernel does it.  Elsewhere, and for gradients, it is a transpose: with keys
and queries exchanged, the sum over j >= i is the transpose of what `autograd.scan` computes, and the transpose of a
linear map is its gradient.  The kernels of the backward pass compute it from x in the place of an adjoint; its own
gradients are a forward pass, for x, and the other gradients of that backward pass.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from . import autograd, paths
from .autograd import DIFFERENTIABLE
from .problem import Problem
from .select import gpu_of

_INPUT = [name == "x" for name in DIFFERENTIABLE]
# of headdim, what a program of the walk has
_TILE = 64


def with_upper(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    ones: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    seq_idx: Tensor | None,
    problem: Problem | None,
) -> Tensor:
    """y [batch, seqlen, nheads, headdim] of both sides from that of the mask up to the diagonal.

    x, b, c: as `ssd` has them, in any layout; weight, ones and a: [batch, seqlen, nheads], log-decays; problem: the
    sizes of arguments that were checked, or None for a tracer.
    """
    if problem is None or not _walks(problem, x):
        return _added(y, x, weight, ones, a, b, c, seq_idx, problem)
    return _Upper.apply(problem, y, x, weight, ones, a, b, c, seq_idx)


def of_heads(tensor: Tensor, nheads: int) -> Tensor:
    """An operand with an entry for every head, repeated where heads share it."""
    return tensor if tensor.shape[2] == nheads else tensor.repeat_interleave(nheads // tensor.shape[2], dim=2)


def _walks(problem: Problem, x: Tensor) -> bool:
    """Whether one program per head, and tile of headdim, keeps the device busy for the length of a sequence."""
    programs = problem.batch * problem.nheads * -(-problem.headdim // _TILE)
    return problem.batch > 0 and paths.runs_kernels(x) and programs >= gpu_of(x.device).sms


def _added(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    ones: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    seq_idx: Tensor | None,
    problem: Problem | None,
    valued: bool = True,
) -> Tensor:
    """The same by a transpose.  valued: without it the result is of no use, and its gradients are right."""
    nheads = ones.shape[2]
    values = x
    if x.shape[2] != nheads or b.shape[2] != c.shape[2]:
        # transposing exchanges what heads share, and there are no kernels for that
        values, b, c = (of_heads(operand, nheads) for operand in (x, b, c))
        problem = problem and replace(problem, ngroups=nheads, layout="")
    if weight is not None:
        values = (values * weight.unsqueeze(-1)).to(x.dtype)
    above = _Mirror.apply(problem, valued, values, ones, a, b, c, seq_idx)
    # what a token gives to itself is there twice
    own = of_heads((c.to(ones.dtype) * b).sum(-1), nheads)
    return (y + torch.addcmul(above.to(ones.dtype), own.unsqueeze(-1), values, value=-1)).to(x.dtype)


class _Upper(torch.autograd.Function):
    """The kernel, with the gradients of `_added`."""

    @staticmethod
    def forward(ctx, problem, y, x, weight, ones, a, b, c, seq_idx):
        ctx.problem = problem
        ctx.save_for_backward(y, x, weight, ones, a, b, c, seq_idx)
        return paths.mirror(problem, x, ones if weight is None else weight, a, b, c, below=y, seq_idx=seq_idx)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # type: ignore[override]
        *operands, seq_idx = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:-1]
        leaves = [
            operand if operand is None else operand.detach().requires_grad_(needed)
            for operand, needed in zip(operands, needs, strict=True)
        ]
        with torch.enable_grad():
            y = _added(*leaves, seq_idx, ctx.problem, valued=False)
        wanted = [leaf for leaf, needed in zip(leaves, needs, strict=True) if needed]
        found = iter(torch.autograd.grad(y, wanted, d_y))
        return None, *(next(found) if needed else None for needed in needs), None


class _Mirror(torch.autograd.Function):
    """The transpose, the diagonal included.  Its first operand, and y, are [batch, seqlen, nheads, headdim]."""

    @staticmethod
    def forward(ctx, problem, valued, x, ones, a, b, c, seq_idx):
        ctx.problem = problem
        ctx.save_for_backward(x, ones, a, b, c, seq_idx)
        if not valued:
            return x.new_zeros(()).expand(x.shape)
        # of the operators' own x only the shape counts
        return _transposed(problem, x, _operands(x, ones, a, b, c, seq_idx), _INPUT)[0]

    @staticmethod
    def backward(ctx, d_y):  # type: ignore[override]
        x, ones, a, b, c, seq_idx = ctx.saved_tensors
        _, _, of_x, _, of_a, of_b, of_c, _ = ctx.needs_input_grad
        given = _operands(d_y, ones, a, b, c, seq_idx)
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
        return None, None, d_x, None, d_a, d_b, d_c, None


def _operands(x: Tensor, ones: Tensor, a: Tensor, b: Tensor, c: Tensor, seq_idx: Tensor | None) -> tuple[Any, ...]:
    """Arguments of the operators, keys and queries exchanged, up to the limits of the step size."""
    return (x, ones, a, c, b, None, None, None, None, seq_idx, None, False, -inf, inf)


def _transposed(problem: Problem | None, d_y: Tensor, given: tuple[Any, ...], needs: list[bool]) -> list[Tensor]:
    if problem is None or is_compiling():
        return autograd.chunk_scan_backward(d_y, None, *given, needs)
    return autograd._backward(problem, d_y, None, *given, needs)
