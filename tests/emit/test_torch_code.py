"""Graphs as PyTorch functions: the text computes what the graph means."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

torch = pytest.importorskip("torch")

from ssdgen.emit.formula import UnprintableFormula  # noqa: E402
from ssdgen.emit.torch_code import function  # noqa: E402
from ssdgen.spec.decompose import chunk_graph  # noqa: E402
from ssdgen.spec.dims import entry  # noqa: E402
from ssdgen.spec.evaluate import evaluate  # noqa: E402
from ssdgen.spec.graph import Cumsum, Graph, Input, Map  # noqa: E402
from ssdgen.spec.layer import Layer  # noqa: E402
from ssdgen.spec.layouts import MULTI_HEAD  # noqa: E402
from ssdgen.spec.mamba3 import LAYER  # noqa: E402

HELPERS = """
import torch
def below(tensor, diagonal):
    return torch.ones(tensor.shape[-2:], dtype=torch.bool).tril(diagonal)
"""
OUTPUTS, OPTIONS = ("y", "state_out"), {"HAS_D": "D is not None", "HAS_Z": "z is not None"}


def made(graph: Graph, name: str, outputs: tuple[str, ...]):
    names: dict = {}
    exec(HELPERS + function(graph, name, "A function.", outputs, OPTIONS), names)
    return names[name]


@pytest.mark.parametrize("layer", (LAYER, Layer(layout=MULTI_HEAD)), ids=("trapezoidal", "euler"))
@pytest.mark.parametrize("options", (True, False))
def test_a_chunk(layer: Layer, options: bool, seed: int):
    """Scores below the diagonal, or on it too; a batch before the axes; options as None."""
    random, extents = np.random.default_rng(seed), {"h": 2, "i": 5, "j": 5, "p": 3, "n": 4}
    graph = chunk_graph(layer)
    compute = made(graph, "chunk", OUTPUTS)
    taken = compute.__code__.co_varnames[: compute.__code__.co_argcount]
    arrays = {name: random.normal(size=(2, *(extents[axis] for axis in graph[name].axes))) for name in taken}
    arrays |= {name: -np.abs(arrays[name]) for name in ("log_decay", "A") if name in arrays}
    arrays |= {name: np.array([low, low]) for name, low in (("dt_min", 0.1), ("dt_max", 1.0)) if name in arrays}
    given = {name: torch.tensor(array) for name, array in arrays.items()}
    given |= {name: given[name][0] for name in ("dt_min", "dt_max") if name in given}
    given |= {} if options else {"D": None, "z": None}
    found = compute(**given)
    for b in range(2):
        inputs = {name: array[b] for name, array in arrays.items()}
        wanted = evaluate(graph, inputs, {"HAS_D": options, "HAS_Z": options}, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_allclose(found[name][b].numpy(), wanted[name], rtol=1e-10, atol=1e-12)


def test_what_no_rule_prints():
    x = entry("x", "t")
    back = Graph("back", (Input("x", ("t",), "numbers"), Cumsum("y", ("t",), x, "t", reverse=True)))
    with pytest.raises(UnprintableFormula, match="from the end, which only adjoints have"):
        function(back, "f", "About.", ("y",), {})
    turned = Graph("turned", (Input("x", ("t", "d"), "numbers"), Map("y", ("d", "t"), sympy.cos(entry("x", "t", "d")))))
    with pytest.raises(UnprintableFormula, match="do not stand in that order"):
        function(turned, "f", "About.", ("y",), {})
