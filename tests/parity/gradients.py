"""Gradients of a call: by the public function, and in float64 from the description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ssdgen.spec import oracle_gradient
from ssdgen.spec.layer import Layer
from tests.parity import tolerances
from tests.parity.cases import Call, Tensors

# a gradient passes through about twice as many roundings as y
SLACK = 4
# gradients that are sums over all tokens, of terms of either sign
SUMS = ("A", "dt_bias")
# what is rounded on the way to a gradient: states and their adjoints, scores and theirs, the operands that decays
# scale.  Each moves a sum about as far as rounding x, B, C and d_y does, so this many times that is three times more
# than is to be expected
MOVES = 4


@dataclass(frozen=True)
class Adjoints:
    """Of what a call returns; None: not used.  On the CPU."""

    d_y: torch.Tensor | None
    d_final: torch.Tensor | None = None
    d_varlen: torch.Tensor | None = None


def draw_adjoints(call: Call, *, final: bool = True, varlen: bool = False, seed: int = 0) -> Adjoints:
    """Random ones in the dtypes of the results."""
    x, B = call.operands["x"], call.operands["B"]
    generator = torch.Generator().manual_seed(seed)
    batch, _, nheads, headdim = x.shape
    dtype = call.options.get("state_dtype") or torch.promote_types(torch.float32, x.dtype)

    def states(rows: int) -> torch.Tensor:
        return torch.randn(rows, nheads, headdim, B.shape[3], generator=generator).to(dtype)

    sequences = call.options["cu_seqlens"].shape[0] - 1 if varlen else 0
    return Adjoints(
        torch.randn(x.shape, generator=generator).to(x.dtype),
        states(batch) if final else None,
        states(sequences) if varlen else None,
    )


def leaves(call: Call) -> Call:
    """The same call with every floating tensor a leaf that wants its gradient; values and strides are kept."""

    def leaf(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.detach().requires_grad_() if is_float else value

    return Call(*({name: leaf(value) for name, value in part.items()} for part in (call.operands, call.options)))


def double(call: Call) -> Call:
    """The same numbers in float64."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return Call(*({name: wide(value) for name, value in part.items()} for part in (call.operands, call.options)))


def run(function: Callable[..., Any], call: Call, adjoints: Adjoints, **more: Any) -> tuple[Tensors, Tensors]:
    """(results by name, gradients by name) of a call; adjoints go to the device of x."""
    wanted = leaves(call)
    device = call.operands["x"].device
    final, varlen = adjoints.d_final is not None, adjoints.d_varlen is not None
    found = function(
        **wanted.operands,
        **wanted.options,
        chunk_size=64,
        return_final_states=final,
        return_varlen_states=varlen,
        **more,
    )
    names = ["y", *["final_states"] * final, *["varlen_states"] * varlen]
    results = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))
    given = {"y": adjoints.d_y, "final_states": adjoints.d_final, "varlen_states": adjoints.d_varlen}
    used = [name for name in names if given[name] is not None]
    torch.autograd.backward([results[name] for name in used], [given[name].to(device) for name in used])  # type: ignore[union-attr]
    gradients = {
        name: value.grad
        for name, value in {**wanted.operands, **wanted.options}.items()
        if isinstance(value, torch.Tensor) and value.requires_grad
    }
    return results, gradients


def exact(call: Call, adjoints: Adjoints, *, chunk: int = 32) -> Tensors:
    """{operand: its gradient}, float64 arrays."""
    softplus = bool(call.options.get("dt_softplus"))
    inputs = {name: _array(t) for name, t in call.operands.items()}
    inputs |= {
        name: _array(value) if isinstance(value, torch.Tensor) else value
        for name, value in call.options.items()
        if name not in ("dt_softplus", "state_dtype")
    }
    if "cu_seqlens" in inputs:
        inputs.pop("seq_idx", None)
    d_y, d_final, d_varlen = (
        None if t is None else _array(t) for t in (adjoints.d_y, adjoints.d_final, adjoints.d_varlen)
    )
    if d_y is None:
        d_y = 0.0 * inputs["x"]
    found = oracle_gradient.backward(
        Layer(dt_softplus=softplus), inputs, d_y, d_final, chunk=chunk, d_varlen_states=d_varlen
    )
    return {name.removeprefix("d_"): value for name, value in found.items()}


def movement(
    backward: Callable[..., dict[str, Any]],
    inputs: dict[str, Any],
    d_y: np.ndarray,
    d_final: np.ndarray | None,
    dtype: str,
    draws: int = 4,
) -> dict[str, float]:
    """How far gradients move, as a norm over all elements, when every operand of a product is rounded once more.

    backward: (inputs, d_y, d_final) -> gradients by name, float64; dtype: a row of `tolerances.ROUNDING`.
    Root mean square over draws of relative errors up to that of rounding.
    """
    random, most = np.random.default_rng(5), tolerances.ROUNDING[dtype]

    def rounded(value: np.ndarray | None) -> Any:
        return None if value is None else value * (1 + most * random.uniform(-1, 1, value.shape))

    exact = backward(inputs, d_y, d_final)
    squares = dict.fromkeys(exact, 0.0)
    for _ in range(draws):
        near = {name: rounded(v) if name in ("x", "B", "C", "z", "initial_states") else v for name, v in inputs.items()}
        for name, value in backward(near, rounded(d_y), rounded(d_final)).items():
            squares[name] += float(np.sum(np.square(value - exact[name]))) / draws
    return {name: square**0.5 for name, square in squares.items()}


def widened(
    name: str,
    allowed: tolerances.Limit,
    found: torch.Tensor,
    exact: np.ndarray,
    moved: Callable[[], dict[str, float]],
) -> tolerances.Limit:
    """The limit of a sum over tokens: `allowed`, or as far as its terms cancel MOVES times what rounding moves it.

    moved: `movement`, asked for where `allowed` alone is too strict.
    """
    size = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(found.detach().double().cpu().numpy() - exact))
    if not size or not error > min(allowed.relative, allowed.largest) * size:
        return allowed
    relative = MOVES * moved()[f"d_{name}"] / size
    largest = relative * size / float(np.abs(exact).max())
    return tolerances.Limit(max(allowed.relative, relative), max(allowed.largest, largest))


def _array(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def check(
    call: Call,
    found: Tensors,
    wanted: Tensors,
    *dtypes: str,
    tensor_cores: bool = False,
    adjoints: Adjoints | None = None,
) -> None:
    """Every gradient: there, in its operand's shape and dtype, and near float64.

    adjoints: those that were given, to see how far the terms of sums over tokens cancel; None: they do not.
    """
    operands = {**call.operands, **call.options}
    assert set(found) == set(wanted)
    row = tolerances.limit(*dtypes, tensor_cores=tensor_cores)
    allowed = tolerances.Limit(SLACK * row.relative, SLACK * row.largest)
    # kernels leave each other states in bf16, whichever of the short dtypes the operands have
    rounded = tolerances.widest(*dtypes, *["bfloat16"] * ("float16" in dtypes), tensor_cores=tensor_cores)
    for name, gradient in found.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.dtype == operands[name].dtype, f"the gradient of {name} is {gradient.dtype}"
        largest = float(abs(wanted["dt"]).max(initial=0.0))
        if abs(wanted[name]).max(initial=0.0) < 1e-12 * largest:
            # nothing but terms that cancel: one token has no decay to differentiate
            assert float(gradient.abs().max()) <= allowed.largest * largest, f"d_{name} is not zero"
            continue
        limit = allowed
        if name in SUMS and adjoints is not None:
            limit = widened(name, allowed, gradient, wanted[name], partial(_moved, call, adjoints, rounded))
        tolerances.check(f"d_{name}", gradient, wanted[name], limit)


def _moved(call: Call, adjoints: Adjoints, dtype: str) -> dict[str, float]:
    """`movement` of a call's gradients."""

    def backward(inputs: dict[str, Any], *given: Any) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        near = Call(*({**part, **{name: tensors[name] for name in part if name in tensors}} for part in parts))
        adjoint = Adjoints(*(None if value is None else torch.from_numpy(value) for value in given), adjoints.d_varlen)
        return {f"d_{name}": value for name, value in exact(near, adjoint).items()}

    parts = (call.operands, call.options)
    floats = {
        name: _array(value)
        for part in parts
        for name, value in part.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    d_y, d_final = (None if value is None else _array(value) for value in (adjoints.d_y, adjoints.d_final))
    return movement(backward, floats, d_y, d_final, dtype)


def in_two(function: Callable[..., Any], at: int, *, detach: bool = False) -> Callable[..., Any]:
    """The call in two parts, the second from the state that the first one leaves; detach: without its gradient."""

    def halves(*, initial_states: torch.Tensor | None = None, return_final_states: bool = False, **given: Any) -> Any:
        ys, state = [], initial_states
        for part in (slice(0, at), slice(at, None)):
            tokens = {name: given[name][:, part] for name in ("x", "dt", "B", "C", "z") if name in given}
            y, state = function(**{**given, **tokens}, initial_states=state, return_final_states=True)
            ys.append(y)
            if detach:
                state = state.detach()
        y = torch.cat(ys, dim=1)
        return (y, state) if return_final_states else y

    return halves
