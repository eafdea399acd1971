"""The chunk graph in float64 is the recurrence: every option, layout and mask family, whatever the chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.entries import Entries
from ssdgen.spec.evaluate import MissingInput, evaluate
from ssdgen.spec.graph import Cumsum, Graph, Input, Sum
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import FAMILIES, NONE
from ssdgen.spec.oracle import oracle
from tests.spec.cases import Sizes, chunked, draw

LAYERS = st.builds(
    Layer,
    family=st.sampled_from(list(FAMILIES.values())),
    layout=st.sampled_from(list(LAYOUTS.values())),
    skip=st.sampled_from(["none", "head", "headdim"]),
    gate=st.booleans(),
    dt_bias=st.booleans(),
    dt_softplus=st.booleans(),
    initial_states=st.booleans(),
    boundaries=st.booleans(),
)
SIZES = st.builds(
    lambda batch, seqlen, ngroups, per_group, headdim, dstate: Sizes(
        batch, seqlen, ngroups * per_group, headdim, dstate, ngroups
    ),
    *(st.integers(1, most) for most in (2, 20, 3, 3, 4, 5)),
)


@settings(max_examples=60, deadline=None)
@given(LAYERS, SIZES, st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([(0.0, np.inf), (0.1, 0.7)]))
def test_chunks_are_the_recurrence(layer: Layer, sizes: Sizes, chunk: int, seed: int, limits: tuple[float, float]):
    arrays = draw(layer, sizes, seed)
    y, last = chunked(layer, arrays, chunk, limits)
    expected = oracle(layer, **arrays, dt_limit=limits)
    np.testing.assert_allclose(y, expected.y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(last, expected.final_states, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dt", [0.0, 1e-8, 20.0, 100.0])
@pytest.mark.parametrize("a", [-1e-4, -100.0, 0.0, 3.0])
def test_extreme_steps_and_rates(dt: float, a: float, seed: int):
    """No exponent overflows and none is positive; a positive A counts as zero in both forms."""
    layer = Layer()
    arrays = draw(layer, Sizes(seqlen=13), seed)
    arrays["dt"][:] = dt
    arrays["A"][:] = a
    y, last = chunked(layer, arrays, 4)
    expected = oracle(layer, **arrays)
    assert np.isfinite(expected.y).all()
    np.testing.assert_allclose(y, expected.y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(last, expected.final_states, rtol=1e-9, atol=1e-9)


def test_a_nan_stays_where_it_can_reach(seed: int):
    layer = Layer(dt_softplus=True)
    arrays = draw(layer, Sizes(seqlen=9), seed)
    arrays["dt"][0, 5, 0] = np.nan
    for y in (oracle(layer, **arrays).y, chunked(layer, arrays, 9)[0]):
        assert np.isnan(y[0, 5:, 0]).all() and np.isfinite(y[0, :, 1]).all()


def test_a_value_over_columns_may_be_read_on_rows():
    """left_decay[h, i] reads the running sum, which the graph has over j."""
    graph = chunk_graph(Layer())
    sums = np.array([[-1.0, -2.0, -5.0]])
    found = evaluate(graph, {"dA_cs": sums}, {}, ("left_decay", "dA_last"))
    np.testing.assert_allclose(found["left_decay"], 2.0**sums)
    assert found["dA_last"] == [-5.0]


def test_sums_and_running_sums_from_either_end():
    of = entry("x", "h", "j")
    graph = Graph(
        "g",
        (
            Input("x", ("h", "j"), "x"),
            Cumsum("up", ("h", "j"), of, "j"),
            Cumsum("down", ("h", "j"), of, "j", reverse=True),
            Sum("heads", ("j",), of, ("h",)),
            Sum("row", ("h",), entry("x", "h", "i"), ("i",)),
        ),
    )
    x = np.array([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]])
    found = evaluate(graph, {"x": x}, {}, ("up", "down", "heads", "row"))
    assert found["up"].tolist() == [[1, 3, 7], [10, 30, 70]] and found["down"].tolist() == [[7, 6, 4], [70, 60, 40]]
    assert found["heads"].tolist() == [11, 22, 44] and found["row"].tolist() == [7, 70]
    exact = Entries(graph, {"x": lambda h, j: int(x[h, j])}, {"h": 2, "i": 3})
    for name, value in found.items():
        assert all(float(exact(name, *place)) == value[place] for place in np.ndindex(value.shape))


def test_what_is_given_is_not_computed():
    found = evaluate(chunk_graph(Layer()), {"dt_positive": [[3.0, 9.0]], "dt_min": 0, "dt_max": 5}, {}, ("dt",))
    assert found["dt"].tolist() == [[3.0, 5.0]]


def test_an_option_reads_its_input_only_when_set():
    graph = chunk_graph(Layer(NONE))
    inputs = {"dt_raw": [[1.0, 2.0]]}
    assert evaluate(graph, inputs, {}, ("dt_biased",))["dt_biased"].tolist() == [[1.0, 2.0]]
    with pytest.raises(MissingInput, match="needs dt_bias over"):
        evaluate(graph, inputs, {"HAS_DT_BIAS": True}, ("dt_biased",))


def test_extents_must_agree():
    with pytest.raises(ValueError, match="C has 3 along i; another input has 2"):
        evaluate(chunk_graph(Layer()), {"B": np.ones((2, 4)), "C": np.ones((3, 4))}, {}, ("CB",))
    with pytest.raises(ValueError, match="B has 1 axes"):
        evaluate(chunk_graph(Layer()), {"B": np.ones(2)}, {}, ("CB",))
