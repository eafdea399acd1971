"""The graph itself: order, names and what a value needs."""

from __future__ import annotations

import pytest
import sympy

from ssdgen.spec.decompose import CENTRE, DIAGONAL, LEFT, RIGHT, chunk_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.graph import Contract, Graph, Input, Map
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import FAMILIES

A = Input("A", ("h",), "rate")


def test_a_value_is_computed_before_it_is_read():
    with pytest.raises(ValueError, match="g: twice reads A before it is computed"):
        Graph("g", (Map("twice", ("h",), 2 * entry("A", "h")), A))


def test_a_value_is_defined_once():
    with pytest.raises(ValueError, match="g: A is defined twice"):
        Graph("g", (A, A))


def test_an_unknown_value_is_named():
    with pytest.raises(KeyError, match="g has no value 'B'; it has A"):
        Graph("g", (A,))["B"]


def test_an_entry_needs_an_axis():
    with pytest.raises(ValueError, match="use sympy.Symbol for a scalar"):
        entry("dt_min")


def test_only_what_is_needed_and_not_at_hand():
    graph = chunk_graph(Layer())
    needed = [node.name for node in graph.closure(("state_out",), frozenset({"dt", "dA_cs"}))]
    assert {"dA_last", "x_weighted", "local_state"} < set(needed)
    assert not {"dt", "dt_raw", "A", "CB", "y"} & set(needed)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_every_layer_has_the_four_factors(family, layout):
    graph = chunk_graph(Layer(family, layout))
    assert all(name in graph for name in (*DIAGONAL, *RIGHT, *CENTRE, *LEFT))
    product = graph["CB"]
    assert isinstance(product, Contract)
    assert ("h" in product.axes) == (layout.b or layout.c)


def test_a_decay_never_has_a_positive_exponent():
    from ssdgen.spec.decompose import decay

    u = sympy.Symbol("u", positive=True)
    assert decay(u).doit() == 1 and decay(-u).doit() == 2 ** (-u)
