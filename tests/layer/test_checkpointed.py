"""The layer inside torch.utils.checkpoint: the same gradients, and no product more than needed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mamba2_ops as ops
from ssdgen.mamba2_ops import memory

D_MODEL, D_INNER, TOKENS = 24, 48, 20
PRODUCTS = ("mm", "addmm")


class Products(TorchDispatchMode):
    """Counts matrix products by their extents, (rows, summed, columns)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            left, right = args[-2:]
            self.found[(left.shape[0], left.shape[1], right.shape[1])] += 1
        return func(*args, **(kwargs or {}))


def layer(**options: Any) -> ops.Mamba2:
    torch.manual_seed(0)
    return ops.Mamba2(D_MODEL, d_state=16, headdim=16, ngroups=1, chunk_size=16, **options)


def step(module: ops.Mamba2, way: str) -> tuple[list[torch.Tensor], Counter]:
    """Gradients of the input and of all parameters, and the products that were made."""
    u = torch.randn(2, TOKENS // 2, D_MODEL, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(u.shape, generator=torch.Generator().manual_seed(2))
    with Products() as products:
        out = module(u) if way == "plain" else checkpoint(module, u, use_reentrant=False)
        assert isinstance(out, torch.Tensor)
        found = torch.autograd.grad((out * weights).sum(), [u, *module.parameters()])
    return list(found), products.found


@pytest.mark.parametrize("options", [{}, {"rmsnorm": False}, {"bias": True}], ids=["norm", "no norm", "bias"])
def test_gradients_are_the_same(options: dict[str, bool]) -> None:
    module = layer(**options)
    plain, kept = (step(module, way)[0] for way in ("plain", "kept"))
    for one, other in zip(plain, kept, strict=True):
        assert torch.equal(one, other)


def test_the_output_projection_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer()
    projection = (TOKENS, D_INNER, D_MODEL)
    assert step(module, "plain")[1][projection] == 1
    assert step(module, "kept")[1][projection] == 1
    # as part of the function that it follows it would be made again with it
    monkeypatch.setattr(memory, "is_checkpointed", lambda: False)
    assert step(module, "kept")[1][projection] == 2


def test_where_nothing_is_kept_is_known() -> None:
    seen = []

    def look(u: torch.Tensor) -> torch.Tensor:
        seen.append(memory.is_checkpointed())
        return u.sin()

    u = torch.ones(3, requires_grad=True)
    checkpoint(look, u, use_reentrant=False).sum().backward()
    look(u)
    with torch.autograd.graph.save_on_cpu():
        look(u)
    assert seen == [True, True, False, False]
