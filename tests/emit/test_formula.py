"""Formulas print as Triton expressions that mean the same, and what no rule knows is refused."""

from __future__ import annotations

import ast
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sympy

from ssdgen.emit.formula import FormulaPrinter, UnprintableFormula, broadcast
from ssdgen.spec import layer as formulas
from ssdgen.spec.decompose import chunk_graph, decay
from ssdgen.spec.dims import COL, ROW, axes_of, entry, name_of
from ssdgen.spec.functions import rsqrt, sigmoid, softplus, wrapped
from ssdgen.spec.graph import Map
from ssdgen.spec.layer import Layer
from ssdgen.spec.masks import FAMILIES
from ssdgen.spec.numeric import function

x, y = entry("x", "i", "j"), entry("y", "i", "j")
a, b = entry("a", "i"), entry("b", "j")
low, high = sympy.symbols("low high", real=True)

# what Triton's names mean, in NumPy
NAMES: dict[str, Any] = {
    "tl": SimpleNamespace(
        exp2=np.exp2,
        sigmoid=lambda v: 1 / (1 + np.exp(-v)),
        where=np.where,
        float32=np.float32,
    ),
    "minimum": np.minimum,
    "maximum": np.maximum,
    "softplus": lambda v: np.logaddexp(0, v),
    "decay": lambda v: np.exp2(np.minimum(v, 0)),
    "float": float,
}


def printed(expr: sympy.Basic, over: tuple[str, ...] = ("i", "j"), **options: Any) -> str:
    return FormulaPrinter(over, **options).print(expr)


def test_a_turn_has_functions_of_its_own():
    assert printed(x * sympy.cos(x) + sympy.sin(y), turns=True) == "sin(y) + x * cos(x)"


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (x + y, "x + y"),
        (y - x, "y - x"),
        (-x + y, "y - x"),
        (-x - y, "-x - y"),
        (x * (a + b), "x * (a[:, None] + b[None, :])"),
        (x - (a - b), "b[None, :] + x - a[:, None]"),
        (2 * x, "x * 2.0"),
        (-x * y, "-x * y"),
        (x / 4, "x * 0.25"),
        (sympy.Min(x, 0), "minimum(x, 0.0)"),
        (sympy.Min(sympy.Max(x, low), high), "minimum(high, maximum(low, x))"),
        (decay(x), "decay(x)"),
        (sympy.Pow(2, x), "tl.exp2(x)"),
        (softplus(x), "softplus(x)"),
        (sigmoid(x), "tl.sigmoid(x)"),
        (rsqrt(x) ** 3, "tl.rsqrt(x) * tl.rsqrt(x) * tl.rsqrt(x)"),
        ((x + y) ** 2, "(x + y) * (x + y)"),
        (1 / x, "1.0 / x"),
        (a * x / y, "x * a[:, None] / y"),
        ((x - y) / (a + 2), "(x - y) / (a[:, None] + 2.0)"),
        (x / sympy.log(2), "x * 1.4426950408889634"),
        (sympy.Piecewise((x, sympy.Ge(a, b)), (0, True)), "tl.where(a[:, None] >= b[None, :], x, 0.0)"),
        (x * sympy.cos(x), "x * tl.cos(x)"),
        (sympy.sin(x + y), "tl.sin(x + y)"),
        (wrapped(x), "x - tl.floor(x * 0.15915494309189535) * 6.283185307179586"),
        (y * wrapped(x), "y * (x - tl.floor(x * 0.15915494309189535) * 6.283185307179586)"),
        (sympy.pi * x, "x * 3.141592653589793"),
        (-sympy.oo, 'float("-inf")'),
        (sympy.oo, 'float("inf")'),
    ],
)
def test_prints(expr: sympy.Basic, text: str) -> None:
    assert printed(expr) == text


@pytest.mark.parametrize(
    "expr",
    [
        sympy.tan(x),
        sympy.exp(x),
        sympy.Abs(x),
        x**4,
        sympy.sqrt(x),
        1 / x**2,
        x / y**2,
        sympy.Pow(3, x),
        sympy.log(x),
        sympy.floor(x),
        sympy.Function("f")(x),
        sympy.Piecewise((x, a > 0), (y, b > 0), (0, True)),
        sympy.Piecewise((x, a > 0)),
        sympy.And(a > 0, b > 0),
        sympy.Sum(x, (sympy.Symbol("j"), 0, 3)),
    ],
    ids=str,
)
def test_refuses_what_no_rule_knows(expr: sympy.Basic) -> None:
    """Deep inside a formula too: nothing is printed in a way that nobody has thought about."""
    for whole in (expr, 2 * b + a) if expr.is_Boolean else (expr, a + b * expr, sympy.Min(expr, 0)):
        if whole.has(expr):
            with pytest.raises(UnprintableFormula, match="no rule prints"):
                printed(whole)


def test_values_in_the_operands_dtype_are_widened() -> None:
    text = printed(x * a, operands=frozenset({"x", "a"}))
    assert text == "x.to(tl.float32) * a.to(tl.float32)[:, None]"
    assert printed(x * a, operands=frozenset({"x"})) == "x.to(tl.float32) * a[:, None]"


def test_a_mask_is_its_own_condition() -> None:
    inside = entry("row_in", "i")
    expr = sympy.Piecewise((x, sympy.Ne(inside, 0)), (0, True))
    assert printed(expr, masks=frozenset({"row_in"})) == "tl.where(row_in[:, None], x, 0.0)"
    assert printed(expr) == "tl.where(row_in[:, None] != 0.0, x, 0.0)"


def test_broadcast() -> None:
    assert broadcast("v", (), ("i", "j")) == "v"
    assert broadcast("v", ("i",), ("i",)) == "v"
    assert broadcast("v", ("j",), ("i", "j")) == "v[None, :]"
    assert broadcast("v", ("i", "p"), ("i", "j", "p")) == "v[:, None, :]"
    assert broadcast("v", ("j", "i"), ("i", "j")) == "tl.trans(v)"
    for axes, over in ((("p", "i"), ("i", "j", "p")), (("n",), ("i", "j"))):
        with pytest.raises(UnprintableFormula, match="transpose it first"):
            broadcast("v", axes, over)


def _graph_formulas() -> list[tuple[str, Map]]:
    everything = {"skip": "headdim", "gate": True, "boundaries": True}
    graphs = [chunk_graph(Layer(family=family, **everything)) for family in FAMILIES.values()]
    return [(f"{graph.name}.{node.name}", node) for graph in graphs for node in graph.nodes if isinstance(node, Map)]


@pytest.mark.parametrize(("name", "node"), _graph_formulas(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_formula_of_the_description_keeps_its_meaning(name: str, node: Map) -> None:
    """The printed text, run on numbers, equals the formula: every pointwise value of every family."""
    random = np.random.default_rng(len(name))
    sizes = {axis: extent for extent, axis in enumerate("hijpn", start=2)} | {"i": 5, "j": 5}
    # positions are variables of the kernel
    positions = sympy.Ge(entry("row", "i"), entry("col", "j"))
    whole = node.formula.xreplace({sympy.Ge(ROW, COL): positions})
    terms = sorted(whole.atoms(sympy.Indexed), key=str)
    inside = {symbol for term in terms for symbol in term.free_symbols}
    arrays = {term: random.normal(size=[sizes[axis] for axis in axes_of(term)]) for term in terms}
    where = {symbol: random.normal() for symbol in whole.free_symbols - inside}

    def wide(array: Any, axes: tuple[str, ...]) -> Any:
        order = [axes.index(axis) for axis in node.axes if axis in axes]
        index = tuple(slice(None) if axis in axes else None for axis in node.axes)
        return np.transpose(array, order)[index] if axes else array

    # rows and columns of one value are two arrays, so each read has a name of its own
    names = {term: entry(f"{name_of(term)}_{place}", *axes_of(term)) for place, term in enumerate(terms)}
    scope = {**NAMES, **{f"{name_of(term)}_{place}": arrays[term] for place, term in enumerate(terms)}}
    scope |= {str(symbol): value for symbol, value in where.items()}
    order = list(names)
    formula = function([*order, *where], whole)
    expected = formula(*(wide(arrays[term], axes_of(term)) for term in order), *where.values())
    if any(axes_of(term) != tuple(axis for axis in node.axes if axis in axes_of(term)) for term in terms):
        pytest.skip("read across the order of its axes, which the plan transposes first")
    text = printed(whole.xreplace(names), node.axes)
    found = eval(compile(ast.parse(text, mode="eval"), name, "eval"), {"__builtins__": {}}, scope)
    np.testing.assert_allclose(np.broadcast_to(found, np.shape(expected)), expected, rtol=1e-12)


def test_numbers_keep_all_their_digits() -> None:
    assert float(printed(sympy.log(2))) == math.log(2)
    assert printed(formulas.gate(x, y)) == "x * y * tl.sigmoid(y)"
