"""Tuned records: which config is best for a problem on a GPU, and how that is known.  JSON <-> Record -> store"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..plan.problem import Problem
from . import schema

FORWARD: Literal["forward"] = "forward"
BACKWARD: Literal["backward"] = "backward"
DECODE: Literal["decode"] = "decode"

REPLAY: Literal["replay"] = "replay"
CONV_UPDATE: Literal["conv_update"] = "conv_update"

Direction = Literal[
    "forward",
    "backward",
    "decode",
    "replay",
    "conv_forward",
    "conv_backward",
    "conv_tile_forward",
    "conv_tile_backward",
    "conv_update",
    "norm_forward",
    "norm_backward",
]
# of a convolution whose channels lie side by side or, tile, whose positions do; of new tokens one by one
CONV: tuple[Direction, ...] = (
    "conv_forward",
    "conv_backward",
    "conv_tile_forward",
    "conv_tile_backward",
    CONV_UPDATE,
)
NORM: tuple[Direction, ...] = ("norm_forward", "norm_backward")
DIRECTIONS: tuple[Direction, ...] = (FORWARD, BACKWARD, DECODE, REPLAY, *CONV, *NORM)

MEASURED: Literal["measured"] = "measured"
PREDICTED: Literal["predicted"] = "predicted"


class RecordError(ValueError):
    """A record, or a file of records, is not what it must be; the message says where."""


@dataclass(frozen=True)
class Record:
    """The best config known for one pass of one problem on one GPU.

    config: as the space of the pass makes it (plan.space, plan.backward_space, plan.*_space).
    provenance: timed on that GPU, or predicted from code compiled for it.
    time_us, spread_us, default_us: GPU time of a call, its interquartile range and the default config's time,
    microseconds; None where it was not found out.  error, error_limit: relative to float64, of y or of the gradient
    that comes nearest to its limit; None if predicted.
    fingerprint: meaning of each emitted kernel that ran, {name: hex}.  space: fingerprint of the search space.
    direction: the pass; a record in a file that does not say is of the forward pass.
    Errors: RecordError for a measured record that was never found right.
    """

    problem: Problem
    config: dict[str, Any]
    provenance: Literal["measured", "predicted"]
    time_us: float
    spread_us: float | None
    default_us: float | None
    error: float | None
    error_limit: float | None
    fingerprint: dict[str, str]
    space: str
    direction: Direction = FORWARD

    def __post_init__(self) -> None:
        if self.provenance == MEASURED:
            if self.error is None or self.error_limit is None:
                raise RecordError(f"a measured record needs its error and the limit ({self.problem})")
            # the other way round would let a NaN through
            if not self.error <= self.error_limit:
                raise RecordError(f"error {self.error:g} is over the limit {self.error_limit:g} ({self.problem})")

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in a file: times to 10 ns, errors to three digits, so that diffs stay readable."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["problem"] = self.problem.to_json()
        for name in ("time_us", "spread_us", "default_us"):
            data[name] = None if data[name] is None else round(data[name], 2)
        data["error"] = None if self.error is None else float(f"{self.error:.3g}")
        if self.direction == FORWARD:
            # as it was before there were others, so that files and those who read them stay as they are
            del data["direction"]
        return data


@dataclass(frozen=True)
class Identity:
    """A GPU as its folder has it.

    arch: "sm90"; gpu: ssdgen's name, "h200"; name: the driver's, "NVIDIA H200"; driver, torch, triton: versions with
    which its records were made, None if predicted without; clocks_mhz: {"sm": ..., "memory": ...} while measuring.
    """

    arch: str
    gpu: str
    name: str
    driver: str | None
    torch: str | None
    triton: str | None
    clocks_mhz: dict[str, float]

    @property
    def folder(self) -> str:
        return f"{self.arch}_{self.gpu}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "schema": schema.VERSION}


def identity_from_json(data: Any, source: str) -> Identity:
    """A parsed gpu.json.  source: the file, for messages.  Errors: RecordError."""
    if problem := schema.problem_with(data, schema.IDENTITY):
        raise RecordError(f"{source}: {problem}")
    return Identity(**{name: value for name, value in data.items() if name != "schema"})


def kernel_of(direction: Direction) -> str:
    """What a file of records of one pass is called, without its ending, and says that it is of."""
    return f"ssd_{direction}"


def records_from_json(data: Any, source: str, direction: Direction = FORWARD) -> tuple[Record, ...]:
    """A parsed file of records of one pass.  source: the file, for messages.  Errors: RecordError."""
    if problem := schema.problem_with(data, schema.RECORDS):
        raise RecordError(f"{source}: {problem}")
    if data["kernel"] != kernel_of(direction):
        raise RecordError(f"{source}: kernel is {data['kernel']!r}; it must be {kernel_of(direction)!r}")
    found = []
    for index, entry in enumerate(data["records"]):
        try:
            found.append(Record(**{**entry, "problem": Problem(**entry["problem"])}))
        except ValueError as error:
            raise RecordError(f"{source}: records[{index}]: {error}") from error
        if (given := found[-1].direction) != direction:
            raise RecordError(f"{source}: records[{index}] is of the {given} pass; this file is of the {direction}")
    return tuple(found)


def records_to_json(records: Iterable[Record], direction: Direction = FORWARD) -> dict[str, Any]:
    """A file of records of one pass, sorted by problem."""
    ordered = sorted(records, key=lambda record: record.problem)
    return {
        "kernel": kernel_of(direction),
        "records": [record.to_json() for record in ordered],
        "schema": schema.VERSION,
    }


def better(old: Record, new: Record, current: dict[str, str]) -> Record:
    """Which of two records for one pass of one problem to keep.

    current: {kernel: fingerprint} of all emitted kernels of today, with which `new` was made.
    Measured beats predicted.  Between measured ones the faster wins, unless the old one was made for other kernels.
    Between predicted ones the new: its model is today's, and the old config was among its candidates.
    """
    if old.provenance != new.provenance:
        return old if old.provenance == MEASURED else new
    if old.provenance == PREDICTED or is_stale(old, current):
        return new
    return old if old.time_us <= new.time_us else new


def is_stale(record: Record, current: dict[str, str]) -> bool:
    """Whether a kernel that the record names is gone or has another meaning in `current`."""
    return any(current.get(kernel) != value for kernel, value in record.fingerprint.items())
