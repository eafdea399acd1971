"""What a search found, as a record.  Result -> Record -> load_path, campaign"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..pack.records import Direction, Record
from ..plan.problem import Problem
from .passes import PASSES, used_kernels
from .results import Result


def record_of(
    direction: Direction,
    problem: Problem,
    result: Result,
    provenance: Literal["measured", "predicted"],
    kernels: Mapping[str, str],
    default: Result | None = None,
) -> Record:
    """kernels: {name: fingerprint} of the emitted kernels of today.  default: what the default config reached."""
    return Record(
        problem=problem,
        config=result.config,
        provenance=provenance,
        time_us=result.time_us,
        spread_us=result.spread_us,
        default_us=default.time_us if default else None,
        error=result.error,
        error_limit=result.error_limit,
        fingerprint={name: kernels[name] for name in sorted(set(used_kernels(direction, result.config, problem)))},
        space=PASSES[direction].space.fingerprint(),
        direction=direction,
    )
