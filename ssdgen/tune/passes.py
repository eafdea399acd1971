"""What a search has to know of a pass: its space, and how a candidate is run and judged.  problem, config -> bench

To tune something else, write one more class like these and enter it in `PASSES`; nothing else names a pass.  `more` is
what the finalists are checked with beside the rest: the final states, or their adjoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor

from ..mamba2_ops import mamba_chunk_scan_combined, paths, select, ssd
from ..mamba2_ops.backward_defaults import default_backward
from ..mamba2_ops.defaults import default_config
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack.records import BACKWARD, CONV, CONV_UPDATE, DECODE, FORWARD, NORM, REPLAY, Direction
from ..plan import backward_space, space
from ..plan.problem import Problem
from . import gate, gradient_reference, inputs, kernels, reference, work
from .choices import PackagedSpace, Space
from .compile import Launch
from .convolving import Convolution, Update
from .counted import Work
from .decoding import Decode, ReplayStep
from .gate import Checked
from .inputs import Inputs
from .norming import GatedNorm
from .results import Config


class Pass(Protocol):
    """One pass.  given: what `draw` made; expected: what `expect` made of it, fp32 rounded from float64.

    space: its configs, with the default that a user without records gets.
    """

    @property
    def space(self) -> Space: ...

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Any:
        """Random arguments of a call; on "meta" they have sizes and no contents."""
        ...

    def fresh(self, given: Any) -> Any:
        """The arguments for a run that is checked, or for those that are timed: others where a run writes to them."""
        ...

    def expect(self, given: Any, problem: Problem) -> Any:
        """What a call with these arguments should give."""
        ...

    def plan(self, config: Config, given: Any, more: bool) -> Any:
        """The launches of a config, not yet made."""
        ...

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        """What one of these launches has to do, for the cost model."""
        ...

    def run(self, config: Config, given: Any, more: bool) -> Any:
        """The results of a call."""
        ...

    def call(self, given: Any, more: bool) -> Any:
        """The same results as users get them: from the public call, which looks its config up."""
        ...

    def found_by(self, problem: Problem, device: torch.device) -> Config | None:
        """The config that the public call looks up for a problem; None if it takes no kernel."""
        ...

    def check(self, found: Any, expected: Any, problem: Problem) -> Checked:
        """How far results are from what was expected.  Errors: WrongResultError, above a limit."""
        ...


def used_kernels(direction: Direction, config: Config, problem: Problem) -> list[str]:
    """Names of the emitted kernels that a config launches."""
    it = PASSES[direction]
    return [launch.kernel.__name__ for launch in it.plan(config, it.draw(problem, "meta", 0, False), False).launches]


class Forward:
    """y and, with more, the final states."""

    space: Space = PackagedSpace(space, lambda call, gpu: default_config(call, gpu.sms))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Inputs:
        return inputs.random(problem, device, seed)

    def fresh(self, given: Inputs) -> Inputs:
        return given

    def expect(self, given: Inputs, problem: Problem) -> tuple[Tensor, Tensor]:
        return reference.forward(given, _heads(problem))

    def plan(self, config: Config, given: Inputs, more: bool) -> Any:
        return kernels.plan(config, given, more)

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        return work.of_launch(launch, config, problem)

    def run(self, config: Config, given: Inputs, more: bool) -> tuple[Tensor, Tensor | None]:
        return kernels.run(config, given, more)

    def call(self, given: Inputs, more: bool) -> tuple[Tensor, Tensor | None]:
        found = _public(given, given.tensors(), more)
        return found if more else (found, None)

    def found_by(self, problem: Problem, device: torch.device) -> Config:
        return select.config_for(CallProblem(**problem.to_json()), device)

    def check(self, found: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor], problem: Problem) -> Checked:
        (y, states), heads, limit = found, _heads(problem), gate.LIMITS[problem.dtype]
        error = gate.check(y, expected[0], heads, 2, limit)
        if states is not None:
            error = max(error, gate.check(states, expected[1], heads, 1, limit, "the final state"))
        return Checked(error, limit)


@dataclass(frozen=True)
class Adjoint:
    """Arguments of one backward pass.  d_y: as y; d_final: [batch, nheads, headdim, dstate] in fp32, or None."""

    inputs: Inputs
    d_y: Tensor
    d_final: Tensor | None


class Backward:
    """The gradients of all operands that a model's layer has; with more, the final states have an adjoint."""

    space: Space = PackagedSpace(backward_space, lambda call, gpu: default_backward(call, gpu.sms, gpu.arch))

    def draw(self, problem: Problem, device: str, seed: int, more: bool) -> Adjoint:
        given = inputs.random(problem, device, seed)
        generator = None if device == "meta" else torch.Generator(device=device).manual_seed(seed + 2**20)
        p = problem
        shape = (p.batch, p.seqlen, p.nheads, p.headdim)
        d_y = torch.randn(shape, device=device, dtype=given.x.dtype, generator=generator)
        shape = (p.batch, p.nheads, p.headdim, p.dstate)
        d_final = torch.randn(shape, device=device, generator=generator) if more else None
        return Adjoint(given, d_y, d_final)

    def fresh(self, given: Adjoint) -> Adjoint:
        return given

    def expect(self, given: Adjoint, problem: Problem) -> dict[str, Tensor]:
        return gradient_reference.backward(given.inputs, given.d_y, given.d_final, _heads(problem))

    def plan(self, config: Config, given: Adjoint, more: bool) -> Any:
        return _backward(given).launches(config, *given.inputs.operands(), **_options(given))

    def work(self, launch: Launch, config: Config, problem: Problem) -> Work:
        return work.of_launch(launch, config, problem)

    def run(self, config: Config, given: Adjoint, more: bool) -> dict[str, Tensor]:
        return _backward(given).backward(config, *given.inputs.operands(), **_options(given))

    def call(self, given: Adjoint, more: bool) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in given.inputs.tensors().items()}
        with torch.enable_grad():
            found = _public(given.inputs, leaves, more)
            results, adjoints = (found, (given.d_y, given.d_final)) if more else ((found,), (given.d_y,))
            return dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), adjoints), strict=True))

    def found_by(self, problem: Problem, device: torch.device) -> Config | None:
        return select.backward_config_for(CallProblem(**problem.to_json()), device)

    def check(self, found: dict[str, Tensor], expected: dict[str, Tensor], problem: Problem) -> Checked:
        return gate.check_gradients(found, expected, _heads(problem), problem.dtype)


PASSES: dict[Direction, Pass] = {
    FORWARD: Forward(),
    BACKWARD: Backward(),
    DECODE: Decode(),
    REPLAY: ReplayStep(),
    **{direction: Convolution(direction) for direction in CONV if direction != CONV_UPDATE},
    CONV_UPDATE: Update(),
    **{direction: GatedNorm(direction) for direction in NORM},
}


def _public(given: Inputs, tensors: dict[str, Tensor], more: bool) -> Any:
    """The call that users make.  tensors: the operands by name, maybe leaves."""
    x, dt, A, B, C, D = (tensors[name] for name in ("x", "dt", "A", "B", "C", "D"))
    if given.layout:
        return ssd(x, A, B, C, weight=dt, D=D, layout=given.layout, return_final_states=more)
    # the chunk that runs is the config's
    return mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=64, D=D, dt_bias=tensors["dt_bias"], dt_softplus=True, return_final_states=more
    )


def _backward(given: Adjoint) -> Any:
    """The launchers of the layout."""
    launcher = paths.backward_launcher(given.inputs.layout)
    assert launcher is not None, "this package has no backward pass"
    return launcher


def _options(given: Adjoint) -> dict[str, Any]:
    unused = {"z": None, "initial_states": None, "seq_idx": None, "dt_limit": (0.0, inf)}
    adjoints = {"d_y": given.d_y, "d_final_states": given.d_final}
    return {**unused, **given.inputs.options(), **adjoints, "needs": frozenset(given.inputs.tensors())}


def _heads(problem: Problem) -> list[int]:
    """The heads whose y, or d_x, is compared."""
    return reference.sample_heads(problem.batch, problem.seqlen, problem.nheads, problem.headdim)
