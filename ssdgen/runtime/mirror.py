"""What a two-sided mask has above the diagonal, added to what is there.  duality -> mirror -> paths, autograd

    y_i += sum over j > i of exp(a_{i+1} + ... + a_j) (c_i . b_j) weight_j x_j

Where a walk back has enough programs, one kernel does it.  Elsewhere, and for gradients, it is a transpose.  If keys,
values and decays of the next token are counted as a token's own, j = i is among the terms, and

    y_i = t_i sum over j >= i of exp(a'_{i+1} + ... + a'_j) (c_i . b'_j) v'_j,    t_i = exp(a_{i+1}), v = weight x

with ' for what is of one token later.  This is the transpose of what `autograd.scan` computes with step sizes t, keys c
and queries b', and the transpose of a linear map is its gradient: the kernels of the backward pass compute it with v'
in place of an adjoint.  Its own gradients are a forward pass, for v', and the other gradients of that backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from . import autograd, paths
from .autograd import DIFFERENTIABLE
from .every_head import added_up, repeated
from .problem import Problem
from .select import gpu_of

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
    return _Upper.apply(problem, y, x, weight, ones, a, b, c, seq_idx)


def _walks(problem: Problem, x: Tensor) -> bool:
    """Whether one program per head, and tile of headdim, keeps the device busy for the length of a sequence."""
    programs = problem.batch * problem.nheads * -(-problem.headdim // _TILE)
    return problem.batch > 0 and paths.runs_kernels(x) and programs >= gpu_of(x.device).sms


class _Upper(torch.autograd.Function):
    """What is above the diagonal, added to y."""

    @staticmethod
    def forward(ctx, problem, y, x, weight, ones, a, b, c, seq_idx):
        ctx.problem = problem
        ctx.save_for_backward(x, weight, ones, a, b, c, seq_idx)
        if problem is not None and not is_compiling() and _walks(problem, x):
            return paths.mirror(problem, x, ones if weight is None else weight, a, b, c, below=y, seq_idx=seq_idx)
        both = y.clone()
        if y.shape[1] > 1:
            both[:, :-1] += _Transpose.of(problem, x, weight, ones, a, b, c, seq_idx).result()
        return both

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # type: ignore[override]
        x, weight, _, _, b, c, _ = ctx.saved_tensors
        of_y, of_x, of_weight, _, of_a, of_b, of_c = ctx.needs_input_grad[1:-1]
        if d_y.shape[1] == 1:
            # nothing is above the diagonal
            nothing = (t if t is None else t.new_zeros(t.shape) for t in ctx.saved_tensors[:-1])
            needs = (of_x, of_weight, False, of_a, of_b, of_c)
            none = (zeros if needed else None for zeros, needed in zip(nothing, needs, strict=True))
            return None, d_y if of_y else None, *none, None
        above = _Transpose.of(ctx.problem, *ctx.saved_tensors)
        adjoint = d_y[:, :-1]
        d_x = d_weight = None
        if of_x or of_weight:
            d_x = d_values = above.gradient_of_values(adjoint)
            if weight is not None:
                d_x = (d_values * weight[:, 1:, :, None]).to(x.dtype)
            if of_weight:
                d_weight = _later((d_values * repeated(x[:, 1:], d_y.shape[2])).sum(-1).to(weight.dtype))
            d_x = _later(added_up(d_x, x.shape[2]))
        d_a, d_b, d_c = above.gradients(adjoint, of_a, of_b, of_c)
        d_b = None if d_b is None else _later(added_up(d_b, b.shape[2]))
        d_c = None if d_c is None else _earlier(added_up(d_c, c.shape[2]))
        return None, d_y if of_y else None, d_x if of_x else None, d_weight, None, d_a, d_b, d_c, None


@dataclass(frozen=True)
class _Transpose:
    """The operands of the transpose: values, keys, decays and sequences of one token later, queries as they are.

    values: [batch, seqlen - 1, nheads, headdim]; steps, decays: [batch, seqlen - 1, nheads].
    """

    problem: Problem | None
    values: Tensor
    steps: Tensor
    decays: Tensor
    keys: Tensor
    queries: Tensor
    seq_idx: Tensor | None

    @classmethod
    def of(
        cls,
        problem: Problem | None,
        x: Tensor,
        weight: Tensor | None,
        ones: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        seq_idx: Tensor | None,
    ) -> _Transpose:
        nheads = ones.shape[2]
        if x.shape[2] != nheads or b.shape[2] != c.shape[2]:
            # transposing exchanges what heads share, and there are no kernels for that
            x, b, c = (repeated(operand, nheads) for operand in (x, b, c))
            problem = problem and replace(problem, ngroups=nheads, layout="")
        values, decays = x[:, 1:], a[:, 1:]
        if weight is not None:
            values = (values * weight[:, 1:, :, None]).to(x.dtype)
        # what is positive counts as 0
        steps = decays.to(ones.dtype).clamp(max=0).exp()
        if seq_idx is not None:
            steps = steps * (seq_idx[:, 1:] == seq_idx[:, :-1])[..., None]
            seq_idx = seq_idx[:, 1:]
        problem = problem and replace(problem, seqlen=problem.seqlen - 1)
        return cls(problem, values, steps, decays, b[:, 1:], c[:, :-1], seq_idx)

    def result(self) -> Tensor:
        """What all tokens but the last get: [batch, seqlen - 1, nheads, headdim]."""
        # of the operators' own x only the shape counts
        return self._backward(self.values, frozenset({"x"}))["x"]

    def gradient_of_values(self, adjoint: Tensor) -> Tensor:
        """adjoint: of the result, in its shape."""
        given = self._operands(adjoint)
        if self.problem is None or is_compiling():
            return autograd.chunk_scan(*given, 64, False, None)[0]
        return autograd._forward(self.problem, *given, 64, False, None)[0]

    def gradients(
        self, adjoint: Tensor, of_a: bool, of_b: bool, of_c: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Those of log-decays [batch, seqlen, nheads], of keys of one token later, and of queries."""
        needs = {"dt": of_a, "A": of_a, "B": of_c, "C": of_b}
        found = self._backward(adjoint, frozenset(name for name, needed in needs.items() if needed))
        if not of_a:
            return None, found.get("C"), found.get("B")
        # a decay is in the steps too, and what is positive has no gradient
        d_a = found["A"] + (found["dt"] * self.steps * (self.decays <= 0)).to(found["A"].dtype)
        return _later(d_a), found.get("C"), found.get("B")

    def _backward(self, x: Tensor, needs: frozenset[str]) -> dict[str, Tensor]:
        """Gradients of the operators' call with this x, where values are the adjoint of its result."""
        if not needs:
            return {}
        names = [name for name in DIFFERENTIABLE if name in needs]
        given, wanted = self._operands(x), [name in needs for name in DIFFERENTIABLE]
        if self.problem is None or is_compiling():
            found = autograd.chunk_scan_backward(self.values, None, *given, wanted)
        else:
            found = autograd._backward(self.problem, self.values, None, *given, wanted)
        return dict(zip(names, found, strict=True))

    def _operands(self, x: Tensor) -> tuple[Any, ...]:
        """Arguments of the operators, up to the limits of the step size: queries are their keys, keys their queries."""
        return (
            x, self.steps, self.decays, self.queries, self.keys, None, None, None, None, self.seq_idx, None, False,
            -inf, inf,
        )  # fmt: skip


def _later(part: Tensor) -> Tensor:
    """With a token in front that gets nothing."""
    return _among(part, first=1)


def _earlier(part: Tensor) -> Tensor:
    """With a token behind that gets nothing."""
    return _among(part, first=0)


def _among(part: Tensor, first: int) -> Tensor:
    """With one token more, which gets nothing; first: where the part begins."""
    seqlen = part.shape[1]
    whole = part.new_empty((part.shape[0], seqlen + 1, *part.shape[2:]))
    whole[:, 0 if first else seqlen] = 0
    whole[:, first : first + seqlen] = part
    return whole
