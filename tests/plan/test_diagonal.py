"""The diagonal of C B^T apart from the scores: as a number for each token it gives what it gave inside of the block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ssdgen.plan.interpret import run
from ssdgen.plan.schedules import diagonal, walk
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec import layer as layer_formulas
from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.graph import Map
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, HeadLayout
from ssdgen.spec.mamba3 import LAYER as MAMBA3
from ssdgen.spec.masks import CONSTANT, NONE, SSD, MaskFamily
from tests.plan.agree import agrees, inputs_of
from tests.spec.cases import Sizes

SIZES = Sizes(batch=2, seqlen=21, nheads=6, headdim=5, dstate=6, ngroups=2)
APART = Walk(consumers=1, descriptors=True, state_major="p", apart=True)
SHAPES = [APART, replace(APART, consumers=2, n_tiles=2), replace(APART, ahead=True, prepared=False)]

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)


@each_layout
def test_it_is_the_diagonal(layout: HeadLayout, seed: int) -> None:
    """Of 21 tokens in chunks of 8: past the end it is zero."""
    layer = Layer(layout=layout)
    inputs = inputs_of(layer, SIZES, seed)
    B, C = inputs["B"], inputs["C"]
    made = diagonal.kernel(layer)
    heads = max(B.shape[2], C.shape[2])
    found = np.full((2, heads, 24), np.nan)
    shared = {min(6, tensor.shape[2]) for tensor in (B, C, inputs["x"])}
    sizes = {"batch": 2, "seqlen": 21, "nheads": 6, "ngroups": min(shared), "padded": 24}
    run(made, {"B": B, "C": C, "CB_diagonal": found}, sizes, {"DSTATE": 6, "CHUNK": 8, "BLOCK_N": 8}, {}, {})
    each = [np.repeat(operand, heads // operand.shape[2], axis=2) for operand in (B, C)]
    np.testing.assert_allclose(found[:, :, :21], np.einsum("btgn,btgn->bgt", *each), rtol=1e-12)
    assert not found[:, :, 21:].any()


@pytest.mark.parametrize("how", [{"schedule": "single_pass"}, {"schedule": "segments", "segment": 8, "joined": True}])
@pytest.mark.parametrize("skip", [None, "head", "headdim"])
@pytest.mark.parametrize("family", [SSD, CONSTANT, NONE], ids=lambda family: family.name)
@each_layout
def test_walks_are_the_layer(
    layout: HeadLayout, family: MaskFamily, skip: str | None, how: dict[str, object], seed: int
) -> None:
    layer = Layer(family, layout, skip=skip or Layer().skip, gate=True, boundaries=True, dt_softplus=True)
    inputs = inputs_of(layer, SIZES, seed)
    for shape in SHAPES:
        constants = {"BLOCK_N": 8 // shape.n_tiles, "BLOCK_P": 4}
        assert agrees(layer, inputs, chunk=8, shape=shape, constants=constants, **how), shape.name


def test_without_the_diagonal_it_is_another_layer(seed: int) -> None:
    """What `diagonal_products` leaves is what the walk adds: nothing else makes the diagonal."""
    inputs = inputs_of(Layer(), SIZES, seed)
    whole, graph = chunk_graph(Layer()), chunk_graph(Layer(), apart=True)
    assert "CB_diagonal" in graph and "CB_diagonal" not in whole
    assert whole["scores_whole"] != graph["scores_whole"]
    # C at right angles to B: nothing is on the diagonal, which is then the same layer
    inputs["B"][..., ::2], inputs["C"][..., 1::2] = 0, 0
    assert agrees(Layer(), inputs, chunk=8, schedule="single_pass", shape=APART, constants={"BLOCK_P": 4})


@pytest.mark.parametrize(
    "changes", [{"two_terms": True}, {"outputs": False}, {"consumers": 0}], ids=lambda changes: next(iter(changes))
)
def test_what_it_does_not_go_with(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the diagonal is apart from scores in one term of walks that have consumers"):
        walk.kernel(Layer(), replace(APART, **changes))


def test_the_skip_of_a_head_is_that_of_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another skip is another weight of the tokens' own inputs; one that is no multiple of them has none."""
    before = chunk_graph(Layer(), apart=True)["own_skip"]
    monkeypatch.setattr(layer_formulas, "skip", lambda y, d, x: y - 2 * d * x)
    after = chunk_graph(Layer(), apart=True)["own_skip"]
    assert isinstance(before, Map) and isinstance(after, Map)
    own, D = entry("own", "h", "j"), entry("D_head", "h")
    assert (before.formula, after.formula) == (own + D, own - 2 * D)
    monkeypatch.setattr(layer_formulas, "skip", lambda y, d, x: y + d * x**2)
    with pytest.raises(ValueError, match="is no multiple of it; leave out apart"):
        chunk_graph(Layer(), apart=True)


def test_a_diagonal_that_has_a_weight_is_apart_anyhow() -> None:
    with pytest.raises(ValueError, match="leave out apart"):
        chunk_graph(MAMBA3, apart=True)
