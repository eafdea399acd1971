"""Derivatives of pointwise formulas: those of the numbers, and the rules for limits and decays."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from ssdgen.spec.decompose import chunk_graph, decay
from ssdgen.spec.derivative import decay_exponent, derivative, times
from ssdgen.spec.dims import COL, ROW, entry
from ssdgen.spec.functions import sigmoid, softplus
from ssdgen.spec.graph import Map
from ssdgen.spec.layer import Layer, clamp, gate
from ssdgen.spec.numeric import function

X, Y, LOW, HIGH = entry("x", "h", "j"), entry("y", "h", "j"), *sympy.symbols("low high", real=True)


def maps() -> list[Map]:
    layer = Layer(skip="head", gate=True, dt_bias=True, dt_softplus=True, boundaries=True)
    # a total may be minus infinity, and nothing is differentiated by way of it
    nodes = [node for node in chunk_graph(layer).nodes if node.name != "total_out"]
    return [node for node in nodes if isinstance(node, Map) and node.formula.atoms(sympy.Indexed)]


@pytest.mark.parametrize("node", maps(), ids=lambda node: node.name)
def test_it_is_the_limit_of_differences(node: Map, seed: int):
    random = np.random.default_rng(seed)
    terms = sorted(node.formula.atoms(sympy.Indexed), key=str)
    inside = {symbol for term in terms for symbol in term.free_symbols}
    scalars = sorted(node.formula.free_symbols - inside - {ROW, COL}, key=str)
    arguments = [*terms, *scalars, ROW, COL]
    # exponents of decays below zero, row below column, limits around zero
    values = dict(zip(arguments, random.normal(size=len(arguments)), strict=True)) | {ROW: 3, COL: 1}
    for term, value in list(values.items()):
        if str(term).startswith(("dA_cs[h, i]", "dA_last")):
            values[term] = -5 - abs(value)
        if str(term).startswith("dt_m"):
            values[term] = -9.0 if str(term) == "dt_min" else 9.0
    step = 1e-6
    for term in terms:
        slope = function(arguments, derivative(node.formula, term))(*values.values())
        up, down = (
            function(arguments, node.formula)(*{**values, term: values[term] + sign * step}.values())
            for sign in (1, -1)
        )
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


def test_another_entry_of_the_same_array_is_another_variable():
    row, column = entry("s", "h", "i"), entry("s", "h", "j")
    assert derivative(row - 2 * column, row) == 1 and derivative(row - 2 * column, column) == -2
    assert derivative(row, Y) == 0


@pytest.mark.parametrize(("dt", "slope"), [(-1.0, 0), (0.0, 1), (0.5, 1), (2.0, 1), (3.0, 0), (np.nan, 0)])
def test_a_limit_passes_what_it_lets_pass(dt: float, slope: int):
    """1 inside and on the limits, as torch.clamp has it."""
    assert function([X, LOW, HIGH], derivative(clamp(X, LOW, HIGH), X))(dt, 0.0, 2.0) == slope


def test_a_decay_counts_as_not_limited():
    u = X - Y
    assert decay_exponent(decay(u)) == u and decay_exponent(sympy.Pow(2, u)) is None
    assert derivative(decay(u), Y) == -sympy.log(2) * decay(u)
    assert derivative(Y * decay(X), X) == sympy.log(2) * Y * decay(X)


def test_smooth_functions():
    assert derivative(softplus(X), X) == sigmoid(X)
    assert sympy.expand(derivative(sigmoid(X), X) - sigmoid(X) * (1 - sigmoid(X))) == 0
    assert sympy.expand(derivative(gate(Y, X), X) - Y * sigmoid(X) * (1 + X * (1 - sigmoid(X)))) == 0
    assert derivative(X**2 * Y, X) == 2 * X * Y


def test_a_condition_stays_outermost():
    chosen = sympy.Piecewise((X * Y, ROW >= COL), (0, True))
    assert derivative(chosen, X) == sympy.Piecewise((Y, ROW >= COL), (0, True))
    assert times(derivative(chosen, X), X) == chosen
    assert times(2 * Y, X) == 2 * X * Y
