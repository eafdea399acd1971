"""A decay for every token: its matrix, its gradients, its plans, and the kernels that it needs of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy

from ssdgen.plan import catalogue, interpret, launch, tiles
from ssdgen.plan.schedules import mirror
from ssdgen.spec import chain, oracle_gradient
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, MULTI_INPUT, HeadLayout
from ssdgen.spec.masks import GATED, NONE
from ssdgen.spec.oracle import oracle
from ssdgen.spec.semiseparable import Tokens, matrix, recurrence, same
from ssdgen.spec.two_sided import two_sided
from tests.plan.agree import SCHEDULES, TOLERANCE, agrees, inputs_of
from tests.spec.autograd import automatic
from tests.spec.cases import Sizes

GATES = Layer(GATED)
EVERYTHING = Layer(GATED, MULTI_INPUT, "headdim", True, True, True, True, True)
SIZES = Sizes(batch=2, seqlen=21, nheads=4, headdim=5, dstate=6, ngroups=2)


def test_the_matrix_is_the_recurrence_and_the_chain() -> None:
    tokens = Tokens(GATES, seqlen=3)
    found, outcome = matrix(tokens, 0), recurrence(tokens)
    blocks = chain.walk(tokens, 0, (0, 2, 3), chain.identity(tokens))
    outputs = chain.outputs(tokens, 0, (0, 2, 3), blocks)
    for i in range(3):
        by_matrix = sympy.Add(*(found[i, j] * tokens.operand("x", 0, j, 0) for j in range(3)))
        assert same(by_matrix, outcome.y[0, i, 0]) and same(outputs[0, i, 0], by_matrix)
    assert tokens.a(0, 2) in found.free_symbols and tokens.a(0, 0) not in found.free_symbols


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str, seed: int) -> None:
    inputs = inputs_of(EVERYTHING, SIZES, seed, (0.05, 1.5))
    assert agrees(EVERYTHING, inputs, chunk=8, **SCHEDULES[schedule])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients(layout: HeadLayout, seed: int) -> None:
    """Of the graph of a chunk against automatic differentiation of the recurrence, and of the plans against both."""
    layer, random = replace(EVERYTHING, layout=layout), np.random.default_rng(seed)
    inputs: dict[str, Any] = inputs_of(layer, SIZES, seed, (0.05, 1.5))
    inputs["A"][:, 3] += 3.0  # these decays count as 0 and get no gradient
    d_y = random.normal(size=(2, 21, 4, 5))
    d_final = random.normal(size=(2, 4, 5, 6))
    wanted = automatic(layer, inputs, d_y, d_final)
    assert wanted["d_A"].shape == (2, 21, 4) and not wanted["d_A"][:, 3][inputs["A"][:, 3] > 0].any()
    found = [oracle_gradient.backward(layer, inputs, d_y, d_final, chunk=8)]
    found += [interpret.backward(layer, inputs, d_y, d_final, chunk=8, schedule=how) for how in ("walk", "chunks")]
    for gradients in found:
        assert gradients.keys() == wanted.keys()
        for name, value in wanted.items():
            atol = 100 * TOLERANCE * (1 + np.abs(value).max())
            np.testing.assert_allclose(gradients[name], value, rtol=TOLERANCE, atol=atol, err_msg=name)


def test_only_running_sums_know_of_it() -> None:
    """Every other kernel is the one of Mamba-2's decays: its tuned records are those of `ssd` too.

    Walks that make step sizes aside do so for Mamba-2's alone; `ssd` has its prepared.
    """
    own, other = (
        {kernel.name: kernel for kernel in (*catalogue.kernels(layer), *catalogue.backward(layer))}
        for layer in (Layer(), GATES)
    )
    assert own.keys() == other.keys()
    different = {name for name in own if own[name] != other[name] and not (own[name].consumers and "inline" in name)}
    assert {catalogue.gated_name(name) for name in different} == {k.name for k in catalogue.gated(Layer())}


def test_what_ships_beside_the_layers_own_kernels() -> None:
    assert not catalogue.gated(Layer(NONE)) and not catalogue.variants(Layer(NONE))
    assert not catalogue.variants(Layer(layout=MULTI_CONTRACT))
    (layer, own), *others = catalogue.everything(Layer())
    assert layer == Layer() and [other.layout.name for other, _ in others] == ["multi-contract", "multi-expand"]
    names = [kernel.name for _, every in catalogue.everything(Layer()) for kernel in every]
    assert len(names) == len(set(names)) and catalogue.beside(Layer()) < set(names)
    assert len(own) > len(catalogue.gated(Layer()))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dstate", [6, 24])
def test_what_is_above_the_diagonal(layout: HeadLayout, dstate: int, seed: int) -> None:
    """The walk back adds to the y of one side what makes it that of both."""
    layer = Layer(GATED, layout, boundaries=True)
    sizes = replace(SIZES, dstate=dstate)
    below, above = (inputs_of(layer, sizes, seed + k, (-np.inf, np.inf)) for k in (0, 1))
    wanted = two_sided(layer, below, {name: above[name] for name in ("A", "B", "C")})
    inputs = {**below, **{name: above[name] for name in ("A", "B", "C")}}
    constants = {"BLOCK_P": 4}
    call = launch.Call.of(layer, inputs, 8, constants, interpret.run, lambda *extents: np.full(extents, np.nan))
    call.cut(24)
    y = np.full(wanted.shape, np.nan)
    tensors = {**call.steps(prepared=True), "below": oracle(layer, **below).y, "y": y}
    call.launch(mirror.kernel(layer, len(tiles.cut(dstate))), tensors)
    np.testing.assert_allclose(y, wanted, rtol=TOLERANCE, atol=TOLERANCE)
