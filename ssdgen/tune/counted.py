"""Totals of one launch, and the bytes of its tensors.  Launch -> Work -> work, backward_work, model"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .compile import Launch


@dataclass(frozen=True)
class Work:
    """Totals of one launch.

    ctas: programs; consumers: groups of warps of each that go their own way, where a program is specialised by warps,
    else 0; steps: trips of each group, or of the whole program, through its loop, one after the other; chain: dependent
    matrix products of a trip.
    memory_bytes: every operand once; loaded_bytes: what all CTAs load, from the L2 cache mostly.
    flops: of matrix products on padded tiles; exps: exponentials; entries: of tiles that pointwise formulas go through.
    rows: of the tile that a matrix product works on.
    kept_bytes: of memory_bytes, those of states that one launch leaves for another; kept_at_once: of all such states
    between the launches of a slice.
    """

    ctas: int
    steps: int
    chain: int
    memory_bytes: float
    loaded_bytes: float
    flops: float
    exps: float
    entries: float
    rows: int
    consumers: int = 0
    kept_bytes: float = 0.0
    kept_at_once: float = 0.0

    @property
    def teams(self) -> int:
        """Groups of warps of a program that wait for themselves alone."""
        return max(1, self.consumers)

    @property
    def trips(self) -> int:
        """Of all teams together."""
        return self.ctas * self.steps * self.teams


def moving(ctas: int, steps: int, memory: float, rows: int) -> Work:
    """A kernel that loads, adds and stores; it multiplies nothing.  memory: bytes."""
    return Work(ctas, steps, 0, memory, memory, 0.0, 0.0, 0.0, rows)


def memory_of(launch: Launch) -> float:
    """Bytes of the tensors that a launch reads or writes, each once; of those behind a descriptor too."""
    return float(sum(bytes_of(value) for value in launch.args.values()))


def bytes_of(value: Any) -> int:
    """Bytes of an argument that is a tensor, or the descriptor of one; 0 of others."""
    tensor = getattr(value, "base", value)
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
