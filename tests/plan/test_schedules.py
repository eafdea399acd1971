"""Every schedule, interpreted, is the oracle: mask families, head layouts, options, lengths and packed sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ssdgen.plan.interpret import forward
from ssdgen.plan.schedules.scan import Scan
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_HEAD, HeadLayout
from ssdgen.spec.masks import CONSTANT, FAMILIES, NONE, MaskFamily
from tests.plan.agree import SCHEDULES, agrees, inputs_of
from tests.spec.cases import Sizes

SMALL = Sizes(batch=2, seqlen=21, nheads=6, headdim=5, dstate=6, ngroups=2)
INLINE = Walk(prepared=False)

each_schedule = pytest.mark.parametrize("how", SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_layouts_and_masks(layout: HeadLayout, family: MaskFamily, how: dict[str, Any], seed: int):
    assert agrees(Layer(family, layout), inputs_of(Layer(family, layout), SMALL, seed), chunk=8, **how)
    everything = Layer(family, layout, "headdim", True, True, True, True, True)
    assert agrees(everything, inputs_of(everything, SMALL, seed, limits=(0.2, 0.9)), chunk=8, **how)


@each_schedule
@pytest.mark.parametrize(
    "options",
    [
        {"skip": "head"},
        {"skip": "headdim"},
        {"gate": True},
        {"dt_bias": True},
        {"dt_softplus": True},
        {"initial_states": True},
        {"boundaries": True},
        {"boundaries": True, "initial_states": True},
    ],
    ids=lambda options: "-".join(str(value) for pair in options.items() for value in pair),
)
def test_each_option_alone(options: dict[str, Any], how: dict[str, Any], seed: int):
    layer = Layer(**options)
    assert agrees(layer, inputs_of(layer, Sizes(seqlen=21, headdim=5, dstate=6), seed), chunk=8, **how)


@each_schedule
@pytest.mark.parametrize("limits", [(0.3, math.inf), (0.0, 0.4), (-math.inf, math.inf)], ids=str)
def test_limits(limits: tuple[float, float], how: dict[str, Any], seed: int):
    inputs = inputs_of(Layer(), Sizes(seqlen=21), seed, limits)
    # negative step sizes would make the state grow, which the clamped exponents do not
    inputs["dt"] = np.abs(inputs["dt"]) if limits[0] < 0 else inputs["dt"]
    assert agrees(Layer(), inputs, chunk=8, **how)


@each_schedule
@pytest.mark.parametrize("seqlen", [1, 7, 63, 65])
@pytest.mark.parametrize("chunk", [16, 64])
def test_odd_lengths(seqlen: int, chunk: int, how: dict[str, Any], seed: int):
    layer = Layer(skip="head", gate=True, initial_states=True, boundaries=True)
    assert agrees(layer, inputs_of(layer, Sizes(seqlen=seqlen), seed), chunk=chunk, **how)


@each_schedule
def test_a_chunk_of_one_token(how: dict[str, Any], seed: int):
    assert agrees(Layer(), inputs_of(Layer(), Sizes(seqlen=5), seed), chunk=1, **how)


@pytest.mark.parametrize("segment", [8, 16, 24, 64])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_segments_of_several_chunks(segment: int, family: MaskFamily, seed: int):
    layer = Layer(family, initial_states=True, boundaries=True)
    inputs = inputs_of(layer, Sizes(seqlen=45), seed)
    # few boundaries: some segments have none
    inputs["seq_idx"] = np.repeat([[3, 5, 9]], [11, 29, 5], axis=1)
    assert agrees(layer, inputs, schedule="segments", chunk=8, segment=segment)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 16), (16, 4), (2, 8), (16, 16)])
def test_tiles_of_the_output_in_a_chunk(rows: int, columns: int, seed: int):
    layer = Layer(skip="head", boundaries=True)
    inputs = inputs_of(layer, Sizes(seqlen=37), seed)
    blocks = {"BLOCK_M": rows, "BLOCK_K": columns}
    assert agrees(layer, inputs, schedule="split", chunk=16, constants=blocks)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("initial", [True, False], ids=["from-states", "from-zero"])
def test_packed_sequences(family: MaskFamily, initial: bool, seed: int):
    layer = Layer(family, skip="head", dt_softplus=True)
    inputs = inputs_of(layer, Sizes(seqlen=30, headdim=5, dstate=6), seed)
    inputs["cu_seqlens"] = np.array([0, 1, 9, 10, 27, 30])
    if initial:
        inputs["initial_states"] = np.random.default_rng(seed).normal(size=(5, 2, 5, 6))
    assert agrees(layer, inputs, schedule="single_pass", chunk=8, shape=INLINE)


def test_an_empty_sequence_keeps_its_state(seed: int):
    inputs = inputs_of(Layer(), Sizes(seqlen=9), seed)
    inputs |= {"cu_seqlens": np.array([0, 4, 4, 9]), "initial_states": np.ones((3, 2, 3, 4))}
    assert agrees(Layer(), inputs, schedule="single_pass", chunk=4, shape=INLINE)


@each_schedule
@pytest.mark.parametrize("family", [FAMILIES["ssd"], CONSTANT], ids=lambda family: family.name)
def test_a_decay_to_nothing(family: MaskFamily, how: dict[str, Any], seed: int):
    """Running sums in the thousands: every decay but the diagonal's is zero, and nothing is infinite or NaN."""
    inputs = inputs_of(Layer(family), Sizes(seqlen=21), seed)
    inputs["A"] = inputs["A"] * 1e4
    assert agrees(Layer(family), inputs, chunk=8, **how)


@each_schedule
def test_a_positive_rate_acts_as_none(how: dict[str, Any], seed: int):
    inputs = inputs_of(Layer(), Sizes(seqlen=21), seed)
    inputs["A"] = -inputs["A"]
    assert agrees(Layer(), inputs, chunk=8, **how)


@each_schedule
def test_what_the_layer_ignores_may_be_left_out(how: dict[str, Any], seed: int):
    inputs = inputs_of(Layer(NONE, MULTI_HEAD), Sizes(seqlen=21), seed)
    wanted, _ = forward(Layer(NONE, MULTI_HEAD), inputs=inputs, chunk=8, **how)
    found, _ = forward(Layer(NONE, MULTI_HEAD), inputs={**inputs, "A": np.full(2, np.nan)}, chunk=8, **how)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "quadratic"}, "no quadratic with None"),
        ({"schedule": "split", "shape": Walk()}, "split a Scan"),
        ({"schedule": "single_pass", "shape": Scan()}, "take a Walk"),
        ({"schedule": "segments", "segment": 12}, "the segment is 12; it must be a multiple of the chunk, 8"),
        ({"schedule": "segments", "segment": 0}, "the segment is 0"),
        ({"schedule": "single_pass", "shape": Walk(heads=4)}, "4 heads per program do not divide the 3 heads"),
        ({"schedule": "single_pass", "shape": Walk(row_tiles=3)}, "3 row tiles do not divide the chunk, 8"),
        ({"schedule": "single_pass", "shape": Walk(n_tiles=2)}, "an extent of 6 is cut into"),
        ({"schedule": "split", "constants": {"BLOCK_M": 3}}, "BLOCK_M is 3; it must divide the chunk"),
    ],
)
def test_what_no_launcher_would_launch(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        forward(Layer(), inputs=inputs_of(Layer(), SMALL, 0), chunk=8, **options)


def test_packed_sequences_have_no_prepared_step_sizes():
    inputs = {**inputs_of(Layer(), Sizes(), 0), "cu_seqlens": np.array([0, 3, 7])}
    with pytest.raises(ValueError, match="cannot be prepared"):
        forward(Layer(), "single_pass", inputs, chunk=4)
