"""The least time of a call on a GPU: bytes over bandwidth or FLOPs over rate.  counts -> microseconds"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import counts
from .dims import BATCH, CHUNK, DSTATE, HEADDIM, NGROUPS, NHEADS, SEQLEN
from .layer import Layer


@dataclass(frozen=True)
class Floor:
    """us: least time, microseconds; binds: what takes it; bytes, flops: least work; bytes_us, flops_us: their times."""

    us: float
    binds: Literal["bytes", "flops"]
    bytes: float
    flops: float
    bytes_us: float
    flops_us: float


def floor(
    layer: Layer,
    batch: int,
    seqlen: int,
    nheads: int,
    headdim: int,
    dstate: int,
    ngroups: int,
    element_bytes: int,
    chunk: int,
    copy_tbs: float,
    bf16_tflops: float,
    final_states: bool = False,
    backward: bool = False,
) -> Floor:
    """Least time of the forward or of the backward pass.

    element_bytes: of x, dt, B, C and y; chunk: tokens per chunk, which sets the FLOPs; copy_tbs: bandwidth in TB/s
    (1e12 bytes) and bf16_tflops: rate of dense matrix products in TFLOP/s, both as measured; final_states: they are
    written too, or their adjoints read. Raises ValueError for a size or a rate that is not positive.
    """
    sizes = {
        BATCH: batch,
        SEQLEN: seqlen,
        NHEADS: nheads,
        HEADDIM: headdim,
        DSTATE: dstate,
        NGROUPS: ngroups,
        CHUNK: chunk,
        counts.ELEMENT_BYTES: element_bytes,
    }
    rates = {"copy_tbs": copy_tbs, "bf16_tflops": bf16_tflops}
    given = {**{str(size): value for size, value in sizes.items()}, **rates}
    if wrong := [f"{name} is {value}" for name, value in given.items() if not value > 0]:
        raise ValueError(f"{', '.join(wrong)}; every size and rate must be positive")
    least = counts.at(counts.total_bytes(layer, final_states, backward), sizes)
    work = counts.at(counts.total_flops(layer, backward), sizes)
    bytes_us, flops_us = least / copy_tbs / 1e6, work / bf16_tflops / 1e6
    return Floor(
        us=max(bytes_us, flops_us),
        binds="bytes" if bytes_us >= flops_us else "flops",
        bytes=least,
        flops=work,
        bytes_us=bytes_us,
        flops_us=flops_us,
    )
