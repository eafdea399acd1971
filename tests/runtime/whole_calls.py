"""Whole calls with kernels that do nothing, on the CPU, and what they cost the host.  imitations -> test_repeats

    python -m tests.runtime.whole_calls

What the host does in front of a launch is that of a GPU, except for memory: torch's allocations on a CPU take about as
long as those of its caching allocator, but addresses come again less often, so the script keeps its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops import launching, mamba_chunk_scan_combined, paths, select
from ssdgen.mamba2_ops.launchers import backward as backward_launcher
from ssdgen.mamba2_ops.launchers import forward as forward_launcher
from tests.runtime.imitations import Cuda, compiled_for, in_place_of_triton

WALK = {"schedule": "segments", "chunk": 16, "segment": 32, "kernels": {}, "state_dtype": "float32"}
BACK = {"schedule": "chunks", "chunk": 16, "parts": 2, "kernels": {}, "state_dtype": "bfloat16"}


def in_place_of_kernels(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Every kernel compiles to one that does nothing, and every call runs kernels, by WALK and BACK."""
    made = in_place_of_triton(monkeypatch)
    monkeypatch.setattr(launching.Launch, "__call__", lambda launch: compiled_for(made, launch))
    monkeypatch.setattr(paths, "runs_kernels", lambda x: True)
    found = {"forward": WALK, "backward": BACK}
    monkeypatch.setattr(
        select, "choose", lambda problem, gpu, direction="forward": select.Choice(found[direction], "a test")
    )
    for module in (forward_launcher, backward_launcher):
        monkeypatch.setattr(module, "_recipes", launching.Recipes())
    select.forget()
    return made


def operands(**changed: Any) -> dict[str, Any]:
    bf16 = {"dtype": torch.bfloat16}
    given = {
        "x": torch.randn(1, 64, 4, 16, **bf16),
        "dt": torch.rand(1, 64, 4, **bf16),
        "A": -torch.rand(4),
        "B": torch.randn(1, 64, 2, 16, **bf16),
        "C": torch.randn(1, 64, 2, 16, **bf16),
        "D": torch.randn(4),
        "dt_bias": torch.randn(4),
    }
    return {**given, **changed}


def run(given: dict[str, Any], **options: Any) -> Any:
    return mamba_chunk_scan_combined(**given, **{"chunk_size": 64, "dt_softplus": True, **options})


def step(given: dict[str, Any], d_y: torch.Tensor | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """Both passes; the gradients of what has one."""
    y = run(given, **options)
    wanted = [name for name, value in given.items() if value.requires_grad]
    found = torch.autograd.grad(y, [given[name] for name in wanted], torch.ones_like(y) if d_y is None else d_y)
    return dict(zip(wanted, found, strict=True))


class Nothing(torch.autograd.Function):
    """What torch costs around any function of so many tensors."""

    @staticmethod
    def forward(ctx, *given):
        ctx.save_for_backward(*given)
        return given[0].detach()

    @staticmethod
    def backward(ctx, d_y):  # type: ignore[override]
        return ctx.saved_tensors


def host_us(call: Callable[[], Any], calls: int = 1000, batches: int = 9) -> float:
    """The least of some batches: others use the machine too."""
    times = []
    for _ in range(batches):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / calls


def _remembered() -> Callable[..., torch.Tensor]:
    """torch.empty_strided with two pieces of memory of each kind in turn, as a caching allocator gives them."""
    kept: dict[Any, list[torch.Tensor]] = {}
    real = torch.empty_strided

    def empty(shape: Any, strides: Any, **options: Any) -> torch.Tensor:
        pieces = kept.setdefault((shape, options["dtype"]), [])
        pieces.append(pieces.pop(0) if len(pieces) == 2 else real(shape, strides, **options))
        return pieces[-1].detach()

    return empty


def main() -> int:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # a function in C that notes nothing
        patch.setattr(Cuda, "launch", lambda self, *given: None)
        in_place_of_kernels(patch)
        patch.setattr(torch, "empty_strided", _remembered())
        given = operands()
        leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
        d_y = torch.ones_like(given["x"])

        def nothing() -> Any:
            return torch.autograd.grad(Nothing.apply(*leaves.values()), list(leaves.values()), d_y)

        for _ in range(3):
            step(leaves, d_y)
        rows = (
            ("forward", lambda: run(given)),
            ("forward and backward", lambda: step(leaves, d_y)),
            ("of it torch's autograd", nothing),
        )
        for name, call in rows:
            print(f"{name:24}{host_us(call):7.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
