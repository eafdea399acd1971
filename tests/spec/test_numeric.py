"""Formulas as numbers: stable, broadcasting, strict; and the functions of the layer as symbols."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from ssdgen.spec.dims import COL, ROW, entry
from ssdgen.spec.functions import sigmoid, silu, silu2, silu2_slope, softplus, wrapped
from ssdgen.spec.numeric import UnknownFunction, function

X, Y = sympy.symbols("x y", real=True)


def test_no_overflow_and_no_loss_far_out():
    x = np.array([-1e4, -40.0, 0.0, 40.0, 1e4])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(function((X,), softplus(X))(x), [0, np.exp(-40), np.log(2), 40, 1e4], rtol=1e-12)
        np.testing.assert_allclose(function((X,), sigmoid(X))(x), [0, np.exp(-40), 0.5, 1, 1], rtol=1e-12)


@pytest.mark.parametrize(
    "formula", [sympy.Min(X, 0), sympy.Max(X, 0, Y), softplus(X), sigmoid(X), 2 ** sympy.Min(X, 0)]
)
def test_a_nan_stays_a_nan(formula: sympy.Expr):
    with np.errstate(invalid="ignore"):
        assert np.isnan(function((X, Y), formula)(np.array([np.nan]), 1.0)).all()


def test_everything_broadcasts():
    causal = sympy.Piecewise((sympy.Min(entry("x", "j"), 5, ROW) + entry("y", "i"), ROW >= COL), (-sympy.oo, True))
    rows, columns = np.arange(3.0)[:, None], np.arange(3.0)[None]
    found = function((entry("x", "j"), entry("y", "i"), ROW, COL), causal)(10 * columns, rows, rows, columns)
    assert found.tolist() == [[0, -np.inf, -np.inf], [1, 2, -np.inf], [2, 4, 4]]


def test_what_has_no_numeric_form_is_refused():
    with pytest.raises(UnknownFunction, match="no numeric form for decay"):
        function((X,), sympy.Function("decay")(X))
    with pytest.raises(UnknownFunction, match="no value where none of its conditions holds"):
        function((X,), sympy.Piecewise((X, X > 0)))


def test_functions_as_symbols():
    assert softplus(X).diff(X) == sigmoid(X)
    assert sympy.simplify(softplus(X).rewrite(sympy.log).diff(X) - sigmoid(X).rewrite(sympy.exp)) == 0
    slope = sigmoid(X).diff(X).rewrite(sympy.exp)
    assert sympy.simplify(slope - sigmoid(X).rewrite(sympy.exp).diff(X)) == 0
    # so that a clamped decay of a positive step resolves by itself
    assert softplus(X).is_positive and sigmoid(X).is_positive
    assert sympy.Min(-softplus(X), 0) == -softplus(X)


def test_an_activation_in_units():
    u = np.array([-1e4, -40.0, -1.0, 0.0, 0.3, 40.0, 1e4])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, slope = function((X,), silu2(X))(u), function((X,), silu2(X).diff(X))(u)
    np.testing.assert_allclose(value, function((X,), silu(X))(-np.log(2) * u), rtol=1e-14)
    np.testing.assert_allclose(slope, function((X,), silu(X).diff(X))(-np.log(2) * u) * -np.log(2), rtol=1e-12)
    assert silu2(X).diff(X) == silu2_slope(X)


def test_an_angle_less_whole_turns():
    angles = np.array([-0.5, 0.0, 3.0, 7.0, 100.0])
    np.testing.assert_allclose(function((X,), wrapped(X))(angles), np.mod(angles, 2 * np.pi))
    same = function((X,), wrapped(X).rewrite(sympy.floor).subs(sympy.floor(X / (2 * sympy.pi)), 0))
    np.testing.assert_allclose(same(np.array([1.0, 6.0])), [1.0, 6.0])
    assert wrapped(X).diff(X) == 1
