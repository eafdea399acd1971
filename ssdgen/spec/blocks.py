"""The block decomposition as four factors with formulas, shapes and ranks.  graphs -> blocks, adjoints -> show"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from . import notation
from .counts import FACTORS, graph_of
from .decompose import chunk_graph
from .dims import CHUNK, DSTATE, EXTENT, NGROUPS, NHEADS
from .graph import Contract, Graph, Input, Node, reads
from .layer import Layer

ABOUT = {
    "diagonal": "what the tokens of a chunk give to its own later tokens",
    "right": "what the tokens of a chunk add to the state",
    "centre": "what is left of the entering state, plus that: a scan over the chunks",
    "left": "what the entering state gives to the tokens of a chunk",
}
# groups of adjoints, each reading only those before it
TITLES = {
    "output": "adjoint of the output",
    **{factor: f"adjoint of the {factor} factor" for factor in ("left", "diagonal", "right", "centre")},
    "steps": "adjoint of what comes before the factors",
    "gradients": "gradients",
}


@dataclass(frozen=True)
class Equation:
    """Definition of one value.  shape: its extents, for all heads of the layer and one chunk."""

    name: str
    text: str
    latex: str
    shape: tuple[sympy.Expr, ...]


@dataclass(frozen=True)
class Factor:
    """One factor of the decomposition.

    equations: its values, in order; contraction: its matrix product in einsum letters, empty where it is element-wise;
    matrix: rows and columns of the factor as a matrix between positions and state; rank: of that matrix, for general
    entries; shape: extents of the value that it leaves.
    """

    name: str
    about: str
    equations: tuple[Equation, ...]
    contraction: str
    matrix: tuple[sympy.Expr, sympy.Expr]
    rank: sympy.Expr
    shape: tuple[sympy.Expr, ...]

    @property
    def text(self) -> str:
        return "\n".join(equation.text for equation in self.equations)

    @property
    def latex(self) -> str:
        return " \\\\\n".join(equation.latex for equation in self.equations)


@dataclass(frozen=True)
class Blocks:
    """The decomposition of one chunk.  steps: what comes before the factors; output: what is made of them."""

    layer: Layer
    chunk: sympy.Expr
    steps: tuple[Equation, ...]
    diagonal: Factor
    right: Factor
    centre: Factor
    left: Factor
    output: tuple[Equation, ...]

    @property
    def factors(self) -> tuple[Factor, Factor, Factor, Factor]:
        return self.diagonal, self.right, self.centre, self.left

    @property
    def off_diagonal_rank(self) -> sympy.Expr:
        """Most that a block strictly below the diagonal can have: left times centre times right."""
        return sympy.Min(*(factor.rank for factor in (self.left, self.centre, self.right)))


def blocks(layer: Layer, chunk: int | sympy.Expr = CHUNK) -> Blocks:
    """The four factors of `layer` for chunks of `chunk` positions, which may stay a symbol."""
    if isinstance(chunk, int) and chunk < 1:
        raise ValueError(f"chunk is {chunk}; a chunk has at least 1 position")
    graph, size = graph_of(layer), sympy.sympify(chunk)
    owner = {name: factor for factor, names in FACTORS.items() for name in _with_parts(graph, names)}
    nodes = {factor: [node for node in graph.nodes if owner.get(node.name) == factor] for factor in FACTORS}
    outside = [node for node in graph.nodes if node.name not in owner and not isinstance(node, Input)]
    after = _dependent(graph, set(owner))
    factors = {factor: _factor(factor, tuple(nodes[factor]), size) for factor in FACTORS}
    return Blocks(
        layer=layer,
        chunk=size,
        steps=tuple(_equation(node, size) for node in outside if node.name not in after),
        output=tuple(_equation(node, size) for node in outside if node.name in after),
        **factors,
    )


@dataclass(frozen=True)
class Adjoints:
    """The adjoint of one chunk.

    again: values of the forward pass that the adjoints read; groups: the adjoints of the output, of each factor and of
    what comes before them, then the gradients, by title, in an order in which each reads only what stands before it.
    """

    layer: Layer
    chunk: sympy.Expr
    again: tuple[Equation, ...]
    groups: dict[str, tuple[Equation, ...]]
    off_diagonal_rank: sympy.Expr


def adjoints(layer: Layer, chunk: int | sympy.Expr = CHUNK) -> Adjoints:
    """The adjoints of a chunk of `chunk` positions, which may stay a symbol, by the factor that they belong to."""
    forward, graph = blocks(layer, chunk), graph_of(layer, backward=True)
    made = [node for node in graph.nodes if not isinstance(node, Input)]
    own = [node for node in made if node.name.startswith("d_")]
    values = {node.name: node for node in chunk_graph(layer).nodes}
    members = {group: [node for node in own if _adjoint_group(node.name, values) == group] for group in TITLES}
    return Adjoints(
        layer=layer,
        chunk=forward.chunk,
        again=tuple(_equation(node, forward.chunk) for node in made if node not in own),
        groups={
            TITLES[group]: tuple(_equation(node, forward.chunk) for node in nodes)
            for group, nodes in members.items()
            if nodes
        },
        off_diagonal_rank=forward.off_diagonal_rank,
    )


def _adjoint_group(name: str, values: dict[str, Node]) -> str:
    """Where an adjoint belongs, by its name: d_v, or d_v_u for what v gets from u (gradient.py)."""
    rest = name.removeprefix("d_")
    value = max((v for v in values if f"{rest}_".startswith(f"{v}_")), key=len)
    after = rest[len(value) + 1 :]
    subject = max((u for u in values if f"{after}_".startswith(f"{u}_")), key=len, default=value)
    owner = {v: factor for factor, names in FACTORS.items() for n in names for v in (n, f"{n}_whole")}
    if subject in owner:
        return owner[subject]
    if isinstance(values[subject], Input):
        return "gradients"
    return "output" if subject.startswith("y") else "steps"


def _with_parts(graph: Graph, names: tuple[str, ...]) -> set[str]:
    """The names, and the same values before sequence boundaries cut them."""
    return {name for name in (*names, *(f"{name}_whole" for name in names)) if name in graph}


def _dependent(graph: Graph, names: set[str]) -> set[str]:
    """Names of the values that need one of `names`."""
    found: set[str] = set()
    for node in graph.nodes:
        if (names | found) & set(reads(node)):
            found.add(node.name)
    return found


def _equation(node: Node, chunk: sympy.Expr) -> Equation:
    return Equation(node.name, notation.text(node), notation.latex(node), _shape(node.axes, chunk))


def _shape(axes: tuple[str, ...], chunk: sympy.Expr) -> tuple[sympy.Expr, ...]:
    # what has positions and no head is shared by the heads of a group
    heads = () if "h" in axes else (NGROUPS,)
    return (*heads, *(NHEADS if axis == "h" else _extent(axis, chunk) for axis in axes))


def _extent(axis: str, chunk: sympy.Expr) -> sympy.Expr:
    return EXTENT[axis].subs(CHUNK, chunk)


def _factor(name: str, nodes: tuple[Node, ...], chunk: sympy.Expr) -> Factor:
    product = next((node for node in reversed(nodes) if isinstance(node, Contract)), None)
    if product is None:
        # element-wise in the state: a multiple of the identity
        contraction, matrix = "", (DSTATE, DSTATE)
    else:
        left, right = ("".join(notation.axes_of(term)) for term in (product.left, product.right))
        contraction = f"{left},{right}->{''.join(product.axes)}"
        # headdim is carried along: the factor acts on positions and state
        row = next(axis for axis in product.axes if axis not in ("h", "p"))
        matrix = (_extent(row, chunk), _extent(product.over, chunk))
    return Factor(
        name,
        ABOUT[name],
        tuple(_equation(node, chunk) for node in nodes),
        contraction,
        matrix,
        sympy.Min(*matrix),
        _shape(nodes[-1].axes, chunk),
    )
