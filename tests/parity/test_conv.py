"""The convolution's kernels equal the PyTorch path in float64: options, layouts, odd sizes; interpreted, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import conv_paths
from tests.parity import settings, tolerances

# name: width, batch, dim, seqlen, options
CASES: dict[str, tuple[int, int, int, int, tuple[str, ...]]] = {
    "all, walked": (4, 2, 37, 45, ("bias", "silu", "seq_idx", "initial", "final")),
    "all, tiled": (4, 2, 5, 45, ("first", "bias", "silu", "seq_idx", "initial", "final")),
    "packed": (4, 1, 37, 45, ("bias", "silu", "cu_seqlens", "initial", "final")),
    "packed, positions side by side": (3, 1, 5, 19, ("first", "cu_seqlens", "final")),
    "a slice": (4, 2, 40, 70, ("slice", "bias", "silu")),
    "plain, tiled": (2, 1, 3, 1, ("first",)),
    "one token": (3, 2, 5, 1, ("bias", "initial", "final")),
    "width 2": (2, 1, 33, 6, ("silu", "initial", "final")),
    "no stride of one": (4, 1, 6, 9, ("apart", "bias", "silu")),
}
NAMES = [name for name in settings.NAMES if name != "fallback"]
SETTINGS = [pytest.param(name, marks=settings.MARKS[name]) for name in NAMES]


def draw(case: str, device: str, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Arguments, and gradients of the results."""
    width, batch, dim, seqlen, options = CASES[case]
    made = torch.Generator().manual_seed(len(case))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made).to(device, dtype)

    x = normal(batch, seqlen, dim).transpose(1, 2)
    if "slice" in options:
        x = normal(batch, seqlen, dim + 24)[..., 8 : 8 + dim].transpose(1, 2)
    elif "first" in options:
        x = normal(batch, dim, seqlen)
    elif "apart" in options:
        x = normal(batch, dim, seqlen, 2)[..., 0]
    packed = "cu_seqlens" in options
    ends = torch.tensor([0, 1, 4, seqlen], device=device)
    rows = 3 if packed else batch
    given: dict[str, Any] = {"x": x, "weight": normal(dim, width)}
    given["bias"] = normal(dim) if "bias" in options else None
    given["initial_states"] = normal(rows, dim, width - 1) if "initial" in options else None
    position = torch.arange(seqlen, device=device)
    given["seq_idx"] = ((position > 1).int() + (position > seqlen // 2).int() - 1).expand(batch, -1)
    given["seq_idx"] = given["seq_idx"] if "seq_idx" in options else None
    given["cu_seqlens"] = ends if packed else None
    given |= {"activation": "silu" if "silu" in options else None, "return_final_states": "final" in options}
    return given, normal(*x.shape), normal(rows, dim, width - 1)


def results(ops: Any, given: dict[str, Any], d_y: torch.Tensor, d_states: torch.Tensor) -> dict[str, torch.Tensor]:
    """y, the states, and the gradients of the floating operands."""
    leaves = {name: value.detach().requires_grad_() for name, value in given.items() if is_floating(value)}
    y = ops.causal_conv1d_fn(**{**given, **leaves})
    found: dict[str, torch.Tensor] = {}
    total = 0.0
    if isinstance(y, tuple):
        y, found["states"] = y
        total = (found["states"] * d_states).sum()
    total = total + (y * d_y).sum()
    total.backward()
    return {"y": y, **found, **{f"d_{name}": leaf.grad for name, leaf in leaves.items()}}


def _strides(tensor: torch.Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def exact(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double().cpu() if is_floating(value) else cpu(value) for name, value in given.items()}


def cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, ran = settings.enter(name, monkeypatch), []
    launch = conv_paths.backward
    monkeypatch.setattr(conv_paths, "backward", lambda *given: ran.append(name) or launch(*given))
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if name == "gpu" else (torch.float32,):
        given, d_y, d_states = draw(case, setting.device, dtype)
        found = results(ops, given, d_y, d_states)
        wanted = results(ops, exact(given), d_y.double().cpu(), d_states.double().cpu())
        assert found.keys() == wanted.keys()
        allowed = tolerances.limit(str(dtype).removeprefix("torch."))
        for what, value in wanted.items():
            tolerances.check(f"{case}: {what}", found[what], value.detach().numpy(), allowed)
        assert _strides(found["y"]) == _strides(wanted["y"])
    assert ran


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("ring", (False, True))
def test_an_update_equals_float64(ring: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    for tokens in (1, 3):
        x, weight, bias = torch.randn(3, 70, tokens), torch.randn(70, 4), torch.randn(70)
        state = torch.randn(6, 70, 5)
        options = {"conv_state_indices": torch.tensor([4, -1, 0], dtype=torch.int32), "activation": "silu"}
        options["cache_seqlens"] = torch.tensor([4, 0, 11], dtype=torch.int32) if ring else None
        kept, own = state.double(), state.to(setting.device)
        wanted = ops.causal_conv1d_update(x.double(), kept, weight.double(), bias.double(), **options)
        moved = {key: value.to(setting.device) if torch.is_tensor(value) else value for key, value in options.items()}
        device = (tensor.to(setting.device) for tensor in (weight, bias))
        found = ops.causal_conv1d_update(x.to(setting.device), own, *device, **moved)
        tolerances.check("y", found, wanted.numpy(), tolerances.limit("float32"))
        assert torch.equal(own.cpu(), kept.float())


@pytest.mark.gpu
def test_the_same_bits_each_time() -> None:
    given, d_y, d_states = draw("all, walked", "cuda", torch.bfloat16)
    first, second = (results(ops, given, d_y, d_states) for _ in range(2))
    for what, value in first.items():
        assert torch.equal(value, second[what]), what


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_whole() -> None:
    class Compiled:
        causal_conv1d_fn = staticmethod(torch.compile(ops.causal_conv1d_fn, fullgraph=True))

    for case in ("a slice", "all, tiled"):
        given, d_y, d_states = draw(case, "cuda", torch.bfloat16)
        eager, compiled = (results(each, given, d_y, d_states) for each in (ops, Compiled))
        for what, value in eager.items():
            assert torch.equal(value, compiled[what]), what


@pytest.mark.gpu
def test_an_update_in_a_cuda_graph() -> None:
    x, state, weight = (torch.randn(*shape, device="cuda") for shape in ((2, 64), (2, 64, 3), (64, 4)))
    expected, moved = ops.causal_conv1d_update(x, state.clone(), weight), state.clone()
    ops.causal_conv1d_update(x, moved, weight)
    graph = torch.cuda.CUDAGraph()
    kept = state.clone()
    with torch.cuda.graph(graph):
        y = ops.causal_conv1d_update(x, kept, weight)
    kept.copy_(state)
    graph.replay()
    assert torch.equal(y, expected) and torch.equal(kept, moved)
