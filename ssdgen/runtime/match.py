"""Which records fit a GPU and a problem, and which of them best.  Gpu, Problem, records -> Record.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from typing import Any

from . import part_problem
from .problem import Problem
from .records import FORWARD, GpuRecords, Record

_SAYS_LITTLE = re.compile(r"nvidia|geforce|tesla|amd|instinct|radeon|graphics|pcie|sxm\d*|\d+gb|hbm\w*")

# headdim and dstate decide which tiles fit and are quick; the rest only says how many of them there are
_TILE_WEIGHT = 16.0

# of headdim, what one of the walks has that a program walks back
_WALK_ROWS = 64


@dataclass(frozen=True)
class Gpu:
    """A device as the look-up sees it.  name: the driver's; arch: "sm90", "gfx942"; sms: multiprocessors."""

    name: str
    arch: str
    sms: int


def is_same(gpu: Gpu, records: GpuRecords) -> bool:
    """Whether the records are of this very GPU.

    The vendor, the memory and the form of the board may be left out: "H200" means "NVIDIA H200", "A100" means
    "NVIDIA A100-SXM4-80GB".  "L40" does not mean "L40S", nor "RTX 4090" an "RTX 4090 Laptop GPU".
    """
    device, recorded = _words(gpu.name), _words(records.name)
    if gpu.arch != records.arch or not recorded <= device:
        return False
    return all(_SAYS_LITTLE.fullmatch(word) for word in device - recorded) and not _says_nothing(recorded)


def nearest(
    problem: Problem, gpus: Iterable[GpuRecords], measured: bool, direction: str = FORWARD
) -> tuple[GpuRecords, Record] | None:
    """The record to use for a pass of the problem and whose it is, or None.

    measured: only measured ones, or only predicted.  direction: one of DIRECTIONS.
    """
    fitting = [(gpu, r) for gpu in gpus for r in gpu.records if r.measured is measured and fits(problem, r, direction)]
    return min(fitting, key=lambda pair: (distance(problem, pair[1].problem), pair[1].time_us), default=None)


def fits(problem: Problem, record: Record, direction: str = FORWARD) -> bool:
    """Whether the record's config is known to run a pass of the problem: same pass and dtype, tiles, heads that divide.

    Tiles must be no smaller; a kernel whose warps are specialised for one headdim, or for an even number of walks in a
    group, is slow as the plain one that takes its place elsewhere.
    """
    tuned, kernels = record.problem, record.config["kernels"]
    return (
        record.direction == direction
        and tuned.layout == problem.layout
        and tuned.dtype == problem.dtype
        and tuned.headdim >= problem.headdim
        and tuned.dstate >= problem.dstate
        and part_problem.fits(problem, tuned, direction)
        # heads that one CTA takes must share a group
        and all((problem.nheads // problem.ngroups) % kernel.get("heads", 1) == 0 for kernel in kernels.values())
        and (tuned.headdim == problem.headdim or not kernels.get("chunk_gradients", {}).get("consumers"))
        and _walks(problem) % max(1, kernels.get("reverse_walk", {}).get("consumers", 0)) == 0
    )


def _walks(problem: Problem) -> int:
    """Walks back of a group where each has a tile of headdim."""
    return problem.nheads // problem.ngroups * -(-problem.headdim // _WALK_ROWS)


def distance(a: Problem, b: Problem) -> float:
    """How far apart two problems are, in octaves of walks and of their length; 0 for the same sizes."""

    def octaves(first: int, second: int) -> float:
        return abs(log2(max(first, 1)) - log2(max(second, 1)))

    return (
        octaves(a.rows * a.nheads, b.rows * b.nheads)
        + octaves(a.row_length, b.row_length)
        + octaves(a.ngroups, b.ngroups)
        + _TILE_WEIGHT * (octaves(a.headdim, b.headdim) + octaves(a.dstate, b.dstate))
    )


def is_stale(record: Record, current: Any) -> bool:
    """Whether the record was made for other kernels.  current: the package's fingerprint, or None if it has none.

    A fingerprint is one value, or one per kernel name: then only the kernels that the record names count.
    """
    made_for = record.fingerprint
    if made_for is None or current is None:
        return False
    if isinstance(made_for, dict) and isinstance(current, dict):
        return any(current.get(kernel) != value for kernel, value in made_for.items())
    return made_for != current


def _says_nothing(words: frozenset[str]) -> bool:
    return all(_SAYS_LITTLE.fullmatch(word) for word in words)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
