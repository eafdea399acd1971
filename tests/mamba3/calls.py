"""The emitted package of Mamba-3, and calls of it from the oracle's inputs and back."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from ssdgen.emit import mamba3
from ssdgen.pack import templates, tree
from ssdgen.spec.mamba3_oracle import STATES, backward, oracle
from tests.parity import tolerances
from tests.spec.mamba3_cases import Arrays

NAME = "emitted_mamba3"
# names of the public call
ARGUMENTS = {
    "x": "V", "B": "K", "C": "Q", "adt": "ADT", "step": "DT", "mix": "Trap", "rate": "Angles", "B_bias": "K_bias",
    "C_bias": "Q_bias", "D": "D", "z": "Z",
}  # fmt: skip
HEADS_FIRST = ("adt", "step", "mix")
OPERANDS = ("x", "B", "C", "z", "B_before", "x_before")

# their gradients are sums over all tokens after one, of terms of either sign whose rounding stays
OVER_TOKENS = ("rate", "angle", "step")


@cache
def texts() -> dict[str, str]:
    templates.load()
    return mamba3.package(runtime=templates.runtime_sources())


@cache
def package() -> Any:
    """The package, emitted into a folder of this process's own and imported from there."""
    folder = Path(mkdtemp(prefix="ssdgen-mamba3-"))
    tree.write(texts(), folder / NAME)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(NAME)
    finally:
        sys.path.remove(str(folder))


def tensors(arrays: Arrays, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The arrays as tensors in their own shapes: x, B, C and z in `dtype`, the rest in fp32 or fp64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        name: torch.tensor(array, dtype=dtype if name in OPERANDS else wide, device=device)
        for name, array in arrays.items()
    }


def rounded(given: dict[str, torch.Tensor]) -> Arrays:
    """What the tensors hold, in float64."""
    return {name: tensor.detach().double().cpu().numpy() for name, tensor in given.items()}


def call(given: dict[str, torch.Tensor], chunk: int = 16, **options: Any) -> tuple[torch.Tensor, ...]:
    """out and the four states."""
    named = {
        ARGUMENTS[name]: tensor.transpose(1, 2) if name in HEADS_FIRST else tensor
        for name, tensor in given.items()
        if name in ARGUMENTS
    }
    states = tuple(given[name] for name in STATES) if "state" in given else None
    return package().mamba3_siso_combined(
        **named, Input_States=states, chunk_size=chunk, return_final_states=True, **options
    )


def step(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """out and the four states after the first token."""
    named = {ARGUMENTS[name]: tensor for name, tensor in given.items() if name in ARGUMENTS}
    whole = ("K_bias", "Q_bias", "D")
    token = {name: tensor if name in whole else tensor[:, 0] for name, tensor in named.items()}
    states = tuple(given[name] for name in STATES) if "state" in given else None
    out, left = package().mamba3_siso_step(**token, Input_States=states)
    return out, *left


def compare_step(arrays: Arrays, dtype: torch.dtype, row: str, device: str = "cpu") -> None:
    """A step against the oracle's first token."""
    given = tensors(arrays, dtype, device)
    tokens = [name for name in arrays if name not in ("B_bias", "C_bias", "D", *STATES)]
    wanted = oracle(rounded(given) | {name: rounded(given)[name][:, :1] for name in tokens})
    allowed = tolerances.LIMITS[row]
    out, angle, *states = step(given)
    tolerances.check("y", out, wanted.y[:, 0], allowed)
    turned = torch.remainder(angle.double().cpu() - torch.tensor(wanted.angle) + np.pi, 2 * np.pi) - np.pi
    assert turned.abs().max() < 1e-4
    for name, found in zip(STATES[1:], states, strict=True):
        tolerances.check(name, found, getattr(wanted, name), allowed)


def compare(arrays: Arrays, seed: int, dtype: torch.dtype, chunk: int, row: str, device: str = "cpu") -> None:
    """Every result and every gradient against the oracle's, for the numbers as they are rounded.

    row: of the table of tolerances; gradients pass through it several times over.
    """
    random = np.random.default_rng(seed)
    given = {name: tensor.requires_grad_() for name, tensor in tensors(arrays, dtype, device).items()}
    exact = rounded(given)
    results: dict[str, Any] = dict(zip(("y", *STATES), call(given, chunk), strict=True))
    wanted = oracle(exact)
    allowed = tolerances.LIMITS[row]
    weights = {name: random.normal(size=getattr(wanted, name).shape) for name in ("y", *STATES)}
    for name, found in results.items():
        value = getattr(wanted, name)
        if name == "angle":
            # a whole turn is none
            near = torch.tensor(value, device=device)
            found = near + torch.remainder(found - near + np.pi, 2 * np.pi) - np.pi
        tolerances.check(name, found, value, allowed)
    outputs = [results[name] for name in weights]
    adjoints = [torch.tensor(weights[name], device=device).to(results[name].dtype) for name in weights]
    found = dict(zip(given, torch.autograd.grad(outputs, list(given.values()), adjoints), strict=True))
    d = {name: adjoint.double().cpu().numpy() for name, adjoint in zip(weights, adjoints, strict=True)}
    expected = backward(exact, d.pop("y"), d, chunk=chunk)
    for name, gradient in found.items():
        assert gradient.dtype == given[name].dtype
        factor = 10 if name in OVER_TOKENS else 3
        wider = tolerances.Limit(factor * allowed.relative, factor * allowed.largest)
        tolerances.check(f"d_{name}", gradient, expected[f"d_{name}"], wider)
