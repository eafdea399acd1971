"""Evaluate a contraction graph in float64: what a graph means in numbers.  graph -> arrays

The meaning in symbols is `entries`; the kernels' meaning, tile by tile, is plan.interpret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy

from .dims import AXES, axes_of, name_of
from .graph import Contract, Cumsum, Graph, Input, Largest, Last, Map, Shift, Sum
from .numeric import function

Array = np.ndarray[Any, Any]


class MissingInput(ValueError):
    """A value was asked for that needs an input which was not given."""


def evaluate(
    graph: Graph, inputs: Mapping[str, Any], flags: Mapping[str, bool], targets: Sequence[str]
) -> dict[str, Array]:
    """Values of `targets` by name, each over the axes of its node, float64.

    inputs: arrays over the axes that the graph states for them, numbers for those without axes; a value that the graph
    would compute may be given too, and is then taken as it is.  flags: options that are set; the others are not.
    Raises MissingInput where a target needs an input that is not given, ValueError where extents disagree.
    """
    given = {name: np.asarray(value, dtype=np.float64) for name, value in inputs.items()}
    sizes: dict[str, int] = {}
    for name, array in given.items():
        axes = graph[name].axes
        if array.ndim != len(axes):
            raise ValueError(f"{name} has {array.ndim} axes; {graph.name} has it over ({', '.join(axes)})")
        for axis, extent in zip(axes, array.shape, strict=True):
            # rows and columns are the same positions
            for alias in ("i", "j") if axis in ("i", "j") else (axis,):
                if sizes.setdefault(alias, extent) != extent:
                    raise ValueError(f"{name} has {extent} along {axis}; another input has {sizes[alias]}")
    run = _Run(graph, sizes, flags, given)
    # a decay of zero and an infinite limit are meant
    with np.errstate(all="ignore"):
        return {name: run.value(name) for name in targets}


@dataclass
class _Run:
    graph: Graph
    sizes: dict[str, int]
    flags: Mapping[str, bool]
    known: dict[str, Array] = field(default_factory=dict)

    def value(self, name: str) -> Array:
        if name not in self.known:
            self.known[name] = self._compute(name)
        return self.known[name]

    def _compute(self, name: str) -> Array:
        node = self.graph[name]
        if isinstance(node, Input):
            raise MissingInput(f"{self.graph.name} needs {name} over ({', '.join(node.axes)}): {node.what}; give it")
        if isinstance(node, Map):
            on = node.option is None or self.flags.get(node.option, False)
            formula = node.formula if on else node.otherwise
            assert formula is not None, f"{name} has an option and nothing to be without it"
            return self._map(formula, node.axes)
        if isinstance(node, Contract):
            left, right = (self.value(name_of(term)) for term in (node.left, node.right))
            subscripts = f"{''.join(axes_of(node.left))},{''.join(axes_of(node.right))}->{''.join(node.axes)}"
            return np.einsum(subscripts, left, right)
        source = self.value(name_of(node.of))
        if isinstance(node, Sum):
            return np.sum(source, axis=tuple(axes_of(node.of).index(axis) for axis in node.over))
        if isinstance(node, Largest):
            return np.max(np.abs(source), axis=tuple(axes_of(node.of).index(axis) for axis in node.over))
        place = axes_of(node.of).index(node.along)
        if isinstance(node, Cumsum):
            summed = np.cumsum(np.flip(source, place) if node.reverse else source, axis=place)
            return np.flip(summed, place) if node.reverse else summed
        if isinstance(node, Shift):
            return _shifted(source, place, node.by)
        assert isinstance(node, Last)
        return np.take(source, -1, axis=place)

    def _map(self, formula: sympy.Expr, axes: tuple[str, ...]) -> Array:
        """The formula over a grid of `axes`; entries broadcast along the axes that they lack."""
        terms = sorted(formula.atoms(sympy.Indexed), key=str)
        inside = {symbol for term in terms for symbol in term.free_symbols}
        scalars = [s for s in formula.free_symbols - inside - set(AXES.values()) if str(s) in self.graph]
        held = formula.xreplace(dict.fromkeys(terms, sympy.Integer(1)))
        positions = [AXES[axis] for axis in axes if AXES[axis] in held.free_symbols]
        values = [
            *(self._spread(self.value(name_of(term)), axes_of(term), axes) for term in terms),
            *(self.value(str(scalar)) for scalar in scalars),
            *(self._spread(np.arange(self.sizes[str(axis)]), (str(axis),), axes) for axis in positions),
        ]
        computed = function([*terms, *scalars, *positions], formula)(*values)
        return np.array(np.broadcast_to(computed, tuple(self.sizes[axis] for axis in axes)), dtype=np.float64)

    @staticmethod
    def _spread(array: Array, read: tuple[str, ...], axes: tuple[str, ...]) -> Array:
        """The array, read at the axes `read`, with its axes in the order of `axes` and length one where it has none."""
        order = [read.index(axis) for axis in axes if axis in read]
        return np.transpose(array, order).reshape([array.shape[read.index(a)] if a in read else 1 for a in axes])


def _shifted(array: Array, place: int, by: int) -> Array:
    """The array moved `by` positions along an axis, zeros where nothing comes from."""
    moved = np.zeros_like(array)
    length = array.shape[place]
    if abs(by) < length:
        kept = (slice(max(0, by), length + min(0, by)), slice(max(0, -by), length - max(0, by)))
        lead = (slice(None),) * place
        moved[(*lead, kept[0])] = array[(*lead, kept[1])]
    return moved
