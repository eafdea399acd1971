"""What a search does with a candidate of the convolution.  config, problem -> inputs, launches, error -> passes

Inputs are a layer's: a slice of a projection, with weights in its dtype, a bias and SiLU.  The finalists are checked
with initial and final states, or with slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..mamba2_ops import causal_conv1d_fn, causal_conv1d_update
from ..mamba2_ops.conv_defaults import default_conv
from ..mamba2_ops.launchers import conv as launcher
from ..pack.records import CONV_UPDATE, Direction
from ..plan.conv_space import TileSpace, UpdateSpace, WalkSpace
from ..plan.problem import Problem
from . import parts
from .choices import PackagedSpace, Space
from .compile import Launch
from .counted import Work
from .gate import Checked
from .results import Config

# elements of a row of the projection beside the channels: what else a layer projects
BESIDE = 128
# channels that are computed in float64 at a time
AT_ONCE = 256
# tokens that a walk goes through in one trip
TOGETHER = 4
SUMS = frozenset(("weight", "bias"))


@dataclass(frozen=True)
class Convolved:
    """Arguments of one call.  x, d_y: [batch, dim, seqlen]; states: [batch, dim, width - 1], or None."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    initial_states: Tensor | None
    d_y: Tensor | None = None
    d_states: Tensor | None = None

    def operands(self) -> dict[str, Tensor | None]:
        named = {"x": self.x, "weight": self.weight, "bias": self.bias, "initial_states": self.initial_states}
        return {**named, "seq_idx": None, "cu_seqlens": None}


class Convolution:
    """Results, or gradients, of the convolution in one of its two layouts."""

    def __init__(self, direction: Direction) -> None:
        self._direction: Direction = direction
        self._walk, self._backward = "tile" not in direction, direction.endswith("backward")
        plans = WalkSpace(backward=self._backward) if self._walk else TileSpace(backward=self._backward)
        self.space: Space = PackagedSpace(plans, lambda call, gpu: default_conv(direction, call, gpu.sms))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Convolved:
        batch, length, dim, width = problem.batch, problem.seqlen, problem.nheads, problem.dstate
        normal = _normal(problem, device, seed)

        def row() -> Tensor:
            if not self._walk:
                return normal(batch, dim, length)
            return normal(batch, length, dim + BESIDE)[..., :dim].transpose(1, 2)

        states = (batch, dim, width - 1)
        drawn = Convolved(row(), normal(dim, width) / 2, normal(dim), normal(*states) if more else None)
        return replace(drawn, d_y=row(), d_states=normal(*states) if more else None) if self._backward else drawn

    def fresh(self, given: Convolved) -> Convolved:
        return given

    def expect(self, given: Convolved, problem: Problem) -> dict[str, Tensor]:
        """Of y and the final states, or of each gradient, in float64 rounded to fp32."""
        found: dict[str, list[Tensor]] = {}
        for start in range(0, problem.nheads, AT_ONCE):
            for name, value in _exactly(given, slice(start, start + AT_ONCE), self._backward).items():
                found.setdefault(name, []).append(value.float())
        return {name: torch.cat(values, 0 if name in SUMS else 1) for name, values in found.items()}

    def plan(self, config: Config, given: Convolved, more: bool) -> Any:
        tensors = {**given.operands(), "x": self._turned(given.x)}
        if not self._backward:
            return launcher.launches("forward", config, tensors, self._walk, True, more)
        tensors |= {"d_y": self._turned(given.d_y), "d_states": given.d_states}
        return launcher.launches("backward", config, tensors, self._walk, True)

    def run(self, config: Config, given: Convolved, more: bool) -> dict[str, Tensor]:
        operands = given.operands()
        if self._backward:
            return launcher.backward(config, given.d_y, given.d_states, **operands, silu=True)
        y, states = launcher.forward(config, **operands, silu=True, final_states=more)
        return _results(y, states)

    def call(self, given: Convolved, more: bool) -> dict[str, Tensor]:
        options = {"activation": "silu", "return_final_states": more}
        if not self._backward:
            found = causal_conv1d_fn(given.x, given.weight, given.bias, None, given.initial_states, **options)
            return _results(*(found if more else (found, None)))
        operands = {name: t for name, t in given.operands().items() if t is not None}
        leaves = {name: t.detach().requires_grad_() for name, t in operands.items()}
        with torch.enable_grad():
            found = causal_conv1d_fn(**leaves, **options)
            results, adjoints = (found, (given.d_y, given.d_states)) if more else ((found,), (given.d_y,))
            return dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), adjoints), strict=True))

    def found_by(self, problem: Problem, device: torch.device) -> Config:
        return parts.config_of(self._direction, problem, device)

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        if parts.is_sum(launch):
            return parts.work(launch, parts.steps_of_sum(launch))
        ((_, numbers),) = config["kernels"].items()
        return parts.work(launch, -(-min(numbers.get("part", 1), problem.seqlen) // TOGETHER))

    def check(self, found: dict[str, Tensor], expected: dict[str, Tensor], problem: Problem) -> Checked:
        return parts.check(found, expected, SUMS)

    def _turned(self, tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.transpose(1, 2) if self._walk else tensor


@dataclass(frozen=True)
class Updated:
    """Arguments of one update, and the state that it starts from: the call itself overwrites its own."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    conv_state: Tensor
    start: Tensor
    slots: Tensor | None


class Update:
    """y of one new token, and the state; with more, rows of the batch have slots."""

    space: Space = PackagedSpace(UpdateSpace(), lambda call, gpu: default_conv(CONV_UPDATE, call, gpu.sms))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Updated:
        batch, dim, width = problem.batch, problem.nheads, problem.dstate
        normal = _normal(problem, device, seed)
        # as models keep it: one input more than the convolution reads
        state = normal(batch, dim, width)
        # the last row first: every slot once
        slots = torch.arange(batch, device=device).flip(0) if more else None
        return Updated(normal(batch, dim), normal(dim, width) / 2, normal(dim), state.clone(), state, slots)

    def fresh(self, given: Updated) -> Updated:
        return replace(given, conv_state=given.start.clone())

    def expect(self, given: Updated, problem: Problem) -> dict[str, Tensor]:
        state, weight, bias = (t.double() for t in (given.start, given.weight, given.bias))
        order = torch.arange(problem.batch, device=state.device) if given.slots is None else given.slots
        inputs = torch.cat((state[order], given.x.double()[..., None]), -1)
        total = (inputs[..., -problem.dstate :] * weight).sum(-1) + bias
        moved = torch.empty_like(given.start, dtype=torch.float32)
        moved[order] = inputs[..., 1:].float()
        return {"y": (total * total.sigmoid()).float(), "state": moved}

    def plan(self, config: Config, given: Updated, more: bool) -> Any:
        tensors = {"x": given.x[..., None], "weight": given.weight, "bias": given.bias, "conv_state": given.conv_state}
        tensors |= {"cache_seqlens": None, "conv_state_indices": given.slots}
        return launcher.launches("update", config, tensors, True, True)

    def run(self, config: Config, given: Updated, more: bool) -> dict[str, Tensor]:
        g = given
        y = launcher.update(config, g.x[..., None], g.conv_state, g.weight, g.bias, True, None, g.slots)
        return {"y": y[..., 0], "state": g.conv_state}

    def call(self, given: Updated, more: bool) -> dict[str, Tensor]:
        g = self.fresh(given)
        y = causal_conv1d_update(g.x, g.conv_state, g.weight, g.bias, "silu", conv_state_indices=g.slots)
        return {"y": y, "state": g.conv_state}

    def found_by(self, problem: Problem, device: torch.device) -> Config:
        return parts.config_of(CONV_UPDATE, problem, device)

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        return parts.work(launch, problem.dstate)

    def check(self, found: dict[str, Tensor], expected: dict[str, Tensor], problem: Problem) -> Checked:
        return parts.check(found, expected, frozenset())


def _normal(problem: Problem, device: str, seed: int) -> Any:
    """Random tensors of a shape in the problem's dtype, each time others."""
    generator = None if device == "meta" else torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, problem.dtype)
    return lambda *shape: torch.randn(*shape, device=device, dtype=dtype, generator=generator)


def _exactly(given: Convolved, channels: slice, backward: bool) -> dict[str, Tensor]:
    """Results, or gradients, of some channels: the sum over taps, written out."""
    names = ("x", "weight", "bias", "initial_states")
    axis = {"weight": 0, "bias": 0}
    whole = {name: t for name in names if (t := getattr(given, name)) is not None}
    leaves = {
        name: (t[channels] if name in axis else t[:, channels]).double().requires_grad_(backward)
        for name, t in whole.items()
    }
    with torch.set_grad_enabled(backward):
        x, width = leaves["x"], leaves["weight"].shape[1]
        before = leaves.get("initial_states", x.new_zeros(*x.shape[:2], width - 1))
        inputs = torch.cat((before, x), 2)
        taps = (leaves["weight"][:, k, None] * inputs[..., k : k + x.shape[2]] for k in range(width))
        total = torch.stack(tuple(taps)).sum(0) + leaves["bias"][:, None]
        y, states = total * total.sigmoid(), inputs[..., inputs.shape[2] - width + 1 :]
        if not backward:
            return _results(y, states if "initial_states" in leaves else None)
        assert given.d_y is not None
        results, adjoints = [y], [given.d_y[:, channels].double()]
        if given.d_states is not None:
            results, adjoints = [y, states], [*adjoints, given.d_states[:, channels].double()]
        return dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), adjoints), strict=True))


def _results(y: Any, states: Tensor | None) -> dict[str, Tensor]:
    return {"y": y} if states is None else {"y": y, "states": states}
