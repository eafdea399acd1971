"""A contraction graph over named axes: what one block computes, as data.  layer -> graph -> evaluate, plan.lower

Every value of a chunk is an array over a subset of the axes h, i, j, p, n.  Positions inside a chunk have two names,
row i and column j: a value that lives on columns (dt[h, j]) may be read on rows (dt[h, i]); it is the same array.  The
convolution and the norms have tokens t and channels d.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from .dims import AXES, name_of


@dataclass(frozen=True)
class Input:
    """An array that the graph reads.  axes: the axes it has; what: one line for people."""

    name: str
    axes: tuple[str, ...]
    what: str


@dataclass(frozen=True)
class Map:
    """Pointwise formula.  With `option`, it holds when that flag is set; the value is `otherwise` when it is not."""

    name: str
    axes: tuple[str, ...]
    formula: sympy.Expr
    option: str | None = None
    otherwise: sympy.Expr | None = None


@dataclass(frozen=True)
class Contract:
    """Sum of left times right over one axis: a matrix product."""

    name: str
    axes: tuple[str, ...]
    left: sympy.Indexed
    right: sympy.Indexed
    over: str


@dataclass(frozen=True)
class Cumsum:
    """Inclusive running sum of `of` along the positions of the chunk, from its start or, reverse, from its end."""

    name: str
    axes: tuple[str, ...]
    of: sympy.Indexed
    along: str
    reverse: bool = False


@dataclass(frozen=True)
class Last:
    """Entry of `of` at the last position of the chunk."""

    name: str
    axes: tuple[str, ...]
    of: sympy.Indexed
    along: str


@dataclass(frozen=True)
class Sum:
    """Sum of `of` over some of its axes."""

    name: str
    axes: tuple[str, ...]
    of: sympy.Indexed
    over: tuple[str, ...]


@dataclass(frozen=True)
class Shift:
    """Entry of `of` that stands `by` positions before along one axis, or after it if `by` is negative; else zero."""

    name: str
    axes: tuple[str, ...]
    of: sympy.Indexed
    along: str
    by: int


@dataclass(frozen=True)
class Largest:
    """Largest magnitude of `of` along some of its axes."""

    name: str
    axes: tuple[str, ...]
    of: sympy.Indexed
    over: tuple[str, ...]


Node = Input | Map | Contract | Cumsum | Last | Sum | Shift | Largest


def reads(node: Node) -> tuple[str, ...]:
    """Names of the arrays that a node reads, sorted."""
    if isinstance(node, Input):
        return ()
    if isinstance(node, Contract):
        return tuple(sorted({name_of(node.left), name_of(node.right)}))
    if isinstance(node, (Cumsum, Last, Sum, Shift, Largest)):
        return (name_of(node.of),)
    exprs = [node.formula] + ([node.otherwise] if node.otherwise is not None else [])
    return tuple(sorted({leaf for expr in exprs for leaf in leaves(expr)}))


def leaves(expr: sympy.Expr) -> set[str]:
    """Names of the arrays and scalars in a formula, axes excluded."""
    indexed = expr.atoms(sympy.Indexed)
    inside = {symbol for term in indexed for symbol in term.free_symbols}
    scalars = {str(symbol) for symbol in expr.free_symbols - inside if str(symbol) not in AXES}
    return {name_of(term) for term in indexed} | {s for s in scalars if not s.endswith("]")}


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each reads only what stands before it."""

    name: str
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in reads(node) if name not in seen]
            if missing:
                raise ValueError(f"{self.name}: {node.name} reads {', '.join(missing)} before it is computed")
            if node.name in seen:
                raise ValueError(f"{self.name}: {node.name} is defined twice")
            seen.add(node.name)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"{self.name} has no value {name!r}; it has {', '.join(n.name for n in self.nodes)}")

    def __contains__(self, name: str) -> bool:
        return any(node.name == name for node in self.nodes)

    def closure(self, targets: tuple[str, ...], available: frozenset[str]) -> tuple[Node, ...]:
        """Nodes needed to compute `targets` when the values in `available` are at hand already, in graph order."""
        wanted = set(targets) - available
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted |= set(reads(node)) - available
        return tuple(node for node in self.nodes if node.name in wanted)


__all__ = ["Contract", "Cumsum", "Graph", "Input", "Largest", "Last", "Map", "Node", "Shift", "Sum", "leaves", "reads"]
