"""What a search does with a candidate of the gated norms.  config, problem -> inputs, launches, error -> passes

Inputs are Mamba-2's: an RMS norm of what was gated, with z a slice of a projection.  The finalists are checked with
the layer norm of rows that are gated afterwards, with a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..mamba2_ops import layernorm_fn, rmsnorm_fn
from ..mamba2_ops.launchers import norm as launcher
from ..mamba2_ops.norm_defaults import default_norm
from ..pack.records import Direction
from ..plan.norm_space import RowsSpace
from ..plan.problem import Problem
from . import parts
from .choices import PackagedSpace, Space
from .compile import Launch
from .counted import Work
from .gate import Checked
from .results import Config

EPS = 1e-5
# channels of a row of the projection beside the gate
BESIDE = 128
# rows that are computed in float64 at a time
AT_ONCE = 4096
SUMS = frozenset(("weight", "bias"))


@dataclass(frozen=True)
class Normed:
    """Arguments of one call.  x, z, d_y: [rows, dim]; bias: of the finalists' other norm alone, or None."""

    x: Tensor
    z: Tensor
    weight: Tensor
    bias: Tensor | None
    d_y: Tensor | None
    group_size: int

    @property
    def rms(self) -> bool:
        return self.bias is None

    def options(self) -> tuple[float, int, bool, bool]:
        """eps, group_size, norm_before_gate and is_rms_norm, as the launchers take them."""
        return EPS, self.group_size, not self.rms, self.rms

    def operands(self) -> dict[str, Tensor]:
        """What has a gradient."""
        named = {"x": self.x, "weight": self.weight, "bias": self.bias, "z": self.z}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class GatedNorm:
    """y, or the gradients."""

    def __init__(self, direction: Direction) -> None:
        self._direction: Direction = direction
        self._backward = direction.endswith("backward")
        plans = RowsSpace(backward=self._backward)
        self.space: Space = PackagedSpace(plans, lambda call, gpu: default_norm(direction, call, gpu.sms))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Normed:
        rows, dim, dtype = problem.seqlen, problem.nheads * problem.headdim, getattr(torch, problem.dtype)
        generator = None if device == "meta" else torch.Generator(device=device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, generator=generator)

        return Normed(
            normal(rows, dim),
            normal(rows, dim + BESIDE)[:, :dim],
            normal(dim),
            normal(dim) if more else None,
            normal(rows, dim) if self._backward else None,
            problem.headdim,
        )

    def fresh(self, given: Normed) -> Normed:
        return given

    def expect(self, given: Normed, problem: Problem) -> dict[str, Tensor]:
        """y, or each gradient, in float64 rounded to fp32."""
        found: dict[str, list[Tensor]] = {}
        for start in range(0, problem.seqlen, AT_ONCE):
            for name, value in _exactly(given, slice(start, start + AT_ONCE)).items():
                found.setdefault(name, []).append(value if name in SUMS else value.float())
        return {n: torch.stack(v).sum(0).float() if n in SUMS else torch.cat(v) for n, v in found.items()}

    def plan(self, config: Config, given: Normed, more: bool) -> Any:
        tensors = {"x": given.x, "weight": given.weight, "bias": given.bias, "z": given.z}
        tensors |= {"d_y": given.d_y} if self._backward else {}
        return launcher.launches(config, tensors, self._backward, *given.options())

    def run(self, config: Config, given: Normed, more: bool) -> dict[str, Tensor]:
        operands, options = (given.x, given.weight, given.bias, given.z), given.options()
        if self._backward:
            assert given.d_y is not None
            return launcher.backward(config, given.d_y, *operands, *options)
        return {"y": launcher.forward(config, *operands, *options)}

    def call(self, given: Normed, more: bool) -> dict[str, Tensor]:
        norm = rmsnorm_fn if given.rms else layernorm_fn
        options = {"eps": EPS, "group_size": given.group_size, "norm_before_gate": not given.rms}
        if not self._backward:
            return {"y": norm(given.x, given.weight, given.bias, given.z, **options)}
        leaves = {name: t.detach().requires_grad_() for name, t in given.operands().items()}
        with torch.enable_grad():
            y = norm(leaves["x"], leaves["weight"], leaves.get("bias"), leaves["z"], **options)
            return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), given.d_y), strict=True))

    def found_by(self, problem: Problem, device: torch.device) -> Config:
        return parts.config_of(self._direction, problem, device)

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        if parts.is_sum(launch):
            return parts.work(launch, parts.steps_of_sum(launch))
        numbers = config["kernels"]["norm"]
        rows = numbers.get("programs", problem.seqlen) * numbers["block_t"]
        return parts.work(launch, -(-problem.seqlen // rows))

    def check(self, found: dict[str, Tensor], expected: dict[str, Tensor], problem: Problem) -> Checked:
        return parts.check(found, expected, SUMS)


def _exactly(given: Normed, rows: slice) -> dict[str, Tensor]:
    """y, or gradients, of some rows; sums over rows are of these rows alone."""
    backward = given.d_y is not None
    leaves = {
        name: (t if name in SUMS else t[rows]).double().requires_grad_(backward) for name, t in given.operands().items()
    }
    with torch.set_grad_enabled(backward):
        x, z = leaves["x"], leaves["z"]
        gate = z * z.sigmoid()
        value = (x * gate if given.rms else x).unflatten(-1, (-1, given.group_size))
        value = value if given.rms else value - value.mean(-1, keepdim=True)
        scaled = value / (value.square().mean(-1, keepdim=True) + EPS).sqrt()
        y = scaled.flatten(-2) * leaves["weight"]
        y = y if given.rms else (y + leaves["bias"]) * gate
        if given.d_y is None:
            return {"y": y}
        adjoint = given.d_y[rows].double()
        return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), adjoint), strict=True))
