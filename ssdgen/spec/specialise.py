"""The graph of one set of options: choices made, aliases gone, only what is needed left.  Graph, flags -> Graph

For people and for counting. The plan keeps the options in the graph, because one kernel serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy

from .dims import axes_of, name_of
from .graph import Contract, Cumsum, Graph, Input, Last, Map, Node, Sum

TARGETS = ("y", "state_out")


def specialise(graph: Graph, flags: Mapping[str, bool], targets: tuple[str, ...] = TARGETS) -> Graph:
    """Same values of `targets` as `graph` has with `flags` set, without options, aliases and unused nodes."""
    chosen = Graph(graph.name, tuple(_choose(node, flags) for node in graph.nodes))
    needed = Graph(graph.name, chosen.closure(targets, frozenset()))
    return _without_aliases(needed, targets)


def _choose(node: Node, flags: Mapping[str, bool]) -> Node:
    if not isinstance(node, Map) or node.option is None:
        return node
    formula = node.formula if flags.get(node.option, False) else node.otherwise
    if formula is None:
        raise ValueError(f"{node.name} has the option {node.option} and no value without it")
    return Map(node.name, node.axes, formula)


def _without_aliases(graph: Graph, targets: tuple[str, ...]) -> Graph:
    """Every node that only repeats another is dropped, and all of its kind go by one name."""
    same: dict[str, list[str]] = {}
    root: dict[str, str] = {}
    for node in graph.nodes:
        source = _repeats(node)
        root[node.name] = root[source] if source else node.name
        same.setdefault(root[node.name], []).append(node.name)
    names = {old: _common(graph, members, targets) for members in same.values() for old in members}
    return Graph(graph.name, tuple(_renamed(node, names) for node in graph.nodes if not _repeats(node)))


def _common(graph: Graph, members: list[str], targets: tuple[str, ...]) -> str:
    """Name for equal values: what was asked for, else the first, though not a factor that a boundary might have cut."""
    if isinstance(graph[members[0]], Input):
        return members[0]
    wanted = [name for name in members if name in targets]
    return (wanted or [name for name in members if not name.endswith("_whole")] or members)[0]


def _repeats(node: Node) -> str | None:
    """Name of the value that a node is equal to, entry by entry; one that is spread along another axis is not."""
    if isinstance(node, Map) and isinstance(node.formula, sympy.Indexed):
        return name_of(node.formula) if len(axes_of(node.formula)) == len(node.axes) else None
    return None


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    def formula(expr: Any) -> Any:
        return expr.xreplace(
            {term: term.xreplace({term.base: _base(names, term)}) for term in expr.atoms(sympy.Indexed)}
        )

    name = names[node.name]
    if isinstance(node, Map):
        return replace(node, name=name, formula=formula(node.formula))
    if isinstance(node, Contract):
        return replace(node, name=name, left=formula(node.left), right=formula(node.right))
    if isinstance(node, (Cumsum, Last, Sum)):
        return replace(node, name=name, of=formula(node.of))
    return node


def _base(names: Mapping[str, str], term: sympy.Indexed) -> Any:
    return sympy.IndexedBase(names[name_of(term)], real=True)
