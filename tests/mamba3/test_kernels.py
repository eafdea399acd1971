"""The kernels of Mamba-3 are the oracle: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from tests.mamba3 import calls  # noqa: E402
from tests.spec.mamba3_cases import draw  # noqa: E402

ODD: dict[str, Any] = {"batch": 2, "seqlen": 37, "nheads": 4, "ngroups": 2, "headdim": 5, "dstate": 6, "rates": 2}
PLAIN = {"states": False, "skip": False, "gate": False}


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "change",
    (
        {},
        {**PLAIN, "seqlen": 16, "rates": 3},
        {"seqlen": 1, "ngroups": 4},
        # more chunks, and more parts, than the walk over their sums takes in a trip
        {"batch": 1, "seqlen": 1100, "nheads": 1, "ngroups": 1},
    ),
    ids=str,
)
def test_interpreted(change: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    calls.compare(draw(seed, **{**ODD, **change}), seed, torch.float32, 16, "exact")


@pytest.mark.interpreter
@pytest.mark.parametrize("change", ({}, {"skip": False, "gate": False, "headdim": 20}), ids=str)
def test_one_token_interpreted(change: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    calls.compare_step(draw(seed, **{**ODD, **change}), torch.float32, "exact")


@triton.jit
def sines(angle_ptr, sin_ptr, cos_ptr, sin: tl.constexpr, cos: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    angle = tl.load(angle_ptr + at)
    tl.store(sin_ptr + at, sin(angle))
    tl.store(cos_ptr + at, cos(angle))


def sines_are_right(device: str) -> None:
    """To 1e-7 over a whole turn, with what rounding may leave outside of it."""
    functions = importlib.import_module(f"{calls.package().__name__}.kernels.angle_functions")
    angle = torch.linspace(-1e-6, 2 * math.pi + 1e-6, 2**16, device=device)
    found = torch.empty(2, len(angle), device=device)
    sines[(16,)](angle, *found, functions.sin, functions.cos, 2**12)
    wanted = torch.stack((angle.double().sin(), angle.double().cos()))
    assert (found.double() - wanted).abs().max() < 1.5e-7


@pytest.mark.interpreter
def test_sines_interpreted():
    sines_are_right("cpu")


@pytest.mark.gpu
def test_sines_on_a_gpu():
    sines_are_right("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("sizes", ({}, {"headdim": 64, "dstate": 128, "rates": 32, "ngroups": 1}), ids=str)
def test_one_token_on_a_gpu(sizes: dict[str, Any], dtype: Any, seed: int):
    calls.compare_step(draw(seed, **{**ODD, **sizes}), dtype, str(dtype).removeprefix("torch."), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    "sizes",
    (
        {},
        {**PLAIN, "headdim": 64, "dstate": 128, "rates": 32, "seqlen": 300, "nheads": 8, "ngroups": 1},
        # more chunks than the walk over their angles takes in a trip, and pairs that do not turn
        {"headdim": 64, "dstate": 128, "rates": 20, "seqlen": 1100, "ngroups": 1, "batch": 1},
        # with all options, for kernels that are specialised by warps in both passes, and forwards alone
        {"headdim": 64, "dstate": 128, "rates": 32, "seqlen": 129},
        {"headdim": 128, "dstate": 64, "rates": 32, "seqlen": 129},
        {"headdim": 64, "dstate": 256, "rates": 128, "seqlen": 65},
    ),
    ids=str,
)
@pytest.mark.parametrize("chunk", (16, 64))
def test_on_a_gpu(sizes: dict[str, Any], dtype: Any, chunk: int, seed: int):
    row = str(dtype).removeprefix("torch.")
    calls.compare(draw(seed, **{**ODD, **sizes}), seed, dtype, chunk, row, "cuda")
