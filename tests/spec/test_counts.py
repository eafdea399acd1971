"""Counts: the closed forms of docs/maths.md follow from the graph, and change with layout, mask and options."""

from __future__ import annotations

import pytest
import sympy

from ssdgen.spec import counts
from ssdgen.spec.dims import BATCH, CHUNK, DSTATE, HEADDIM, NGROUPS, NHEADS, SEQLEN
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, MULTI_EXPAND, MULTI_HEAD
from ssdgen.spec.masks import CONSTANT, FAMILIES, NONE

T, Q, N, P, H, G, E = BATCH * SEQLEN, CHUNK, DSTATE, HEADDIM, NHEADS, NGROUPS, counts.ELEMENT_BYTES
HALF = (1 + 1 / Q) / 2


def same(left: sympy.Expr, right: sympy.Expr) -> bool:
    return sympy.expand(left - right) == 0


def test_the_formulas_of_the_mathematics():
    flops = 2 * T * Q * N * G * HALF + 2 * T * Q * P * H * HALF + 4 * T * P * N * H
    assert same(counts.total_flops(Layer()), flops)
    assert same(counts.total_bytes(Layer()), T * (2 * H * P * E + 2 * G * N * E + H * E))


def test_the_formulas_of_the_mathematics_backward():
    product, state = 2 * T * Q * P * H * HALF, 2 * T * P * N * H
    flops = 2 * T * Q * N * G * HALF + 2 * product + 2 * (2 * T * Q * N * G * HALF) + 5 * state
    assert same(counts.total_flops(Layer(), backward=True), flops)
    assert same(counts.total_bytes(Layer(), backward=True), T * (3 * H * P * E + 4 * G * N * E + 2 * H * E))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("boundaries", [False, True])
def test_backward_products_do_not_depend_on_the_mask(family, boundaries):
    layer = Layer(family, boundaries=boundaries)
    assert same(counts.total_flops(layer, backward=True), counts.total_flops(Layer(), backward=True))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_backward_follows_the_layout(layout):
    """A gradient has the entries of its operand; scores are shared where B and C are, in both directions."""
    found, heads = counts.least_bytes(Layer(layout=layout), backward=True), counts.flops(Layer(layout=layout), True)
    for name in ("x", "B", "C", "dt_raw"):
        assert found[f"d_{name}"] == found[name]
    shared = G if not (layout.b or layout.c) else H
    for product in ("CB", "d_C_CB", "d_B_CB"):
        assert same(heads[product], 2 * T * Q * N * shared * HALF)
    assert same(heads["d_scores"], 2 * T * Q * P * H * HALF)


def test_options_add_their_arrays_backward():
    layer = Layer(gate=True, initial_states=True, boundaries=True, skip="head", dt_bias=True)
    found = counts.least_bytes(layer, final_states=True, backward=True)
    assert {*found} == {
        "dt_raw", "x", "B", "C", "z", "seq", "d_y", "d_dt_raw", "d_x", "d_B", "d_C", "d_z",
        "initial_states", "d_initial_states", "d_final_states",
    }  # fmt: skip
    assert same(found["d_z"], found["z"]) and same(found["d_initial_states"], 4 * BATCH * H * P * N)
    # the gradient of the gate needs what was gated
    assert counts.flops(layer, backward=True).keys() - counts.flops(Layer(), backward=True).keys() == {
        "y_state",
        "y_diag",
    }


def test_a_special_function_counts_once():
    found = counts.exponentials(Layer(dt_softplus=True, gate=True), backward=True)
    assert same(found["scores"], T * Q * H * HALF) and same(found["right_decay"], T * H)
    assert same(found["dt_positive"], 2 * T * H) and same(found["d_dt_raw"], T * H)
    assert same(found["d_y_skip"], T * P * H) and {"d_z", "d_CB_head", "d_dt"}.isdisjoint(found)


def test_flops_by_factor():
    found = counts.flops_by_factor(Layer())
    assert same(found["diagonal"], 2 * T * Q * HALF * (N * G + P * H))
    assert same(found["right"], 2 * T * P * N * H) and same(found["left"], 2 * T * P * N * H)
    assert found["centre"] == 0
    assert same(sympy.Add(*found.values()), counts.total_flops(Layer()))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("boundaries", [False, True])
def test_matrix_products_do_not_depend_on_the_mask(family, boundaries):
    """A boundary cuts the scores a second time; the causal half must still be seen."""
    assert same(counts.total_flops(Layer(family, boundaries=boundaries)), counts.total_flops(Layer()))


def test_a_graph_without_the_causal_mask_costs_twice(monkeypatch):
    from ssdgen.spec import decompose

    full = decompose._keep
    monkeypatch.setattr(
        decompose, "_keep", lambda value, condition: value if condition.is_Relational else full(value, 0)
    )
    counts.graph_of.cache_clear()
    try:
        assert same(counts.flops(Layer())["y_diag"], 2 * T * Q * P * H)
        assert same(counts.flops(Layer())["CB"], 2 * T * Q * N * G)
    finally:
        counts.graph_of.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_bytes_follow_the_layout(layout):
    heads = {name: H if layout.per_head(name) else G for name in ("x", "B", "C")}
    found = counts.least_bytes(Layer(layout=layout))
    assert same(found["x"], T * heads["x"] * P * E)
    assert same(found["B"], T * heads["B"] * N * E) and same(found["C"], T * heads["C"] * N * E)
    assert same(found["dt_raw"], T * H * E) and same(found["y"], T * H * P * E)


@pytest.mark.parametrize("layout", [MULTI_HEAD, MULTI_CONTRACT, MULTI_EXPAND], ids=lambda layout: layout.name)
def test_scores_are_shared_only_where_b_and_c_are(layout):
    assert same(counts.flops(Layer(layout=layout))["CB"], 2 * T * Q * N * H * HALF)


def test_options_add_their_arrays():
    found = counts.least_bytes(Layer(gate=True, initial_states=True, boundaries=True, skip="head"), final_states=True)
    assert same(found["z"], T * H * P * E) and same(found["seq"], 4 * T)
    assert same(found["initial_states"], 4 * BATCH * H * P * N) and same(found["final_states"], 4 * BATCH * H * P * N)
    assert {*found} == {"dt_raw", "x", "B", "C", "y", "z", "seq", "initial_states", "final_states"}


def test_exponentials():
    found = counts.exponentials(Layer(dt_softplus=True, gate=True))
    assert same(found["scores"], T * Q * H * HALF)
    assert same(found["left_decay"], T * H) and same(found["right_decay"], T * H)
    assert same(found["centre_decay"], T / Q * H)
    assert same(found["dt_positive"], 2 * T * H) and same(found["y"], T * P * H)
    assert counts.exponentials(Layer(NONE)) == {}
    assert counts.exponentials(Layer(CONSTANT)).keys() == {"scores", "left_decay", "right_decay", "centre_decay"}


def test_what_a_schedule_adds():
    states = 4 * T * H * P * N * counts.STATE_BYTES
    assert same(counts.extra_bytes(Layer(), "split")["states between kernels"], states / Q)
    assert same(counts.extra_bytes(Layer(), "segments")["states between kernels"], states / counts.SEGMENT)
    assert counts.extra_bytes(Layer(), "single_pass", prepared=False) == {}
    assert same(counts.extra_bytes(Layer(), "segments")["operands read again"], T * (H * P + G * N) * E)
    # step sizes and their running sums in fp32, written once and read by every kernel
    assert same(sympy.Add(*counts.extra_bytes(Layer(), "single_pass").values()), 16 * T * H)
    assert same(sympy.Add(*counts.extra_bytes(Layer(NONE), "single_pass").values()), 8 * T * H)
    without = counts.extra_bytes(Layer(), "split", prepared=False)
    assert same(without["operands read again"], T * (H * P + G * N + H) * E)


def test_segments_add_about_half_of_the_least():
    sizes = {
        BATCH: 1,
        SEQLEN: 16384,
        H: 80,
        P: 64,
        N: 128,
        G: 1,
        Q: 64,
        E: 2,
        counts.STATE_BYTES: 2,
        counts.SEGMENT: 2048,
    }
    added = counts.at(sympy.Add(*counts.extra_bytes(Layer(), "segments", prepared=False).values()), sizes)
    assert 0.4 < added / counts.at(counts.total_bytes(Layer()), sizes) < 0.7


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="no schedule 'quadratic'; known: single_pass, segments, split"):
        counts.extra_bytes(Layer(), "quadratic")
