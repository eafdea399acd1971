"""What records say, row by row, beside what the hardware allows.  records of a GPU -> Row -> page

The layer is the one that is tuned: a skip per head, a bias on dt, softplus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..gpus import Gpu
from ..pack.records import BACKWARD, Direction, Record
from ..plan.problem import Problem
from ..spec import roofline
from ..spec.layer import Layer
from ..tune.shapes import name_of

# tokens per chunk for the least FLOPs: they grow with it, and a smaller one leaves the tensor cores idle
CHUNK = 64

_LAYER = Layer(skip="head", dt_bias=True, dt_softplus=True)


@dataclass(frozen=True)
class Row:
    """One record.

    time_us, default_us: microseconds of a call with the tuned and with the built-in config, the latter None if it did
    not run.  floor_us: the least time that bytes or products take.  intensity: least FLOPs per least byte; tflops:
    these FLOPs over the time.
    """

    shape: str
    direction: Direction
    problem: Problem
    schedule: str
    measured: bool
    time_us: float
    default_us: float | None
    error: float | None
    error_limit: float | None
    floor_us: float
    intensity: float
    tflops: float

    @property
    def speedup(self) -> float | None:
        return self.default_us / self.time_us if self.default_us else None

    @property
    def share(self) -> float:
        """Of the floor: 1 is as fast as the hardware allows."""
        return self.floor_us / self.time_us

    @property
    def used(self) -> float | None:
        """Share of the limit that the error takes; None if there is none, as for a prediction."""
        return self.error / self.error_limit if self.error is not None and self.error_limit else None


def rows(records: Iterable[Record], gpu: Gpu) -> list[Row]:
    """The rows of a table, forward passes first, shapes by size."""
    ordered = sorted(records, key=lambda record: (record.direction == BACKWARD, record.problem))
    return [_row(record, gpu) for record in ordered]


def _row(record: Record, gpu: Gpu) -> Row:
    p = record.problem
    least = roofline.floor(
        _LAYER,
        p.batch,
        p.seqlen,
        p.nheads,
        p.headdim,
        p.dstate,
        p.ngroups,
        p.element_bytes,
        CHUNK,
        gpu.copy_tbs,
        gpu.bf16_tflops,
        backward=record.direction == BACKWARD,
    )
    return Row(
        shape=name_of(p),
        direction=record.direction,
        problem=p,
        schedule=record.config["schedule"],
        measured=record.error is not None,
        time_us=record.time_us,
        default_us=record.default_us,
        error=record.error,
        error_limit=record.error_limit,
        floor_us=least.us,
        intensity=least.flops / least.bytes,
        tflops=least.flops / record.time_us / 1e6,
    )
