"""`ssd` in every layout with every mask, forward and backward, against its dense matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssdgen.mamba2_ops import every_head, kernels, paths, ssd
from ssdgen.mamba2_ops.problem import Problem
from tests.parity.dense import HEADS, MASKS, dense, draw

EVERY = ("weight", "D", "initial_states")
SIZES = (2, 37, 6, 2, 5, 7)
layouts = pytest.mark.parametrize("layout", HEADS)
masks = pytest.mark.parametrize("mask", MASKS)


def compare(
    operands: dict[str, Tensor],
    dtype: torch.dtype,
    allowed: float,
    device: str = "cpu",
    call: Any = None,
    **options: Any,
) -> None:
    """y, final states and every gradient of a call in `dtype`, each to `allowed` of its largest number.

    The matrix is made of the operands as `dtype` has them.
    """
    # decays, weights, skip and states stay in what the call computes them in
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    given = {
        name: value.to(dtype if name in "xbc" else wide).to(device).requires_grad_() for name, value in operands.items()
    }
    exact = {name: value.detach().double().cpu().requires_grad_() for name, value in given.items()}
    found = (call or ssd)(*(given.get(name) for name in "xabc"), **_rest(given), **options, return_final_states=True)
    wanted = dense(*(exact[name] for name in "xbc"), a=exact.get("a"), **_rest(exact), seq_idx=options.get("seq_idx"))
    generator = torch.Generator().manual_seed(1)
    loss, exact_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for name, out, right in zip(("y", "states"), found, wanted, strict=True):
        _close(name, out, right, allowed)
        adjoint = torch.randn(right.shape, dtype=torch.float64, generator=generator).to(dtype).double()
        loss = loss + (out.double().cpu() * adjoint).sum()
        exact_loss = exact_loss + (right * adjoint).sum()
    gradients = torch.autograd.grad(loss, list(given.values()))
    right = torch.autograd.grad(exact_loss, list(exact.values()))
    for name, made, wanted_one in zip(given, gradients, right, strict=True):
        assert made.shape == operands[name].shape and made.dtype == given[name].dtype, name
        _close(f"gradient of {name}", made, wanted_one, allowed)


def _rest(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if name not in "xabc"}


def _close(name: str, found: Tensor, wanted: Tensor, allowed: float) -> None:
    error = (found.detach().cpu().double() - wanted.detach()).abs().max()
    assert error <= allowed * max(1.0, float(wanted.detach().abs().max())), f"{name} is off by {error:.2e}"


# ---- the PyTorch path


@layouts
@masks
def test_every_layout_and_mask(layout: str, mask: str, seed: int) -> None:
    compare(draw(layout, mask, SIZES, seed), torch.float64, 1e-12)
    compare(draw(layout, mask, SIZES, seed, *EVERY), torch.float64, 1e-12)


@layouts
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (1, 64, 3, 1, 4, 3), (3, 65, 4, 4, 3, 2), (2, 130, 8, 4, 2, 9)])
def test_odd_sizes(layout: str, sizes: tuple[int, ...], seed: int) -> None:
    compare(draw(layout, "gated", sizes, seed, "D"), torch.float64, 1e-12)


@layouts
def test_sequences_in_a_row(layout: str, seed: int) -> None:
    """seq_idx and cu_seqlens cut the same way, and the states of the packed sequences are those of each alone."""
    operands = draw(layout, "gated", (1, *SIZES[1:]), seed, *EVERY)
    seq_idx = torch.repeat_interleave(torch.tensor([3, 1, 2]), torch.tensor([5, 20, 12]))[None]
    compare(operands, torch.float64, 1e-12, seq_idx=seq_idx)
    cu_seqlens = torch.tensor([0, 5, 25, 37])
    named = {name: operands.get(name) for name in "xabc"}
    y, final, each = ssd(
        **named, **_rest(operands), cu_seqlens=cu_seqlens, return_final_states=True, return_varlen_states=True
    )
    right, _ = dense(*(operands[name] for name in "xbc"), a=operands["a"], **_rest(operands), seq_idx=seq_idx)
    torch.testing.assert_close(y, right)
    alone = {name: value[:, 5:25] for name, value in operands.items() if name in ("x", "a", "b", "c", "weight")}
    _, state = dense(*(alone[name] for name in "xbc"), a=alone["a"], weight=alone["weight"])
    torch.testing.assert_close(each[1:2], state)
    torch.testing.assert_close(final, each[-1:])


def test_mamba_2_is_a_case_of_it(seed: int) -> None:
    from ssdgen.mamba2_ops import mamba_chunk_scan_combined

    generator = torch.Generator().manual_seed(seed)
    x, b, c = (torch.randn(1, 40, heads, 8, generator=generator) for heads in (4, 2, 2))
    dt, A = torch.rand(1, 40, 4, generator=generator), -torch.rand(4, generator=generator)
    wanted = mamba_chunk_scan_combined(x, dt, A, b, c, 16)
    torch.testing.assert_close(ssd(x, dt * A, b, c, weight=dt), wanted)
    torch.testing.assert_close(ssd(x * dt[..., None], dt * A, b, c), wanted)


def test_positive_decays_count_as_zero(seed: int) -> None:
    operands = draw("multi-input", "gated", SIZES, seed)
    mixed = operands["a"] + 0.5
    assert (mixed > 0).any() and (mixed < 0).any()
    y, _ = dense(*(operands[name] for name in "xbc"), a=mixed.clamp(max=0))
    torch.testing.assert_close(ssd(operands["x"], mixed, operands["b"], operands["c"]), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes(dtype: torch.dtype, seed: int) -> None:
    compare(draw("multi-contract", "gated", SIZES, seed, *EVERY), dtype, 1e-5 if dtype is torch.float32 else 2e-2)


# ---- kernels, interpreted

# tiles of headdim and dstate: one of each, and two of both
TILES = {"one": (1, 37, 4, 2, 16, 16), "two": (1, 20, 2, 1, 80, 96)}


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")


@pytest.mark.interpreter
@layouts
@masks
def test_kernels(layout: str, mask: str, forced: None, seed: int) -> None:
    compare(draw(layout, mask, TILES["one"], seed, *EVERY), torch.float32, 2e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", ["multi-contract", "multi-expand"])
def test_kernels_of_two_tiles(layout: str, forced: None, seed: int) -> None:
    compare(draw(layout, "gated", TILES["two"], seed, *EVERY), torch.float32, 2e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", ["multi-contract", "multi-expand"])
def test_gradients_of_operands_that_are_repeated(
    layout: str, forced: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """By the kernels of the package's own layout, in the first call and in those that are remembered."""

    def instead(problem: Problem, _: Tensor) -> Problem | None:
        return replace(problem, ngroups=problem.nheads, layout="") if problem.layout else None

    ran: list[str] = []
    here = paths._backward_here

    def noting(launcher: Any, problem: Problem, *args: Any) -> Any:
        ran.append(problem.layout)
        assert problem.ngroups == problem.nheads
        return here(launcher, problem, *args)

    monkeypatch.setattr(every_head, "instead", instead)
    monkeypatch.setattr(paths, "_backward_here", noting)
    for _ in range(2):
        compare(draw(layout, "gated", TILES["one"], seed, *EVERY), torch.float32, 2e-5)
    assert ran == ["", ""]


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", ["multi-head", "multi-expand"])
def test_kernels_of_sequences_in_a_row(layout: str, forced: None, seed: int) -> None:
    operands = draw(layout, "gated", TILES["one"], seed, *EVERY, sequences=2)
    cu_seqlens = torch.tensor([0, 21, 37])
    given = {name: value.float() for name, value in operands.items()}
    named = {name: given[name] for name in "xabc"}
    y, each = ssd(**named, **_rest(given), cu_seqlens=cu_seqlens, return_varlen_states=True)
    for s, span in enumerate((slice(0, 21), slice(21, 37))):
        alone = {name: value[:, span] for name, value in operands.items() if name in ("x", "a", "b", "c", "weight")}
        right, state = dense(**alone, D=operands["D"], initial_states=operands["initial_states"][s : s + 1])
        _close("y", y[:, span], right, 2e-5)
        _close("states", each[s : s + 1], state, 2e-5)


def test_every_kernel_of_a_layout_is_launched() -> None:
    """What ships for `ssd` alone stands in the tables of a launcher."""
    pytest.importorskip("triton")
    from importlib import import_module

    ends = {"_gated": "", "_multi_contract": "_multi_contract", "_multi_expand": "_multi_expand"}
    shipped = {path.stem for path in Path(kernels.__file__).parent.glob("*.py")}
    for end, launcher in ends.items():
        own = {name for name in shipped if name.endswith(end)}
        used: set[str] = set()
        for direction in ("forward", "backward"):
            module = import_module(f"{kernels.__package__.rpartition('.')[0]}.launchers.{direction}{launcher}")
            used |= {
                value.__name__.rpartition(".")[2]
                for value in vars(module).values()
                if getattr(value, "__name__", "").startswith(kernels.__name__)
            }
        assert own and own <= used


# ---- on a GPU


@pytest.mark.gpu
@layouts
@masks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("copies", [True, False])
def test_on_a_gpu(
    layout: str, mask: str, dtype: torch.dtype, copies: bool, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """copies: operands are repeated where that is faster; with a limit to the memory they never are."""
    if not copies:
        monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", "1T")
    sizes = (2, 300, 8, 2, 64, 128)
    compare(draw(layout, mask, sizes, seed, *EVERY), dtype, 5e-4 if dtype is torch.float32 else 3e-2, "cuda")


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("tiles", [(80, 96), (128, 64), (64, 256)])
def test_tiles_on_a_gpu(layout: str, tiles: tuple[int, int], seed: int) -> None:
    compare(draw(layout, "gated", (1, 200, 4, 2, *tiles), seed, *EVERY), torch.bfloat16, 3e-2, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["multi-contract", "multi-expand"])
def test_shared_operands_are_not_repeated(layout: str) -> None:
    """The forward pass takes no more memory than its results, its running sums and nothing of an operand's size."""
    batch, seqlen, nheads, headdim, dstate = 1, 4096, 32, 64, 128
    hx, hb, hc = HEADS[layout](nheads, 2)
    x, b, c = (
        torch.randn(batch, seqlen, heads, last, device="cuda", dtype=torch.bfloat16)
        for heads, last in ((hx, headdim), (hb, dstate), (hc, dstate))
    )
    a = -torch.rand(batch, seqlen, nheads, device="cuda")
    y = ssd(x, a, b, c)
    del y
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = ssd(x, a, b, c)
    results = y.nbytes + 2 * a.nbytes
    states = 4 * nheads * headdim * dstate * (seqlen // 256 + 1)
    assert torch.cuda.max_memory_allocated() - before <= results + states + 2**20
