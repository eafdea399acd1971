"""Whether the interpreted kernels of a schedule give what the oracle gives.  What the tests of plan share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ssdgen.plan import interpret
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.oracle import oracle
from tests.spec.cases import Sizes, draw

# the schedules, with step sizes of a kernel of their own and made by the walk itself
SCHEDULES: dict[str, dict[str, Any]] = {
    "single_pass": {"schedule": "single_pass"},
    "single_pass-inline": {"schedule": "single_pass", "shape": Walk(prepared=False)},
    "segments": {"schedule": "segments"},
    "segments-inline": {"schedule": "segments", "shape": Walk(prepared=False)},
    "split": {"schedule": "split"},
}
TOLERANCE = 1e-9  # float64 on both sides; sums in another order


def inputs_of(layer: Layer, sizes: Sizes, seed: int, limits: tuple[float, float] = (0.0, math.inf)) -> dict[str, Any]:
    """Arguments of the oracle and of the interpreter, for every option of the layer."""
    return {**draw(layer, sizes, seed), "dt_limit": limits}


def agrees(layer: Layer, inputs: dict[str, Any], *, schedule: Any, chunk: int, **options: Any) -> bool:
    """True where y and the final states are the oracle's; a NaN that was left is a disagreement."""
    y, states = interpret.forward(layer, schedule, inputs, chunk=chunk, **options)
    wanted = oracle(layer, **inputs)
    wanted_states = wanted.final_states if wanted.varlen_states is None else wanted.varlen_states
    pairs = ((y, wanted.y), (states, wanted_states))
    return all(a.shape == b.shape and np.allclose(a, b, TOLERANCE, TOLERANCE) for a, b in pairs)
