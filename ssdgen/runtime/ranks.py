"""The ranks that share a sequence, and whether they make the same call.  process group or mesh -> Ranks -> exchange

Ranks that disagree would wait for each other forever, or read each other's bytes as something else.  So each call
begins with a row of integers from every rank.  On the CPU all rows are read and compared every time.  On a GPU reading
waits for the device: there they are read the first time that a rank makes such a call, and always with
SSDGEN_CHECK_RANKS=1.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from struct import pack, unpack
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import CommunicationError, GroupError, RankMismatchError, SsdError

# integers in a row, for calls of every kind: rows must have one size before anything is known of the others
_WIDTH = 20
_FAILED, _SEQLEN = "failed", "seqlen"
# the first rank alone may have one
_INITIAL = "initial"
_MAY_DIFFER = (_FAILED, _SEQLEN, _INITIAL)

# calls that all ranks of a group are known to make alike
_agreed: weakref.WeakKeyDictionary[Any, set[tuple]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Ranks:
    """This rank among those of its group.  rank: 0 to size - 1, in the order of the sequence; device: what it sends."""

    group: Any
    rank: int
    size: int
    device: torch.device

    def place(self, rank: int) -> int:
        """The number of a rank of this group in the whole job, which is what torch sends to."""
        return dist.get_global_rank(self.group, rank)


def ranks_of(process_group: Any, operand: Any) -> Ranks:
    """The ranks of a ProcessGroup or of a DeviceMesh with one dimension, that send what is on the device of `operand`.

    Errors: GroupError.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise GroupError(
            "process_group was given before torch.distributed.init_process_group was called; call it first"
        )
    group = _of_mesh(process_group) if _is_mesh(process_group) else process_group
    if group is dist.GroupMember.NON_GROUP_MEMBER or isinstance(group, int):
        raise GroupError(f"rank {dist.get_rank()} is not in the process group; call it on the ranks of the group alone")
    if not isinstance(group, dist.ProcessGroup):
        raise GroupError(
            f"process_group is a {type(group).__name__}; it must be a torch.distributed.ProcessGroup or a DeviceMesh"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise GroupError(f"rank {dist.get_rank()} is not in the process group; call it on the ranks of the group alone")
    backends = dict(part.partition(":")[::2] for part in dist.get_backend_config(group).split(","))
    # what is no tensor, or lies elsewhere, is a mistake that the other ranks are still told of
    reached = Ranks(group, rank, dist.get_world_size(group), torch.device("cpu" if "cpu" in backends else "cuda"))
    if not isinstance(operand, Tensor):
        return reached
    device = operand.device
    if device.type not in backends or (device.type == "cuda" and backends["cuda"] == "gloo"):
        there = ", ".join(f"{backend} for {kind}" for kind, backend in backends.items())
        error = GroupError(
            f"the operands are on {device}, and the process group has {there}; make one with nccl for cuda"
        )
        tell(reached, error)
    return replace(reached, device=device)


def _is_mesh(process_group: Any) -> bool:
    return hasattr(process_group, "get_group") and hasattr(process_group, "mesh_dim_names")


def _of_mesh(mesh: Any) -> Any:
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names or tuple(range(mesh.ndim))
        raise GroupError(f"the mesh has {mesh.ndim} dimensions, {names}; give the one that is meant: mesh[name]")
    if mesh.get_coordinate() is None:
        raise GroupError(f"rank {dist.get_rank()} is not in the mesh; call it on the ranks of the mesh alone")
    return mesh.get_group()


@contextmanager
def talking(ranks: Ranks, what: str) -> Iterator[None]:
    """Turn what torch says of a broken exchange into a CommunicationError that says which one broke."""
    try:
        yield
    except SsdError:
        raise
    except RuntimeError as error:
        raise CommunicationError(
            f"rank {ranks.rank} of {ranks.size} could not exchange {what}: another rank has died, raised an error or "
            f"made another call ({error})"
        ) from error


def tell(ranks: Ranks, error: Exception) -> NoReturn:
    """Raise an error of this rank alone; the others, who are in their next `Agreement`, are told of it before."""
    Agreement(ranks, {}, error)
    raise error


@contextmanager
def told(process_group: Any, operand: Any) -> Iterator[None]:
    """What is raised inside is told to the other ranks; None: there are no others."""
    try:
        yield
    except Exception as error:
        if process_group is None:
            raise
        tell(ranks_of(process_group, operand), error)


class Agreement:
    """A row of integers from every rank, on its way while other work goes on."""

    def __init__(self, ranks: Ranks, call: dict[str, int], failed: Exception | None) -> None:
        """call: what must agree, by name; "seqlen" and "initial" may differ.  failed: what is wrong on this rank alone.

        Errors: `failed`, after the other ranks have been told of it; RankMismatchError; CommunicationError.
        """
        assert len(call) < _WIDTH
        call = {_FAILED: int(failed is not None), **call}
        self._ranks, self._names, values = ranks, tuple(call), list(call.values())
        self._own = torch.tensor([*values, *[0] * (_WIDTH - len(values))]).to(ranks.device, non_blocking=True)
        self._rows = self._own.new_empty(ranks.size, _WIDTH)
        with talking(ranks, "sizes"):
            self._work = dist.all_gather(list(self._rows.unbind(0)), self._own, group=ranks.group, async_op=True)
        known = _agreed.setdefault(ranks.group, set())
        key = tuple((name, value) for name, value in call.items() if name not in _MAY_DIFFER)
        asked = ranks.device.type == "cpu" or os.environ.get("SSDGEN_CHECK_RANKS") == "1"
        if failed is not None or asked or key not in known:
            self._compare(failed)
            known.add(key)

    @property
    def seqlens(self) -> Tensor:
        """Tokens of each rank, [size], int64, on the device."""
        self.wait()
        return self._rows[:, self._names.index(_SEQLEN)]

    def wait(self) -> None:
        if self._work is not None:
            with talking(self._ranks, "sizes"):
                self._work.wait()
            self._work = None

    def _compare(self, failed: Exception | None) -> None:
        self.wait()
        if failed is not None:
            raise failed
        columns = dict(zip(self._names, self._rows.T.tolist(), strict=False))
        if any(columns[_FAILED]):
            raise RankMismatchError(f"rank {columns[_FAILED].index(1)} raised an error of its own: see what it says")
        for name, values in columns.items():
            if name not in _MAY_DIFFER and len(set(values)) > 1:
                other = next(rank for rank, value in enumerate(values) if value != values[0])
                shards = ", with shards that differ in seqlen alone" if _SEQLEN in self._names else ""
                raise RankMismatchError(
                    f"ranks disagree on {name}: {_shown(name, values[0])} on rank 0, {_shown(name, values[other])} on "
                    f"rank {other}; all ranks must make the same call{shards}"
                )
        if any(columns.get(_INITIAL, ())[1:]):
            other = next(rank for rank, value in enumerate(columns[_INITIAL]) if rank and value)
            raise RankMismatchError(f"rank {other} was given an initial state; the first rank alone may have one")


# what the integers of some columns stand for
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
CALLS = ("mamba_chunk_scan_combined", "halo", "SplitHeads", "a split Mamba2")


def _shown(name: str, value: int) -> str:
    if name == "dtype":
        return str(DTYPES[value])
    if name.endswith("dt_limit"):
        return str(as_float(value))
    return CALLS[value] if name == "call" else str(value)


def as_int(value: float) -> int:
    """The bits of a number as what a row holds."""
    return unpack("q", pack("d", float(value)))[0]


def as_float(bits: int) -> float:
    return unpack("d", pack("q", bits))[0]
