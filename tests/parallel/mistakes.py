"""Cases that must end in an error on every rank, and in none of them in a hang."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from ssdgen.mamba2_ops import Mamba2, mamba_chunk_scan_combined, parallel
from ssdgen.mamba2_ops.tensor_parallel import SplitHeads
from tests.parallel.processes import Case


def operands(nheads: int = 2, headdim: int = 4, dtype: torch.dtype = torch.float32, batch: int = 1) -> dict[str, Any]:
    x, B = torch.ones(batch, 5, nheads, headdim, dtype=dtype), torch.ones(batch, 5, 1, 3, dtype=dtype)
    return {"x": x, "dt": torch.ones(batch, 5, nheads), "A": -torch.ones(nheads), "B": B, "C": B, "chunk_size": 16}


def _states(nheads: int = 2) -> torch.Tensor:
    return torch.zeros(1, nheads, 4, 3)


# what rank 1 does differently, of two or three; the names of the errors on rank 0 and on rank 1, and what each says
Change = Callable[[dict[str, Any]], dict[str, Any]]
DIFFERENT: dict[str, tuple[Change, str, str]] = {
    "heads": (lambda given: operands(nheads=3), "RankMismatchError", "disagree on nheads: 2 on rank 0, 3 on rank 1"),
    "headdim": (
        lambda given: operands(headdim=8),
        "RankMismatchError",
        "disagree on headdim: 4 on rank 0, 8 on rank 1",
    ),
    "dtype": (
        lambda given: operands(dtype=torch.float16),
        "RankMismatchError",
        "torch.float32 on rank 0, torch.float16",
    ),
    "batch": (lambda given: operands(batch=2), "RankMismatchError", "disagree on batch"),
    "gate": (lambda given: {**given, "z": given["x"]}, "RankMismatchError", "disagree on z"),
    "limits": (
        lambda given: {**given, "dt_limit": (0.0, 2.0)},
        "RankMismatchError",
        "upper dt_limit: inf on rank 0, 2.0",
    ),
    "final states": (lambda given: {**given, "return_final_states": True}, "RankMismatchError", "return_final_states"),
    "gradients": (lambda given: {**given, "A": given["A"].requires_grad_()}, "RankMismatchError", "on gradients"),
    "initial states": (lambda given: {**given, "initial_states": _states()}, "RankMismatchError", "rank 1 was given"),
    "halo instead": (lambda given: {"halo": True}, "RankMismatchError", "mamba_chunk_scan_combined on rank 0, halo"),
    "dstate": (
        lambda given: {**given, "B": given["B"][..., :2], "C": given["C"][..., :2]},
        "RankMismatchError",
        "disagree on dstate: 3 on rank 0, 2 on rank 1",
    ),
    "seq_idx": (
        lambda given: {**given, "seq_idx": torch.zeros(1, 5, dtype=torch.int32)},
        "RankMismatchError",
        "disagree on seq_idx",
    ),
}
# what is wrong on rank 1 alone, which says so
ALONE: dict[str, tuple[Change, str, str]] = {
    "shape": (lambda given: {**given, "A": -torch.ones(7)}, "ShapeError", "A has shape [7]"),
    "no tokens": (lambda given: {**given, "x": given["x"][:, :0]}, "ShapeError", "at least 1 in seqlen"),
    "no tensor": (lambda given: {**given, "x": [1.0]}, "OperandError", "x is a list"),
    "device": (lambda given: {**given, "x": given["x"].to("meta")}, "GroupError", "are on meta"),
    "devices": (lambda given: {**given, "dt": given["dt"].to("meta")}, "DeviceError", "dt is on meta"),
}
# a halo of [1, 5, 3] with width 4 on rank 0; what rank 1 gives instead
HALO: dict[str, tuple[dict[str, Any], str, str]] = {
    "width": ({"width": 3}, "RankMismatchError", "disagree on width: 4 on rank 0, 3 on rank 1"),
    "channels": ({"x": torch.ones(1, 5, 2)}, "RankMismatchError", "disagree on size 1: 3 on rank 0, 2 on rank 1"),
    "axes": ({"x": torch.ones(1, 5, 3, 1)}, "RankMismatchError", "disagree on dimensions: 3 on rank 0, 4 on rank 1"),
    "dtype": ({"x": torch.ones(1, 5, 3).double()}, "RankMismatchError", "torch.float32 on rank 0, torch.float64"),
    "initial": ({"initial": torch.ones(1, 3, 3)}, "RankMismatchError", "rank 1 was given an initial state"),
    "no tokens": ({"x": torch.ones(1, 0, 3)}, "ShapeError", "x has no tokens; give every rank at least one"),
    "seq_idx": ({"seq_idx": torch.ones(1, 4)}, "ShapeError", "seq_idx has shape [1, 4]; it must be [1, 5]"),
    "device": ({"x": torch.ones(1, 5, 3, device="meta")}, "GroupError", "are on meta"),
}
# of a layer with the sequence on the ranks, and of one whose heads are: what rank 1 does differently
LAYER: dict[str, tuple[Callable[[Mamba2], Any], str, str]] = {
    "width of the input": (lambda layer: torch.ones(1, 5, 7), "ShapeError", "with d_model 16"),
    "width of the convolution": (
        lambda layer: _changed(layer, "conv1d", "weight", torch.ones(60, 1, 3)),
        "RankMismatchError",
        "disagree on width: 4 on rank 0, 3 on rank 1",
    ),
    "channels of the convolution": (
        lambda layer: _changed(layer, "conv1d", "weight", torch.ones(61, 1, 4)),
        "ShapeError",
        "conv1d_weight has 61 channels",
    ),
    "dtype of the bias": (
        lambda layer: _changed(layer, "conv1d", "bias", torch.ones(60, dtype=torch.int32)),
        "DtypeError",
        "bias is torch.int32",
    ),
}
SPLIT: dict[str, tuple[dict[str, Any], torch.Tensor, str, str]] = {
    "heads": ({"expand": 4}, torch.ones(1, 5, 16), "RankMismatchError", "disagree on d_inner: 32 on rank 0, 64"),
    "heads that do not divide": (
        {"d_ssm": 12, "ngroups": 1, "rmsnorm": False},
        torch.ones(1, 5, 16),
        "ShapeError",
        "must be divisible by the mesh's 2",
    ),
    "dtype": ({"dtype": torch.float64}, torch.ones(1, 5, 16), "RankMismatchError", "torch.float32 on rank 0"),
    "tokens": ({}, torch.ones(1, 6, 16), "RankMismatchError", "disagree on size 1: 5 on rank 0, 6 on rank 1"),
    "dtype of the input": ({}, torch.ones(1, 5, 16).double(), "RankMismatchError", "disagree on dtype"),
}
# what every rank does, and says
EVERYWHERE: dict[str, tuple[Change, str, str]] = {
    "varlen states": (
        lambda given: {**given, "cu_seqlens": torch.tensor([0, 15]), "return_varlen_states": True},
        "OptionError",
        "may end on any rank",
    ),
    "cu_seqlens of a shard": (
        lambda given: {**given, "cu_seqlens": torch.tensor([0, 5])},
        "SequenceError",
        "x has seqlen 15",
    ),
    "another device": (lambda given: {**given, "x": given["x"].to("meta")}, "GroupError", "on meta"),
    "no group": (lambda given: {**given, "process_group": "gloo"}, "GroupError", "is a str"),
    "halo": (lambda given: {"halo": True, "width": 0}, "OptionError", "width is 0"),
}


def _call(group: Any, given: dict[str, Any]) -> Any:
    if given.pop("halo", False):
        return parallel.halo(torch.ones(1, 5, 3), given.get("width", 4), group)
    return mamba_chunk_scan_combined(**{"process_group": group, **given})


def different(name: str, group: dist.ProcessGroup) -> Any:
    given = operands()
    change = (DIFFERENT | ALONE)[name][0]
    return _call(group, change(given) if dist.get_rank(group) == 1 else given)


def everywhere(name: str, group: dist.ProcessGroup) -> Any:
    return _call(group, EVERYWHERE[name][0](operands()))


def halo(name: str, group: dist.ProcessGroup) -> Any:
    given: dict[str, Any] = {"x": torch.ones(1, 5, 3), "width": 4}
    given |= HALO[name][0] if dist.get_rank(group) == 1 else {}
    return parallel.halo(process_group=group, **given)


def _layer(**sizes: Any) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(16, **{"d_state": 6, "headdim": 4, "expand": 2, "ngroups": 2, "chunk_size": 16, **sizes})


def _changed(layer: Mamba2, part: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    layer.get_submodule(part).register_parameter(name, parameter)
    return torch.ones(1, 5, 16)


def layer(name: str, group: dist.ProcessGroup) -> Any:
    made = _layer(ngroups=3, headdim=4, d_ssm=24).requires_grad_(False)
    u = LAYER[name][0](made) if dist.get_rank(group) == 1 else torch.ones(1, 5, 16)
    return made(u, process_group=group)


def split(name: str, group: dist.ProcessGroup) -> Any:
    sizes, u, *_ = SPLIT[name]
    mine = dist.get_rank(group) == 1
    mesh = DeviceMesh.from_group(group, "cpu")
    made = parallelize_module(nn.Sequential(_layer(**(sizes if mine else {}))), mesh, {"0": SplitHeads()})
    return made(u if mine else torch.ones(1, 5, 16))


def twice(group: dist.ProcessGroup) -> Any:
    """A right call after a wrong one: nothing is left in the way."""
    wrong = operands(nheads=3 if dist.get_rank(group) else 2)
    try:
        _call(group, wrong)
    except ValueError:
        return _call(group, operands()).sum().item()
    return None


def not_a_member(group: dist.ProcessGroup) -> Any:
    return _call(dist.new_group([0, 1]), operands())


def two_dimensions(group: dist.ProcessGroup) -> Any:
    return _call(init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence")), operands())


def silent(group: dist.ProcessGroup) -> Any:
    """Rank 1 never calls."""
    impatient = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    return _call(impatient, operands()) if dist.get_rank() == 0 else None


CASES: dict[str, tuple[int, Case]] = {
    **{f"different {name}": (3, partial(different, name)) for name in DIFFERENT},
    **{f"alone {name}": (3, partial(different, name)) for name in ALONE},
    **{f"halo that differs, {name}": (2, partial(halo, name)) for name in HALO},
    **{f"layer, {name}": (2, partial(layer, name)) for name in LAYER},
    **{f"split, {name}": (2, partial(split, name)) for name in SPLIT},
    **{f"everywhere {name}": (3, partial(everywhere, name)) for name in EVERYWHERE},
    "twice": (2, twice),
    "not a member": (4, not_a_member),
    "two dimensions": (4, two_dimensions),
    "silent": (4, silent),
}
