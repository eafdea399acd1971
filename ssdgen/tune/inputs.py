"""Random inputs of a problem, as a layer sees them.  Problem, seed -> tensors -> bench, references"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan.problem import Problem

OPERANDS = ("x", "dt", "A", "B", "C", "D", "dt_bias")
# those that every head has its own of, whatever the layout
OF_HEADS = ("dt", "A", "D", "dt_bias")


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward.

    x, dt, B, C are in the problem's dtype; A, D and dt_bias in fp32, [nheads].  Layouts other than Mamba-2's have no
    dt_bias: dt are weights as they stand, and A log-decays of every token, in dt's shape.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor | None
    layout: str = ""

    @property
    def nheads(self) -> int:
        return self.dt.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """{operand: tensor}: those that have a gradient."""
        named = {name: getattr(self, name) for name in OPERANDS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def operands(self) -> tuple[Tensor, ...]:
        """The positional arguments of the launchers."""
        return self.x, self.dt, self.A, self.B, self.C

    def options(self) -> dict[str, Any]:
        """The options of the launchers that a model's layer uses."""
        return {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": self.dt_bias is not None}

    def each(self, operand: str) -> int:
        """How many heads that follow each other use one entry of an operand."""
        return 1 if operand in OF_HEADS else self.nheads // getattr(self, operand).shape[2]


def steps(dt: Tensor, A: Tensor, dt_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(weights, log-decays) of every token, in the shape of dt, [batch, tokens, heads]; the others as in `Inputs`."""
    if dt_bias is None:
        return dt, A
    step = F.softplus(dt + dt_bias)
    return step, step * A


def random(problem: Problem, device: str | torch.device, seed: int) -> Inputs:
    """Inputs with the distributions of a layer at the start of its training; nothing is zero.

    A is uniform in -[1, 16] and softplus(dt_bias) log-uniform in [0.001, 0.1], so that some heads remember thousands of
    tokens and some a few; a layout with decays for every token has the same of them.  On "meta" the tensors have sizes
    and no contents.
    """
    p = problem
    dtype = getattr(torch, p.dtype)
    generator = None if str(device) == "meta" else torch.Generator(device=device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        # straight in its dtype: a long problem in fp32 first would need three times the memory
        return torch.randn(*sizes, device=device, dtype=dtype, generator=generator)

    def uniform() -> Tensor:
        return torch.rand(p.nheads, device=device, generator=generator)

    of = {"": (p.nheads, p.ngroups, p.ngroups), "multi-contract": (p.ngroups, p.ngroups, p.nheads)}
    x_heads, b_heads, c_heads = of.get(p.layout, (p.ngroups, p.nheads, p.ngroups))
    made = Inputs(
        x=normal(p.batch, p.seqlen, x_heads, p.headdim),
        dt=normal(p.batch, p.seqlen, p.nheads) * 0.5,
        A=-1 - 15 * uniform(),
        B=normal(p.batch, p.seqlen, b_heads, p.dstate),
        C=normal(p.batch, p.seqlen, c_heads, p.dstate),
        D=uniform() + 0.5,
        # the inverse of softplus
        dt_bias=torch.log(torch.expm1(0.001 * 100.0 ** uniform())),
        layout=p.layout,
    )
    if not p.layout:
        return made
    weights, decays = steps(made.dt.float(), made.A, made.dt_bias)
    return replace(made, dt=weights.to(dtype), A=decays.contiguous(), dt_bias=None)
