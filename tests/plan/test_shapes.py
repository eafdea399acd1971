"""Every shape of code gives the same numbers: heads per program, tiles, row tiles, descriptors, order of the state."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ssdgen.plan import catalogue
from ssdgen.plan.schedules import walk
from ssdgen.plan.schedules.scan import Scan
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, HeadLayout
from ssdgen.spec.masks import CONSTANT, NONE, MaskFamily
from tests.plan.agree import agrees, inputs_of
from tests.spec.cases import Sizes

EVERYTHING = Layer(skip="headdim", gate=True, dt_softplus=True, initial_states=True, boundaries=True)
SMALL = Sizes(seqlen=21, nheads=4, headdim=5, dstate=6)
# two tiles of each that overhang, as 96 = 64 + 32 does not
TILES = {"BLOCK_N_0": 4, "BLOCK_N_1": 4, "BLOCK_P_0": 4, "BLOCK_P_1": 2}


def consumers(count: int, tiles: int) -> Walk:
    """Specialised by warps: `count` consumers, and so many tiles of dstate."""
    return Walk(consumers=count, n_tiles=tiles, descriptors=True, state_major="p", two_terms=True)


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


# chunks of 8; a tile of headdim and one or two of dstate that overhang
CONSUMERS = [
    pytest.param(consumers(count, tiles), {"BLOCK_N": 8 // tiles, "BLOCK_P": 4}, id=f"{count}-{tiles}n")
    for count, tiles in product((1, 2, 3), (1, 2))
]
WAYS = [
    {"schedule": "single_pass"},
    {"schedule": "segments", "segment": 8},
    {"schedule": "segments", "segment": 16},
    {"schedule": "segments", "segment": 8, "joined": True},
    {"schedule": "segments", "segment": 16, "joined": True},
]


def way_of(how: dict[str, Any]) -> str:
    segment = [str(how["segment"])] if "segment" in how else []
    return "-".join([how["schedule"], *segment, *(["joined"] if how.get("joined") else [])])


@pytest.mark.parametrize("how", WAYS, ids=way_of)
@pytest.mark.parametrize(("shape", "constants"), CONSUMERS)
def test_consumers(shape: Walk, constants: dict[str, int], how: dict[str, Any], seed: int):
    """Five heads in tiles of headdim of 4 and 1: ten walks, which three consumers do not share out evenly."""
    inputs = inputs_of(EVERYTHING, replace(SMALL, nheads=5), seed)
    assert agrees(EVERYTHING, inputs, chunk=8, shape=shape, constants=constants, **how)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@pytest.mark.parametrize("how", WAYS[::3], ids=way_of)
@pytest.mark.parametrize(("shape", "constants"), CONSUMERS)
def test_consumers_are_of_one_group(
    shape: Walk, constants: dict[str, int], how: dict[str, Any], layout: HeadLayout, seed: int
):
    """Three or five heads of a group, or six that share nothing: the last program of each has walks too many."""
    layer = Layer(layout=layout, skip="head", initial_states=True)
    for nheads, ngroups in ((6, 2), (5, 1)):
        sizes = Sizes(batch=2, seqlen=21, nheads=nheads, headdim=3, dstate=6, ngroups=ngroups)
        inputs = inputs_of(layer, sizes, seed)
        assert agrees(layer, inputs, chunk=8, shape=shape, constants=constants, **how)


@pytest.mark.parametrize("options", ["", "initial_states", "boundaries", "gate", "skip"])
@pytest.mark.parametrize("how", WAYS, ids=way_of)
def test_consumers_without_options(how: dict[str, Any], options: str, seed: int):
    """One option at a time: the state that enters comes from zeros, from outside, or from summaries."""
    layer = Layer(skip="head") if options == "skip" else Layer(**{options: True} if options else {})
    inputs = inputs_of(layer, replace(SMALL, nheads=3), seed)
    constants = {"BLOCK_N": 8, "BLOCK_P": 4}
    assert agrees(layer, inputs, chunk=8, shape=consumers(2, 1), constants=constants, **how)


@pytest.mark.parametrize("family", [CONSTANT, NONE], ids=lambda family: family.name)
@pytest.mark.parametrize("how", WAYS, ids=way_of)
def test_consumers_of_other_families(how: dict[str, Any], family: MaskFamily, seed: int):
    layer = Layer(family=family, boundaries=True, initial_states=True)
    inputs = inputs_of(layer, SMALL, seed)
    assert agrees(layer, inputs, chunk=8, shape=consumers(2, 2), constants={"BLOCK_N": 4, "BLOCK_P": 4}, **how)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 2},
        {"p_tiles": 2},
        {"row_tiles": 2},
        {"descriptors": False},
        {"state_major": "n"},
    ],
    ids=str,
)
@pytest.mark.parametrize("outputs", [True, False])
def test_what_consumers_do_not_go_with(outputs: bool, changes: dict[str, Any]):
    shape = replace(consumers(2, 1), outputs=outputs, two_terms=outputs)
    assert walk.kernel(Layer(), shape).consumers == 2
    with pytest.raises(ValueError, match="consumers go with|running sums inside the kernel"):
        walk.kernel(Layer(), replace(shape, **changes))


def test_what_no_launcher_launches_with_consumers(seed: int):
    inputs = inputs_of(Layer(), SMALL, seed)
    with pytest.raises(ValueError, match="without scores"):
        walk.kernel(Layer(), replace(consumers(2, 1), outputs=False))
    states = replace(consumers(2, 1), outputs=False, two_terms=False)
    for shape in (consumers(2, 1), consumers(1, 2), states, Walk(state_major="p")):
        with pytest.raises(ValueError, match="issued ahead in walks with outputs, one consumer and one tile"):
            walk.kernel(Layer(), replace(shape, ahead=True))
    with pytest.raises(ValueError, match="state_passing; give it consumers"):
        agrees(Layer(), inputs, schedule="segments", chunk=8, segment=8, joined=True)
    with pytest.raises(ValueError, match="no split"):
        agrees(Layer(), inputs, schedule="split", chunk=8, shape=consumers(2, 1))
    packed = {**inputs, "cu_seqlens": [0, 10, 21]}
    with pytest.raises(ValueError, match="packed sequences"):
        agrees(Layer(boundaries=True), packed, schedule="single_pass", chunk=8, shape=consumers(2, 1))


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
