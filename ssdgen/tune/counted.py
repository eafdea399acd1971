"""Totals of one launch, and the bytes of its tensors.  Launch -> Work -> work, backward_work, model"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .compile import Launch


@dataclass(frozen=True)
class Work:
    """Totals of one launch.

    ctas: programs; steps: trips of each through its loop, one after the other; chain: dependent matrix products a trip.
    memory_bytes: every operand once; loaded_bytes: what all CTAs load, from the L2 cache mostly.
    flops: of matrix products on padded tiles; exps: exponentials.
    rows: of the tile that a matrix product works on.
    """

    ctas: int
    steps: int
    chain: int
    memory_bytes: float
    loaded_bytes: float
    flops: float
    exps: float
    rows: int


def memory_of(launch: Launch) -> float:
    """Bytes of the tensors that a launch reads or writes, each once; of those behind a descriptor too."""
    tensors = (getattr(value, "base", value) for value in launch.args.values())
    return float(sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)))
