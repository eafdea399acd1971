"""The norms' kernels equal the PyTorch path in float64: options, groups, odd sizes; interpreted and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import norm_paths
from tests.parity import settings, tolerances

# name: rows, dim, group_size, is_rms_norm, norm_before_gate, which operands are there
CASES: dict[str, tuple[tuple[int, ...], int, int | None, bool, bool, tuple[str, ...]]] = {
    "rms, gate last": ((2, 5), 40, None, True, True, ("z", "bias")),
    "rms, gate first, groups": ((3,), 96, 48, True, False, ("z",)),
    "layer, gate last, groups": ((7,), 42, 21, False, True, ("z", "bias")),
    "layer, gate first": ((1, 3), 80, None, False, False, ("z", "bias")),
    "rms alone": ((2, 2), 1, None, True, True, ()),
    "a slice": ((2, 4), 64, 16, True, False, ("z", "slice")),
    "rows apart": ((2, 3), 20, None, False, True, ("z", "bias", "apart")),
}
NAMES = [name for name in settings.NAMES if name != "fallback"]
SETTINGS = [pytest.param(name, marks=settings.MARKS[name]) for name in NAMES]


def draw(case: str, device: str, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    """Arguments, and a gradient of the result."""
    rows, dim, group, rms, before, options = CASES[case]
    made = torch.Generator().manual_seed(len(case))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made).to(device, dtype)

    def row() -> torch.Tensor:
        if "slice" in options:
            return normal(*rows, dim + 24)[..., 8 : 8 + dim]
        return normal(*rows, dim, 2)[..., 0] if "apart" in options else normal(*rows, dim)

    given: dict[str, Any] = {"x": row(), "weight": normal(dim)}
    given |= {"bias": normal(dim) if "bias" in options else None, "z": row() if "z" in options else None}
    given |= {"eps": 1e-3, "group_size": group, "norm_before_gate": before, "is_rms_norm": rms}
    return given, normal(*rows, dim)


def results(given: dict[str, Any], d_y: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in given.items() if torch.is_tensor(value)}
    y = ops.layernorm_fn(**{**given, **leaves})
    y.backward(d_y)
    return {"y": y, **{f"d_{name}": leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, ran = settings.enter(name, monkeypatch), []
    launch = norm_paths.backward
    monkeypatch.setattr(norm_paths, "backward", lambda *given: ran.append(name) or launch(*given))
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if name == "gpu" else (torch.float32,):
        given, d_y = draw(case, setting.device, dtype)
        found = results(given, d_y)
        exact = {key: value.double().cpu() if torch.is_tensor(value) else value for key, value in given.items()}
        wanted = results(exact, d_y.double().cpu())
        for what, value in wanted.items():
            allowed = tolerances.limit(str(dtype).removeprefix("torch."))
            tolerances.check(f"{case}: {what}", found[what], value.detach().numpy(), allowed)
    assert ran


@pytest.mark.gpu
@pytest.mark.parametrize("group", (None, 640))
def test_a_real_layer(group: int | None) -> None:
    """Rows in several tiles of channels, and several at once; the same bits each time."""
    x, z, d_y = (torch.randn(3, 700, 5120, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    given = {"x": x, "z": z, "weight": torch.randn(5120, device="cuda"), "bias": None, "eps": 1e-5}
    given |= {"group_size": group, "norm_before_gate": False, "is_rms_norm": True}
    first, second = results(given, d_y), results(given, d_y)
    exact = {key: value.double() if torch.is_tensor(value) else value for key, value in given.items()}
    for what, value in results(exact, d_y.double()).items():
        assert torch.equal(first[what], second[what]), what
        allowed = tolerances.limit("bfloat16")
        tolerances.check(what, first[what], value.detach().cpu().numpy(), allowed)


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_whole() -> None:
    norm = ops.RMSNorm(256, group_size=64, norm_before_gate=False, device="cuda", dtype=torch.bfloat16)
    found = []
    for run in (norm, torch.compile(norm, fullgraph=True)):
        torch.manual_seed(0)
        x, z = (torch.randn(2, 9, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        norm.zero_grad()
        y = run(x, z)
        y.sum().backward()
        found.append([y, x.grad, z.grad, norm.weight.grad])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_result_of_another_dtype_is_the_same_cast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are the gradients, from one that comes in that dtype."""
    setting = settings.enter(name, monkeypatch)
    given, d_y = draw("rms, gate first, groups", setting.device, torch.float32)
    for low in (torch.float16, torch.bfloat16) if name == "gpu" else (torch.float16,):
        found = results({**given, "out_dtype": low}, d_y.to(low))
        wanted = results(given, d_y.to(low).float())
        assert found["y"].dtype is low and torch.equal(found["y"], wanted["y"].to(low))
        assert all(torch.equal(found[what], value) for what, value in wanted.items() if what != "y")
