"""Walks that keep states: each is the one that a walk over all tokens before its chunk leaves, and y is what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssdgen.plan import catalogue, interpret
from ssdgen.plan.launch import Call
from ssdgen.plan.schedules import walk
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.oracle import oracle
from tests.plan.agree import inputs_of
from tests.spec.cases import Sizes

CHUNK = 8
SIZES = Sizes(batch=2, seqlen=21, nheads=4, headdim=12, dstate=12, ngroups=2)
LAYER = Layer(skip="head", gate=True, initial_states=True, boundaries=True, dt_softplus=True)
TOKENS = ("x", "dt", "B", "C", "z", "seq_idx")


def before(inputs: dict[str, Any], tokens: int) -> Any:
    """The state behind so many tokens."""
    first = {name: v[:, :tokens] if name in TOKENS and v is not None else v for name, v in inputs.items()}
    return oracle(LAYER, **first).final_states if tokens else inputs["initial_states"]


@pytest.mark.parametrize("how", ["single_pass", "segments"])
@pytest.mark.parametrize("shape", catalogue.keeping(), ids=lambda shape: shape.name)
def test_states_are_those_before_the_chunks(shape: Walk, how: str, seed: int) -> None:
    inputs = inputs_of(LAYER, SIZES, seed)
    constants = {"BLOCK_P": 4 if shape.consumers else 16}
    if not shape.consumers:
        constants |= {f"BLOCK_{axis}_{k}": 8 for axis in "NP" for k in (0, 1)}
    call = Call.of(LAYER, inputs, CHUNK, constants, interpret.run, lambda *extents: np.full(extents, np.nan))
    segment = 2 * CHUNK if how == "segments" else None
    y, _ = call.forward(how, segment, shape, joined=bool(segment and shape.consumers))  # type: ignore[arg-type]
    np.testing.assert_allclose(y, oracle(LAYER, **inputs).y, rtol=1e-9, atol=1e-9)
    states = call.tensors["states"]
    for chunk in range(3):
        np.testing.assert_allclose(states[:, chunk], before(inputs, chunk * CHUNK), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [Walk(False, keeps=True), Walk(prepared=False, keeps=True)], ids=str)
def test_what_keeps_none(shape: Walk) -> None:
    """A walk for a segment has no outputs, and chunks of packed sequences begin anywhere."""
    with pytest.raises(ValueError, match="the states of chunks are kept by walks with outputs over whole chunks"):
        walk.kernel(LAYER, shape)
