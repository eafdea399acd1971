"""The adjoint graph in float64: central differences, automatic differentiation, every layout, mask and option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdgen.spec.gradient import chunk_adjoint
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT
from ssdgen.spec.masks import DT, FAMILIES, NONE, A, MaskFamily
from ssdgen.spec.oracle import OracleInput, oracle
from ssdgen.spec.oracle_gradient import backward
from tests.spec.autograd import automatic
from tests.spec.cases import Arrays, Sizes, draw
from tests.spec.test_evaluate import LAYERS, SIZES

LIMITS = (0.05, 1.5)
EVERYTHING: dict[str, Any] = {
    "gate": True, "dt_bias": True, "dt_softplus": True, "initial_states": True, "boundaries": True,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "D": {"skip": "head"},
    "D per headdim": {"skip": "headdim"},
    "gate": {"gate": True},
    "bias": {"dt_bias": True},
    "softplus": {"dt_softplus": True},
    "states": {"initial_states": True},
    "boundaries": {"boundaries": True},
    "everything": {"skip": "headdim", **EVERYTHING},
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)


def problem(layer: Layer, sizes: Sizes, seed: int, limits: tuple[float, float] = LIMITS) -> tuple[Arrays, Any, Any]:
    """Arguments, d_y and d_final_states."""
    random = np.random.default_rng(seed)
    arrays = {**draw(layer, sizes, seed), "dt_limit": limits}
    states = (sizes.batch, sizes.nheads, sizes.headdim, sizes.dstate)
    return arrays, random.normal(size=(sizes.batch, sizes.seqlen, *states[1:3])), random.normal(size=states)


def differences(layer: Layer, arrays: Arrays, d_y: Any, d_states: Any, name: str, step: float = 1e-5) -> Any:
    """Central differences of the oracle by every entry of one argument."""
    found = np.zeros(np.shape(arrays[name]))
    for place in np.ndindex(found.shape):
        values = []
        for sign in (1, -1):
            moved = np.array(arrays[name])
            moved[place] += sign * step
            result = oracle(layer, **{**arrays, name: moved})
            values.append(np.sum(result.y * d_y) + np.sum(result.final_states * d_states))
        found[place] = (values[0] - values[1]) / (2 * step)
    return found


def agree(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=rtol * (1 + abs(value).max()), err_msg=name)


@families
@layouts
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_automatic_differentiation(family, layout, options, seed: int):
    layer = Layer(family, layout, **options)
    arrays, d_y, d_states = problem(layer, Sizes(2, 7, 4, 3, 2, 2), seed)
    agree(backward(layer, arrays, d_y, d_states, chunk=3), automatic(layer, arrays, d_y, d_states))


@families
@layouts
def test_it_is_central_differences(family, layout, seed: int):
    layer = Layer(family, layout, skip="head", **EVERYTHING)
    arrays, d_y, d_states = problem(layer, Sizes(1, 5, 4, 2, 2, 2), seed)
    found = backward(layer, arrays, d_y, d_states, chunk=2)
    expected = {f"d_{name}": differences(layer, arrays, d_y, d_states, name) for name in arrays if f"d_{name}" in found}
    agree(found, expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(LAYERS, SIZES, st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([(0.0, np.inf), LIMITS]))
def test_any_sizes_and_any_chunk(layer: Layer, sizes: Sizes, chunk: int, seed: int, limits: tuple[float, float]):
    arrays, d_y, d_states = problem(layer, sizes, seed, limits)
    agree(backward(layer, arrays, d_y, d_states, chunk=chunk), automatic(layer, arrays, d_y, d_states))


@pytest.mark.parametrize("rows", [0, 1, 3], ids=["no states", "one state", "a state for each"])
def test_packed_sequences(rows: int, seed: int):
    layer = Layer(skip="head", initial_states=rows > 0)
    arrays, d_y, _ = problem(layer, Sizes(1, 9, 2, 3, 2), seed)
    random = np.random.default_rng(seed)
    arrays["cu_seqlens"] = np.array([0, 4, 5, 9])
    if rows:
        arrays["initial_states"] = random.normal(size=(rows, 2, 3, 2))
    d_states = random.normal(size=(3, 2, 3, 2))
    found = backward(layer, arrays, d_y, chunk=3, d_varlen_states=d_states)
    agree(found, automatic(layer, arrays, d_y, d_varlen_states=d_states))


def test_a_new_mask_has_its_gradient(seed: int):
    layer = Layer(MaskFamily("quadratic", DT**2 * A, "decay by the square of the step"))
    arrays, d_y, d_states = problem(layer, Sizes(1, 5, 2, 2, 2), seed)
    found = backward(layer, arrays, d_y, d_states, chunk=2)
    expected = {f"d_{name}": differences(layer, arrays, d_y, d_states, name) for name in ("x", "dt", "A", "B", "C")}
    agree(found, expected, rtol=1e-6)


def test_a_new_formula_has_its_gradient(seed: int, monkeypatch):
    """Weights, gates and skips are differentiated, not known."""
    monkeypatch.setattr("ssdgen.spec.layer.input_weight", lambda dt: dt**2 + dt)
    monkeypatch.setattr("ssdgen.spec.layer.gate", lambda y, z: y * z**3)
    monkeypatch.setattr("ssdgen.spec.layer.skip", lambda y, d, x: y - d**2 * x)
    # no cached graph: it would have the old formulas
    monkeypatch.setattr("ssdgen.spec.oracle_gradient._adjoint", chunk_adjoint)
    layer = Layer(layout=MULTI_CONTRACT, skip="headdim", gate=True)
    arrays, d_y, d_states = problem(layer, Sizes(1, 5, 2, 2, 2), seed)
    found = backward(layer, arrays, d_y, d_states, chunk=3)
    expected = {f"d_{name}": differences(layer, arrays, d_y, d_states, name) for name in arrays if f"d_{name}" in found}
    agree(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dt", [0.0, 1e-8, 20.0, 100.0])
@pytest.mark.parametrize("a", [-1e-4, -1.0, -1e3, -1e30, 0.0, 3.0])
def test_extreme_steps_and_rates_stay_finite(dt: float, a: float, seed: int):
    layer = Layer(skip="head", gate=True)
    arrays, d_y, d_states = problem(layer, Sizes(seqlen=13), seed, (0.0, np.inf))
    arrays["dt"][:], arrays["A"][:] = dt, a
    found = backward(layer, arrays, d_y, d_states, chunk=4)
    assert all(np.isfinite(value).all() for value in found.values())
    # rows and columns of the scores meet on the diagonal; what rounding leaves of their difference is multiplied by A
    if -1e3 <= a < 0:
        agree(found, automatic(layer, arrays, d_y, d_states))


def test_steps_that_differ_by_orders_of_magnitude(seed: int):
    """Tokens that forget everything between tokens that forget nothing: differences, not quotients, of sums."""
    layer = Layer()
    arrays, d_y, d_states = problem(layer, Sizes(seqlen=12), seed, (0.0, np.inf))
    arrays["dt"] = np.where(np.arange(12) % 3 == 1, 1e3, 1e-6)[None, :, None] * np.ones((1, 12, 2))
    agree(backward(layer, arrays, d_y, d_states, chunk=5), automatic(layer, arrays, d_y, d_states), rtol=1e-8)


def test_no_decay_leaves_no_gradient_of_the_decay(seed: int):
    """Everything is forgotten at once, so that the decay does not matter: rows and columns cancel, also times A."""
    layer = Layer()
    arrays, d_y, d_states = problem(layer, Sizes(seqlen=12, headdim=8, dstate=8), seed, (0.0, np.inf))
    arrays["dt"][:], arrays["A"][:] = 2.0, -1e6
    found, expected = backward(layer, arrays, d_y, d_states, chunk=12), automatic(layer, arrays, d_y, d_states)
    assert abs(found["d_A"]).max() < 1e-12
    np.testing.assert_allclose(found["d_dt"], expected["d_dt"], rtol=1e-6, atol=1e-6)


def test_a_nan_stays_where_it_can_reach(seed: int):
    layer = Layer(dt_softplus=True)
    arrays, d_y, d_states = problem(layer, Sizes(seqlen=9), seed)
    arrays["dt"][0, 5, 0] = np.nan
    found = backward(layer, arrays, d_y, d_states, chunk=3)
    assert np.isnan(found["d_x"][0, :6, 0]).any() and np.isfinite(found["d_x"][0, :, 1]).all()


def test_limits_cut_the_gradient_of_the_step(seed: int):
    layer = Layer()
    arrays, d_y, d_states = problem(layer, Sizes(seqlen=4, nheads=1), seed, (0.5, 1.0))
    arrays["dt"][0, :, 0] = [0.4, 0.5, 1.0, 1.1]
    found = backward(layer, arrays, d_y, d_states, chunk=4)["d_dt"][0, :, 0]
    assert (found != 0).tolist() == [False, True, True, False]


def test_a_mask_without_decay_gives_none_to_a(seed: int):
    arrays, d_y, d_states = problem(Layer(NONE), Sizes(), seed)
    assert not backward(Layer(NONE), arrays, d_y, d_states, chunk=3)["d_A"].any()


def test_what_does_not_fit_is_refused():
    arrays, d_y, d_states = problem(Layer(), Sizes(), 0)
    for change, message in (
        ({"d_y": d_y[:, 1:]}, r"d_y has shape .*; it must be \(1, 7, 2, 3\)"),
        ({"d_final_states": d_states[0]}, "d_final_states has shape"),
        ({"d_varlen_states": d_states}, "it must be None without cu_seqlens"),
        ({"chunk": 0}, "chunk is 0"),
    ):
        arguments: dict[str, Any] = {"d_y": d_y, "d_final_states": d_states, "chunk": 3, **change}
        with pytest.raises(OracleInput, match=message):
            backward(Layer(), arrays, **arguments)
