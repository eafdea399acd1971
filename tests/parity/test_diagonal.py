"""Scores whose diagonal is apart: its kernel, and what the launcher gives to it and to the walk that reads it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from ssdgen.mamba2_ops import fallback
from ssdgen.mamba2_ops.kernels import diagonal_products
from ssdgen.plan import catalogue, interpret, ir
from ssdgen.spec.layer import Layer
from tests.parity import configs
from tests.parity.cases import Case, draw
from tests.parity.test_backward import DEVICES
from tests.parity.test_consumers import BASE, config

WAYS = {
    "prepared": config(2, terms="apart"),
    "ahead": config(1, terms="apart", ahead=True),
    "steps aside": config(1, terms="apart", ahead=True, aside=True),
    "joined": config(1, segment=64, joined=True, terms="apart", ahead=True, aside=True),
    "passed": config(2, segment=128, terms="apart"),
}
SKIPS = {"none": (), "of heads": ("D",), "of channels": ("D_headdim",)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("seqlen", "dstate"), [(1, 16), (40, 24), (64, 64)])
def test_products(seqlen: int, dstate: int, dtype: torch.dtype, device: str, seed: int) -> None:
    """Slices of one tensor, a last chunk that is not full, and a dstate that is no power of two."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(2, seqlen, 3, 2 * dstate, generator=generator).to(dtype).to(device)
    B, C = wide.split(dstate, dim=-1)
    padded = -(-seqlen // 32) * 32
    made = torch.full((2, 3, padded), torch.nan, device=device)
    names = {"ngroups": 3, "padded": padded, "CHUNK": 32}
    grid = diagonal_products.grid(batch=2, **names)
    strides = (*B.stride()[:3], *C.stride()[:3])
    diagonal_products.diagonal_products[grid](
        B, C, made, *strides, seqlen=seqlen, DSTATE=dstate, BLOCK_N=max(16, 1 << (dstate - 1).bit_length()), **names
    )
    exact = torch.einsum("btgn,btgn->bgt", B.double(), C.double())
    torch.testing.assert_close(made[..., :seqlen].double(), exact, rtol=1e-5, atol=1e-5)
    assert not made[..., seqlen:].any()


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_plans_interpreted_with_what_they_would_get(skip: tuple[str, ...], how: dict[str, Any]) -> None:
    """Every launch in float64: y of the layer, whether D is of heads, which the diagonal takes in, or of channels."""
    case = replace(BASE, seqlen=193, nheads=4, ngroups=2, dstate=16, options=(*skip, "dt_bias", "dt_softplus"))
    plan = configs.launches(how, draw(case).on("meta"))
    names = [launch.kernel.__name__ for launch in plan.launches]
    assert names.count("diagonal_products") == 1 and "apart" in names[-1]
    by_head = plan.launches[-1].args["D_BY_HEAD"], plan.launches[-1].args["HAS_D"]
    assert by_head == ("D" in skip, "D_headdim" in skip)
    call = draw(case)
    given = {
        name: value.double() for name, value in {**call.operands, **call.options}.items() if torch.is_tensor(value)
    }
    tensors: dict[str, Any] = {name: given.get(name) for name in plan.tensors}
    for name, (shape, _) in {**plan.buffers, **plan.scratch}.items():
        tensors[name] = torch.full(shape, torch.nan, dtype=torch.float64)
    for launch in plan.launches:
        _interpret(launch, tensors, case)
    exact, _ = fallback.forward(
        **given, z=None, initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=True,
        dt_limit=(0.0, float("inf")), final_states=False, state_dtype=None, **({} if skip else {"D": None}),
    )  # fmt: skip
    torch.testing.assert_close(tensors["y"], exact, rtol=1e-10, atol=1e-10)


def _interpret(launch: Any, tensors: dict[str, Any], case: Case) -> None:
    kernel = kernels()[launch.kernel.__name__]
    names = {"batch": case.batch, "nheads": case.nheads, "ngroups": case.ngroups, "nsegments": launch.grid[1]}
    names |= {"padded": -(-case.seqlen // 64) * 64, **launch.args}
    slots = {argument.rpartition("_")[0]: slot for argument, slot in launch.slots.items()}
    arrays: dict[str, Any] = {}
    for tensor in kernel.tensors:
        value = tensors.get(slots.get(tensor.name, ""))
        if value is not None and (not tensor.flag or names[tensor.flag]):
            extents = tuple(names[dim] if dim in names else int(dim) for dim in tensor.dims)
            # axes of one entry, and states as one number after the other, come and go
            arrays[tensor.name] = value.view(extents).numpy()
        else:
            arrays[tensor.name] = None
    sizes = {name: names[name] for name in kernel.sizes}
    flags = {name: bool(names[name]) for name in kernel.flags}
    reals = {name: float(names[name]) for name in kernel.reals}
    interpret.run(kernel, arrays, sizes, {name: names[name] for name in kernel.constants}, flags, reals)
    for tensor in kernel.tensors:
        if tensor.out and arrays[tensor.name] is not None and tensor.name != "summary":
            assert np.isfinite(arrays[tensor.name]).all(), tensor.name


@cache
def kernels() -> dict[str, ir.Kernel]:
    return {kernel.name: kernel for kernel in catalogue.kernels(Layer())}
