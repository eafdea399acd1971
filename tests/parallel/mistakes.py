"""Cases that must end in an error on every rank, and in none of them in a hang."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ssdgen.mamba2_ops import mamba_chunk_scan_combined, parallel
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
}
# what is wrong on rank 1 alone, which says so
ALONE: dict[str, tuple[Change, str, str]] = {
    "shape": (lambda given: {**given, "A": -torch.ones(7)}, "ShapeError", "A has shape [7]"),
    "no tokens": (lambda given: {**given, "x": given["x"][:, :0]}, "ShapeError", "at least 1 in seqlen"),
    "no tensor": (lambda given: {**given, "x": [1.0]}, "OperandError", "x is a list"),
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
    **{f"everywhere {name}": (3, partial(everywhere, name)) for name in EVERYWHERE},
    "twice": (2, twice),
    "not a member": (4, not_a_member),
    "two dimensions": (4, two_dimensions),
    "silent": (4, silent),
}
