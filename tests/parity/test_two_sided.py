"""Two-sided masks: their matrix in symbols and in numbers, and `ssd` against both, with every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdgen.mamba2_ops import mirror, ssd
from ssdgen.spec import semiseparable
from ssdgen.spec.layer import Layer, input_weight
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import CONSTANT, GATED, SSD, MaskFamily
from ssdgen.spec.oracle import OracleInput
from ssdgen.spec.semiseparable import Tokens
from ssdgen.spec.two_sided import matrix, two_sided
from tests.parity.dense import HEADS, MASKS, draw, of_heads
from tests.parity.dense import matrix as one_sided

SIZES = (2, 37, 6, 2, 5, 7)
OWN = ("a", "b", "c")
layouts = pytest.mark.parametrize("layout", HEADS)


def dense(given: dict[str, Tensor], seq_idx: Tensor | None = None) -> Tensor:
    """y; operands above the diagonal have a second letter u, where they are others."""
    nheads = max(given[name].shape[2] for name in "xbc")
    a, b, c = (given.get(f"{name}u", given.get(name)) for name in OWN)
    assert b is not None and c is not None
    weight, seqlen = given.get("weight"), b.shape[1]
    low = one_sided(given.get("a"), given["b"], given["c"], nheads, weight)
    # without keys and queries it is the mask alone, which is transposed
    ones = torch.ones_like(b[:, :, :1, :1])
    mask = one_sided(a, ones, ones, nheads).mT
    scores = torch.einsum("bihn,bjhn->bhij", of_heads(c, nheads), of_heads(b, nheads))
    high = mask * scores if weight is None else mask * scores * weight.transpose(1, 2)[:, :, None]
    whole = torch.where(torch.ones(seqlen, seqlen, dtype=torch.bool).tril(), low, high)
    if seq_idx is not None:
        whole = whole * (seq_idx[:, None, :, None] == seq_idx[:, None, None, :])
    values = of_heads(given["x"], nheads)
    y = torch.einsum("bhij,bjhp->bihp", whole, values)
    return y + given["D"][:, None] * values if "D" in given else y


def drawn(layout: str, mask: str, sizes: tuple[int, ...], seed: int, *options: str, own: bool) -> dict[str, Tensor]:
    found = draw(layout, mask, sizes, seed, *options)
    others = draw(layout, mask, sizes, seed + 1) if own else {}
    return found | {f"{name}u": value for name, value in others.items() if name in OWN}


def called(given: dict[str, Tensor], **options: Any) -> Tensor:
    above = tuple(given.get(f"{name}u") for name in OWN)
    y = ssd(
        *(given.get(name) for name in ("x", *OWN)),  # type: ignore[arg-type]
        weight=given.get("weight"),
        D=given.get("D"),
        two_sided=above if "bu" in given else True,  # type: ignore[arg-type]
        **options,
    )
    assert isinstance(y, Tensor)
    return y


def compare(operands: dict[str, Tensor], dtype: torch.dtype, allowed: float, device: str = "cpu", **options: Any):
    """y and every gradient, each to `allowed` of its largest number."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    given = {
        name: value.to(dtype if name[0] in "xbc" else wide).to(device).requires_grad_()
        for name, value in operands.items()
    }
    exact = {name: value.detach().double().cpu().requires_grad_() for name, value in given.items()}
    y, right = called(given, **options), dense(exact, options.get("seq_idx"))
    assert y.dtype is dtype
    adjoint = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(y, list(given.values()), adjoint.to(device))
    wanted = torch.autograd.grad(right, list(exact.values()), adjoint.double())
    for name, made, exactly in zip(("y", *given), (y, *gradients), (right, *wanted), strict=True):
        assert made.shape == exactly.shape, name
        error = (made.detach().double().cpu() - exactly.detach()).abs().max()
        assert error <= allowed * max(1.0, float(exactly.detach().abs().max())), f"{name} is off by {error:.2e}"


# ---- what it is


@pytest.mark.parametrize("family", [SSD, CONSTANT, GATED], ids=lambda family: family.name)
def test_the_matrix_in_symbols(family: MaskFamily) -> None:
    """One-sided up to the diagonal, and above it of no more rank than there are states."""
    tokens = Tokens(Layer(family), seqlen=5, dstate=1)
    found, lower = matrix(tokens, tokens, 0), semiseparable.matrix(tokens, 0)
    for i in range(5):
        for j in range(i + 1):
            assert found[i, j] == lower[i, j]
    for cut in range(1, 5):
        assert semiseparable.rank(found[:cut, cut:]) == 1 == semiseparable.rank(found[cut:, :cut])
    # decays are those between two tokens, whichever comes first
    c, b = ([tokens.operand(name, 0, t, 0) for t in range(5)] for name in "CB")
    weights = [input_weight(tokens.step(0, t)) for t in range(5)]
    assert semiseparable.same(found[1, 4] * c[4] * b[1] * weights[1], found[4, 1] * c[1] * b[4] * weights[4])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_the_oracle_is_the_matrix(layout: str, own: bool, seed: int) -> None:
    given = drawn(layout, "gated", SIZES, seed, "weight", "D", own=own)
    seq_idx = torch.repeat_interleave(torch.tensor([4, 1, 9]), torch.tensor([5, 20, 12])).expand(2, -1)
    arrays = {name: value.numpy() for name, value in given.items()}
    names = {"a": "A", "b": "B", "c": "C"}
    lower = {names[name]: arrays[name] for name in OWN} | {"x": arrays["x"], "dt": arrays["weight"], "D": arrays["D"]}
    upper = {names[name]: arrays.get(f"{name}u", arrays[name]) for name in OWN}
    layer = Layer(GATED, LAYOUTS[layout], "head")
    for cuts in (None, seq_idx):
        sides = {**lower, "dt_limit": (-np.inf, np.inf), "seq_idx": None if cuts is None else cuts.numpy()}
        np.testing.assert_allclose(two_sided(layer, sides, upper), dense(given, cuts), rtol=1e-10, atol=1e-10)
    with pytest.raises(OracleInput, match="decay for every token"):
        two_sided(Layer(), lower, upper)


# ---- the PyTorch path


@layouts
@pytest.mark.parametrize("mask", MASKS)
def test_every_layout_and_mask(layout: str, mask: str, seed: int) -> None:
    compare(drawn(layout, mask, SIZES, seed, own=False), torch.float64, 1e-12)
    compare(drawn(layout, mask, SIZES, seed, "weight", "D", own=True), torch.float64, 1e-12)


@pytest.mark.parametrize("seqlen", [1, 2, 64, 65, 130])
def test_lengths(seqlen: int, seed: int) -> None:
    compare(drawn("multi-input", "gated", (1, seqlen, 2, 1, 3, 4), seed, own=True), torch.float64, 1e-12)


def test_sequences_in_a_row(seed: int) -> None:
    given = drawn("multi-input", "gated", (1, *SIZES[1:]), seed, "weight", own=True)
    seq_idx = torch.repeat_interleave(torch.tensor([3, 1, 2]), torch.tensor([5, 20, 12]))[None]
    compare(given, torch.float64, 1e-12, seq_idx=seq_idx)
    torch.testing.assert_close(called(given, cu_seqlens=torch.tensor([0, 5, 25, 37])), dense(given, seq_idx))


def test_dtypes(seed: int) -> None:
    given = drawn("multi-input", "gated", SIZES, seed, "weight", "D", own=True)
    compare(given, torch.float32, 1e-5)
    compare(given, torch.bfloat16, 3e-2)


def test_through_torch_compile(seed: int) -> None:
    given = {n: v.float().requires_grad_() for n, v in drawn("multi-input", "gated", SIZES, seed, own=True).items()}
    compiled = torch.compile(called, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(given), called(given)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.sum(), list(given.values())) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


# ---- kernels


def walks(monkeypatch: pytest.MonkeyPatch, walked: bool) -> None:
    """The walk that adds to y, whatever the device would be kept busy by; or the transpose."""
    monkeypatch.setattr(mirror, "_walks", lambda problem, x: walked)


# one tile and two of both, heads that share nothing or something, sequences in a row
CASES = [
    ("multi-input", True, (1, 37, 4, 2, 16, 16)),
    ("multi-input", False, (1, 70, 2, 1, 80, 24)),
    ("multi-contract", True, (1, 37, 4, 2, 16, 16)),
    ("multi-expand", True, (1, 37, 4, 2, 16, 16)),
]


@pytest.mark.interpreter
@pytest.mark.parametrize(("layout", "own", "sizes"), CASES)
def test_kernels(layout: str, own: bool, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    walks(monkeypatch, True)
    compare(drawn(layout, "gated", sizes, seed, "weight", "D", own=own), torch.float32, 3e-5)


@pytest.mark.interpreter
def test_kernels_without_the_walk(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    walks(monkeypatch, False)
    given = drawn("multi-input", "gated", (1, 37, 4, 2, 16, 16), seed, "D", own=True)
    compare(given, torch.float32, 3e-5)
    seq_idx = torch.repeat_interleave(torch.tensor([3, 1]), torch.tensor([21, 16]))[None]
    compare(given, torch.float32, 3e-5, seq_idx=seq_idx)
    walks(monkeypatch, True)
    compare(given, torch.float32, 3e-5, seq_idx=seq_idx)


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(layout: str, walked: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    walks(monkeypatch, walked)
    given = drawn(layout, "gated", (2, 300, 8, 2, 64, 128), seed, "weight", "D", own=True)
    compare(given, dtype, 5e-4 if dtype is torch.float32 else 3e-2, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [(80, 96), (128, 256), (16, 16)])
def test_tiles_on_a_gpu(tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    walks(monkeypatch, True)
    compare(drawn("multi-input", "gated", (1, 200, 4, 2, *tiles), seed, own=True), torch.bfloat16, 3e-2, "cuda")
