"""Random inputs of a problem, as a layer sees them.  Problem, seed -> tensors -> bench"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan.problem import Problem


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward.  x, dt, B, C are in the problem's dtype; A, D and dt_bias in fp32, [nheads]."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor

    def operands(self) -> tuple[Tensor, ...]:
        """The positional arguments of the launchers."""
        return self.x, self.dt, self.A, self.B, self.C

    def options(self) -> dict[str, Any]:
        """The options of the launchers that a model's layer uses."""
        return {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": True}


def random(problem: Problem, device: str | torch.device, seed: int) -> Inputs:
    """Inputs with the distributions of a layer at the start of its training; nothing is zero.

    A is uniform in -[1, 16] and softplus(dt_bias) log-uniform in [0.001, 0.1], so that some heads remember thousands of
    tokens and some a few.  On "meta" the tensors have sizes and no contents.
    """
    p = problem
    dtype = getattr(torch, p.dtype)
    generator = None if str(device) == "meta" else torch.Generator(device=device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        # straight in its dtype: a long problem in fp32 first would need three times the memory
        return torch.randn(*sizes, device=device, dtype=dtype, generator=generator)

    def uniform() -> Tensor:
        return torch.rand(p.nheads, device=device, generator=generator)

    return Inputs(
        x=normal(p.batch, p.seqlen, p.nheads, p.headdim),
        dt=normal(p.batch, p.seqlen, p.nheads) * 0.5,
        A=-1 - 15 * uniform(),
        B=normal(p.batch, p.seqlen, p.ngroups, p.dstate),
        C=normal(p.batch, p.seqlen, p.ngroups, p.dstate),
        D=uniform() + 0.5,
        # the inverse of softplus
        dt_bias=torch.log(torch.expm1(0.001 * 100.0 ** uniform())),
    )
