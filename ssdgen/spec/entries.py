"""Evaluate a contraction graph exactly, one entry at a time: what a graph means in symbols.  graph -> expressions"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from .dims import AXES, axes_of, name_of
from .graph import Contract, Cumsum, Graph, Input, Last, Map, Sum

Entry = Callable[..., Any]


@dataclass(frozen=True)
class Entries:
    """Entries of the values of `graph`, computed when asked for and then kept.

    inputs: for each array a function of its indices, in the order of its axes; a value that the graph would compute may
    be given too.  sizes: extents of i, n (and p, h where something is summed over them); rows and columns share i.
    flags: options that are set.
    """

    graph: Graph
    inputs: Mapping[str, Entry]
    sizes: Mapping[str, int]
    flags: Mapping[str, bool] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...]], sympy.Expr] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, name: str, *index: int) -> sympy.Expr:
        """Entry of the value `name` at `index`, along the axes of its node.  KeyError: an input that is not given."""
        key = (name, index)
        if key not in self._known:
            at = dict(zip(self.graph[name].axes, index, strict=True))
            self._known[key] = sympy.sympify(
                self.inputs[name](*index) if name in self.inputs else self._compute(name, at)
            )
        return self._known[key]

    def _read(self, term: sympy.Indexed, at: Mapping[str, int]) -> sympy.Expr:
        return self(name_of(term), *(at[axis] for axis in axes_of(term)))

    def _compute(self, name: str, at: Mapping[str, int]) -> sympy.Expr:
        node = self.graph[name]
        if isinstance(node, Input):
            raise KeyError(f"{self.graph.name} needs {name} over ({', '.join(node.axes)}): {node.what}; give it")
        if isinstance(node, Map):
            on = node.option is None or self.flags.get(node.option, False)
            return self._map(node.formula if on else node.otherwise, at)
        if isinstance(node, Contract):
            steps = ({**at, node.over: step} for step in range(self._extent(node.over)))
            return sympy.Add(*(self._read(node.left, step) * self._read(node.right, step) for step in steps))
        if isinstance(node, Cumsum):
            here = at[node.along]
            steps = range(here, self._extent(node.along)) if node.reverse else range(here + 1)
            return sympy.Add(*(self._read(node.of, {**at, node.along: step}) for step in steps))
        if isinstance(node, Sum):
            places = itertools.product(*(range(self._extent(axis)) for axis in node.over))
            steps = ({**at, **dict(zip(node.over, place, strict=True))} for place in places)
            return sympy.Add(*(self._read(node.of, step) for step in steps))
        assert isinstance(node, Last)
        return self._read(node.of, {**at, node.along: self._extent(node.along) - 1})

    def _map(self, formula: Any, at: Mapping[str, int]) -> sympy.Expr:
        terms = formula.atoms(sympy.Indexed)
        inside = {symbol for term in terms for symbol in term.free_symbols}
        values: dict[sympy.Basic, sympy.Basic] = {AXES[axis]: sympy.Integer(position) for axis, position in at.items()}
        # decide by the position first: what is masked must not be computed
        decided = {term: sympy.Dummy(name_of(term), real=True) for term in terms}
        formula = formula.xreplace(decided).xreplace(values)
        for term, stand_in in decided.items():
            if stand_in in formula.free_symbols:
                values[stand_in] = self._read(term, at)
        scalars = formula.free_symbols - inside - set(decided.values()) - set(AXES.values())
        values |= {scalar: self(str(scalar)) for scalar in scalars if str(scalar) in self.graph}
        return formula.xreplace(values)

    def _extent(self, axis: str) -> int:
        return self.sizes["i" if axis == "j" else axis]
