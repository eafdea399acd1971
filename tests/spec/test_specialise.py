"""The pass that chooses options and drops aliases: same values, no option left, readable names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.graph import Contract, Graph, Input, Map
from ssdgen.spec.layer import Layer
from ssdgen.spec.masks import NONE
from ssdgen.spec.specialise import specialise
from tests.spec.cases import Sizes, chunked, draw
from tests.spec.test_evaluate import LAYERS


@settings(max_examples=25, deadline=None)
@given(LAYERS, st.integers(0, 2**31))
def test_values_are_the_same(layer: Layer, seed: int):
    arrays = draw(layer, Sizes(seqlen=5), seed)
    before, after = (
        chunked(layer, arrays, 2),
        chunked(layer, arrays, 2, graph=specialise(chunk_graph(layer), layer.flags())),
    )
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(LAYERS)
def test_no_option_and_no_alias_is_left(layer: Layer):
    graph = specialise(chunk_graph(layer), layer.flags())
    maps = [node for node in graph.nodes if isinstance(node, Map)]
    assert not [node.name for node in maps if node.option or node.formula.is_Indexed]
    assert "y" in graph and "state_out" in graph
    assert ("seq" in graph) == layer.boundaries and ("z" in graph) == layer.gate


def names(layer: Layer, kind: type) -> list[str]:
    return [node.name for node in specialise(chunk_graph(layer), layer.flags()).nodes if isinstance(node, kind)]


def test_the_plain_layer_reads_like_the_paper():
    assert names(Layer(), Map) == [
        "dt", "log_decay", "scores", "left_decay", "right_decay", "centre_decay", "y", "x_weighted", "state_out",
    ]  # fmt: skip
    assert names(Layer(), Contract) == ["CB", "y_state", "y_diag", "local_state"]
    assert names(Layer(), Input) == ["dt_raw", "dt_min", "dt_max", "A", "x", "B", "C", "state"]


def test_without_decay_there_are_no_running_sums():
    assert "dt" in names(Layer(NONE), Map) and "log_decay" not in names(Layer(NONE), Map)
    assert "A" not in names(Layer(NONE), Input)


def test_an_option_needs_a_value_without_it():
    graph = chunk_graph(Layer())
    node = graph["y"]
    assert isinstance(node, Map)
    broken = Graph("broken", tuple(replace(node, otherwise=None) if old is node else old for old in graph.nodes))
    with pytest.raises(ValueError, match="y has the option HAS_Z and no value without it"):
        specialise(broken, {})


def test_a_value_that_is_spread_along_an_axis_is_no_alias():
    graph = Graph("g", (Input("A", ("h",), "rate"), Map("spread", ("h", "j"), entry("A", "h"))))
    assert "spread" in specialise(graph, {}, ("spread",))
