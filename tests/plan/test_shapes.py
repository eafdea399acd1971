"""Every shape of code gives the same numbers: heads per program, tiles, row tiles, descriptors, order of the state."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ssdgen.plan import catalogue
from ssdgen.plan.schedules.scan import Scan
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, HeadLayout
from tests.plan.agree import agrees, inputs_of
from tests.spec.cases import Sizes

EVERYTHING = Layer(skip="headdim", gate=True, dt_softplus=True, initial_states=True, boundaries=True)
SMALL = Sizes(seqlen=21, nheads=4, headdim=5, dstate=6)
# two tiles of each that overhang, as 96 = 64 + 32 does not
TILES = {"BLOCK_N_0": 4, "BLOCK_N_1": 4, "BLOCK_P_0": 4, "BLOCK_P_1": 2}

SHAPES = [
    *(
        Walk(heads=heads, n_tiles=n, p_tiles=p, row_tiles=rows, state_major=major)
        for heads, n, p, rows, major in product((1, 2), (1, 2), (1, 2), (1, 2), "np")
    ),
    *(
        Walk(heads=heads, row_tiles=rows, state_major=major, descriptors=True)
        for heads, rows, major in product((1, 2), (1, 2), "np")
    ),
    *(
        Walk(heads=heads, n_tiles=n, p_tiles=p, prepared=False, state_major=major)
        for heads, n, p, major in product((1, 2), (1, 2), (1, 2), "np")
    ),
    *(Walk(two_terms=True, state_major=major, row_tiles=rows) for major, rows in product("np", (1, 2))),
    Walk(two_terms=True, heads=2, n_tiles=2, p_tiles=2),
    Walk(heads=4),
    Walk(heads=4, descriptors=True),
    Walk(heads=4, prepared=False),
    Walk(heads=4, n_tiles=2, p_tiles=2, row_tiles=2),
]
# what ships, whatever that is
SHAPES += sorted({*catalogue.walks(outputs=True)} - {*SHAPES}, key=lambda shape: shape.name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shapes_of_the_walk(shape: Walk, seed: int):
    inputs = inputs_of(EVERYTHING, SMALL, seed)
    assert agrees(EVERYTHING, inputs, schedule="single_pass", chunk=8, shape=shape, constants=TILES)


SEGMENTS = [shape for shape in SHAPES if shape.state_major == "n"]
SEGMENTS += [replace(shape, outputs=True) for shape in catalogue.walks(outputs=False) if shape.state_major == "p"]


@pytest.mark.parametrize("shape", SEGMENTS, ids=lambda shape: shape.name)
def test_shapes_of_the_segments(shape: Walk, seed: int):
    inputs = inputs_of(EVERYTHING, SMALL, seed)
    assert agrees(EVERYTHING, inputs, schedule="segments", chunk=8, segment=8, shape=shape, constants=TILES)


@pytest.mark.parametrize("shape", [Scan(n, p) for n, p in product((1, 2), (1, 2))], ids=lambda shape: shape.name)
def test_shapes_of_the_scan(shape: Scan, seed: int):
    assert agrees(
        EVERYTHING, inputs_of(EVERYTHING, SMALL, seed), schedule="split", chunk=8, shape=shape, constants=TILES
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@pytest.mark.parametrize("shape", [Walk(heads=2), Walk(heads=2, descriptors=True)], ids=lambda shape: shape.name)
def test_heads_of_one_program_and_groups(shape: Walk, layout: HeadLayout, seed: int):
    layer = Layer(layout=layout, skip="head")
    inputs = inputs_of(layer, Sizes(batch=2, seqlen=13, nheads=8, ngroups=2), seed)
    assert agrees(layer, inputs, schedule="single_pass", chunk=4, shape=shape)
    assert agrees(layer, inputs, schedule="segments", chunk=4, shape=shape)


@pytest.mark.parametrize("row_tiles", [2, 4])
@pytest.mark.parametrize("seqlen", [1, 7, 63, 65])
def test_row_tiles_of_odd_lengths(seqlen: int, row_tiles: int, seed: int):
    inputs = inputs_of(EVERYTHING, Sizes(seqlen=seqlen), seed)
    assert agrees(EVERYTHING, inputs, schedule="single_pass", chunk=16, shape=Walk(row_tiles=row_tiles))
    assert agrees(EVERYTHING, inputs, schedule="segments", chunk=16, shape=Walk(row_tiles=row_tiles))


@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "single_pass"},
        {"schedule": "single_pass", "shape": Walk(prepared=False)},
        {"schedule": "single_pass", "shape": Walk(descriptors=True)},
        {"schedule": "segments"},
        {"schedule": "segments", "shape": Walk(descriptors=True, heads=2)},
        {"schedule": "split"},
    ],
    ids=lambda how: "-".join([how["schedule"], *([how["shape"].name] if "shape" in how else [])]),
)
@pytest.mark.parametrize("block", [2, 4])
def test_programs_share_out_headdim(block: int, how: dict[str, Any], seed: int):
    layer = Layer(skip="headdim", gate=True, initial_states=True)
    inputs = inputs_of(layer, Sizes(seqlen=13, headdim=5), seed)
    assert agrees(layer, inputs, chunk=4, constants={"BLOCK_P": block}, **how)


@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "single_pass", "shape": Walk(n_tiles=2, p_tiles=2)},
        {"schedule": "single_pass", "shape": Walk(n_tiles=2, p_tiles=2, prepared=False)},
        {"schedule": "single_pass", "shape": Walk(n_tiles=2), "constants": {"BLOCK_P": 32}},
        {"schedule": "single_pass", "shape": Walk(n_tiles=2, p_tiles=2, state_major="p")},
        {"schedule": "single_pass", "shape": Walk(descriptors=True)},
        {"schedule": "segments", "shape": Walk(n_tiles=2, p_tiles=2)},
        {"schedule": "split", "shape": Scan(n_tiles=2, p_tiles=2)},
    ],
    ids=lambda how: f"{how['schedule']}-{how['shape'].name}",
)
@pytest.mark.parametrize(("headdim", "dstate"), [(96, 80), (80, 96)])
def test_extents_of_two_tiles(headdim: int, dstate: int, how: dict[str, Any], seed: int):
    """96 = 64 + 32 and 80 = 64 + 16, in tiles as they are on a GPU."""
    layer = Layer(skip="headdim", initial_states=True)
    assert agrees(layer, inputs_of(layer, Sizes(seqlen=21, headdim=headdim, dstate=dstate), seed), chunk=16, **how)
