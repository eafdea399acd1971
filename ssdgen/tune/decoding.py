"""What a search does with a candidate of a decode step.  config, problem -> inputs, launches, results, error -> passes

A problem's dtype is that of the state here; x, B and C are bf16, as in nearly every model that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..mamba2_ops import Replay, select, selective_state_update
from ..mamba2_ops.decode_defaults import default_decode
from ..mamba2_ops.launchers import decode as launcher
from ..mamba2_ops.problem import Problem as CallProblem
from ..plan.decode_space import StepSpace
from ..plan.problem import Problem
from . import gate, inputs, parts, work
from .choices import PackagedSpace, Space
from .compile import Launch
from .counted import Work
from .gate import Checked

# |state - exact| / |exact| once it is stored, by dtype: what rounding alone costs, and half as much again
STATE_LIMITS = {"float32": 1e-5, "bfloat16": 2.5e-3, "int8": 1.2e-2}
LARGEST = 127
# inputs that a replay keeps, as many as public reports of it found best; how many the first row of the batch has kept
# before its time is taken.  The next row has one more, as those of a server, whose sequences began one after the other:
# the state of one row in 16 is written in every step
KEPT, KEPT_THEN = 15, 7


@dataclass(frozen=True)
class Token:
    """Arguments of one step, by name, and the state that it starts from: the call itself overwrites its own."""

    tensors: dict[str, Tensor | None]
    state: Tensor
    scale: Tensor | None


class Decode:
    """y and the state; with more, rows of the batch have slots."""

    space: Space = PackagedSpace(StepSpace(), lambda call, gpu: default_decode(call, gpu.sms, gpu.arch))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Token:
        # a sequence of one token for each row
        drawn = inputs.random(replace(problem, seqlen=1, dtype="bfloat16"), device, seed)
        generator = None if device == "meta" else torch.Generator(device=device).manual_seed(seed + 2**20)
        shape = (problem.batch, problem.nheads, problem.headdim, problem.dstate)
        state, scale = torch.randn(shape, device=device, generator=generator), None
        if problem.dtype == "int8":
            scale = state.abs().amax(-1) / LARGEST
            state = (state / scale[..., None]).round()
        state = state.to(getattr(torch, problem.dtype))
        tensors: dict[str, Tensor | None] = {
            "state": state.clone(),
            "state_scale": None if scale is None else scale.clone(),
            "state_batch_indices": None,
            **{name: getattr(drawn, name)[:, 0] for name in ("x", "dt", "B", "C")},
            **{name: getattr(drawn, name) for name in ("A", "D", "dt_bias")},
        }
        if more:
            # the last row first: every slot once
            tensors["state_batch_indices"] = torch.arange(problem.batch, device=device).flip(0)
        return Token(tensors, state, scale)

    def fresh(self, given: Token) -> Token:
        scale = None if given.scale is None else given.scale.clone()
        return replace(given, tensors={**given.tensors, "state": given.state.clone(), "state_scale": scale})

    def expect(self, given: Token, problem: Problem) -> tuple[Tensor, Tensor]:
        """y and the states of the slots, in float64, rounded to fp32."""
        x, dt, A, B, C, D, bias = (
            given.tensors[name].double()  # type: ignore[union-attr]
            for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")
        )
        slots = given.tensors["state_batch_indices"]
        state = _restored(given.state, given.scale).double()
        state = state if slots is None else state[slots]
        step = torch.nn.functional.softplus(dt + bias)
        group = torch.arange(problem.nheads, device=x.device) // (problem.nheads // problem.ngroups)
        state *= (step * A).exp()[..., None, None]
        state += (step[..., None] * x)[..., None] * B[:, group, None]
        y = torch.einsum("bhpn,bhn->bhp", state, C[:, group]) + D[:, None] * x
        states = torch.empty_like(state, dtype=torch.float32)
        states[torch.arange(problem.batch, device=x.device) if slots is None else slots] = state.float()
        return y.float(), states

    def plan(self, config: dict[str, Any], given: Token, more: bool) -> Any:
        return launcher.launches(config, _arguments(given), **_options())

    def run(self, config: dict[str, Any], given: Token, more: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        tensors = _arguments(given)
        launcher.step(config, tensors, **_options())
        y, state = tensors["y"], tensors["state"]
        assert y is not None and state is not None
        return y, state, tensors["state_scale"]

    def work(self, launch: Launch, config: dict[str, Any], problem: Problem) -> Work:
        return work.of_launch(launch, config, problem)

    def call(self, given: Token, more: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        tensors = dict(self.fresh(given).tensors)
        y = selective_state_update(**tensors, dt_softplus=True)  # type: ignore[arg-type]
        state = tensors["state"]
        assert state is not None
        return y, state, tensors["state_scale"]

    def found_by(self, problem: Problem, device: torch.device) -> dict[str, Any]:
        return select.decode_config_for(CallProblem(**problem.to_json()), device)

    def check(
        self, found: tuple[Tensor, Tensor, Tensor | None], expected: tuple[Tensor, Tensor], problem: Problem
    ) -> Checked:
        y, state, scale = found
        heads = list(range(problem.nheads))
        limits = gate.LIMITS["bfloat16"], STATE_LIMITS[problem.dtype]
        errors = (
            gate.check(y, expected[0], heads, 1, limits[0]),
            gate.check(_restored(state, scale), expected[1], heads, 1, limits[1], "the state"),
        )
        return max((Checked(*pair) for pair in zip(errors, limits, strict=True)), key=lambda each: each.share)


class ReplayStep(Decode):
    """The same where inputs are kept: y, and the state as it was; with more, none can be kept and it is written."""

    space: Space = PackagedSpace(StepSpace(), lambda call, gpu: default_decode(call, gpu.sms, gpu.arch, replay=True))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Token:
        token = super().draw(problem, device, seed, more)
        p, generator = problem, None if device == "meta" else torch.Generator(device=device).manual_seed(seed + 2**21)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, device=device, dtype=torch.bfloat16, generator=generator)

        kept = {
            "kept_x": normal(p.batch, p.nheads, KEPT, p.headdim),
            # as a transform leaves them
            "kept_dt": 0.05 * torch.rand(p.batch, p.nheads, KEPT, device=device, generator=generator),
            "kept_B": normal(p.batch, p.ngroups, KEPT, p.dstate),
            "count": torch.arange(KEPT_THEN, KEPT_THEN + p.batch, device=device, dtype=torch.int32) % (KEPT + 1),
        }
        if more:
            kept["count"].fill_(KEPT)
        return replace(token, tensors={**token.tensors, **kept})

    def fresh(self, given: Token) -> Token:
        token = super().fresh(given)
        kept = {name: t.clone() for name in _OF_A_REPLAY if (t := given.tensors[name]) is not None}
        return replace(token, tensors={**token.tensors, **kept})

    def expect(self, given: Token, problem: Problem) -> tuple[Tensor, Tensor]:
        """The recurrence over the kept inputs, and one step of it more."""
        kept_x, kept_dt, kept_B, A = (
            given.tensors[name].double()  # type: ignore[union-attr]
            for name in ("kept_x", "kept_dt", "kept_B", "A")
        )
        count = given.tensors["count"]
        assert count is not None
        state = _restored(given.state, given.scale).double()
        group = torch.arange(problem.nheads, device=state.device) // (problem.nheads // problem.ngroups)
        for k in range(KEPT):
            # nothing happens to a row that has kept fewer
            step = kept_dt[:, :, k] * (k < count)[:, None]
            state *= (step * A).exp()[..., None, None]
            state += (step[..., None] * kept_x[:, :, k])[..., None] * kept_B[:, group, None, k]
        y, states = super().expect(replace(given, state=state, scale=None), problem)
        return y, torch.where((count == KEPT)[:, None, None, None], states, _restored(given.state, given.scale))

    def call(self, given: Token, more: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        tensors = dict(self.fresh(given).tensors)
        kept = [tensors.pop(name) for name in _OF_A_REPLAY]
        y = selective_state_update(**tensors, dt_softplus=True, replay=Replay(*kept))  # type: ignore[arg-type]
        state = tensors["state"]
        assert state is not None
        return y, state, tensors["state_scale"]

    def work(self, launch: Launch, config: dict[str, Any], problem: Problem) -> Work:
        return parts.work(launch, 1)

    def found_by(self, problem: Problem, device: torch.device) -> dict[str, Any]:
        return select.decode_config_for(CallProblem(**problem.to_json()), device, replay=True)


# in the order of `Replay`
_OF_A_REPLAY = ("kept_x", "kept_dt", "kept_B", "count")


def _restored(state: Tensor, scale: Tensor | None) -> Tensor:
    return state.float() if scale is None else state.float() * scale[..., None]


def _arguments(given: Token) -> dict[str, Tensor | None]:
    """The launcher's tensors, with new memory for y."""
    x = given.tensors["x"]
    assert x is not None
    return {**given.tensors, "y": torch.empty(x.shape, dtype=x.dtype, device=x.device)}


def _options() -> dict[str, Any]:
    return {
        "tied": True,
        "tokens": None,
        "dt_softplus": True,
        "dt_limit": (0.0, inf),
        "pad_slot_id": -1,
        "update_state": True,
    }
