"""Least work of the layer, and what each schedule adds, as expressions in the sizes.  graphs -> roofline, show

A count is over all tokens, batch * seqlen of them, in whole chunks. Parameters of a head (A, D, dt_bias) are left out:
they are a few KB however long the sequence is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sympy

from .decompose import CAUSAL as CONDITIONS
from .decompose import CENTRE, DIAGONAL, LEFT, RIGHT, chunk_graph
from .dims import BATCH, CHUNK, DSTATE, EXTENT, HEADDIM, NGROUPS, NHEADS, SEQLEN, name_of
from .functions import sigmoid, softplus
from .gradient import chunk_adjoint, gradients
from .graph import Contract, Graph, Input, Map, Node, Sum, reads
from .layer import Layer
from .specialise import TARGETS, specialise

# bytes of an entry of x, dt, B, C, z and y, and of a state that one kernel leaves to another
ELEMENT_BYTES, STATE_BYTES, SEGMENT = sympy.symbols("element_bytes state_bytes segment", integer=True, positive=True)
FP32_BYTES, INT32_BYTES = 4, 4

TOKENS = BATCH * SEQLEN
# part of a chunk's Q x Q pairs that stands on or below the diagonal
CAUSAL = (1 + 1 / CHUNK) / 2

FACTORS = {"diagonal": DIAGONAL, "right": RIGHT, "centre": CENTRE, "left": LEFT}
SCHEDULES = ("single_pass", "segments", "split")


@cache
def graph_of(layer: Layer, backward: bool = False) -> Graph:
    """The graph of a chunk with the layer's own options.

    backward: of its adjoint. What enters a chunk is not stored, so the states go forward once more.
    """
    if not backward:
        return specialise(chunk_graph(layer), layer.flags())
    graph = chunk_adjoint(layer)
    return specialise(graph, layer.flags(), (*gradients(layer, graph), "state_out"))


def flops(layer: Layer, backward: bool = False) -> dict[str, sympy.Expr]:
    """Multiplications and additions of the matrix products, by the name of the product."""
    graph = graph_of(layer, backward)
    return {node.name: 2 * _size(graph, node) for node in graph.nodes if isinstance(node, Contract)}


def flops_by_factor(layer: Layer) -> dict[str, sympy.Expr]:
    """The same, by factor of the decomposition; a chunk's centre factor is element-wise and has none."""
    counted = flops(layer)
    return {
        factor: sympy.Add(*(counted[name] for name in names if name in counted)) for factor, names in FACTORS.items()
    }


def total_flops(layer: Layer, backward: bool = False) -> sympy.Expr:
    return sympy.Add(*flops(layer, backward).values())


def exponentials(layer: Layer, backward: bool = False) -> dict[str, sympy.Expr]:
    """Evaluations of a special function, by the value that needs them: exp2, and two (exp and log) for a softplus.

    What several values need counts once, for the first of them.
    """
    graph, found = graph_of(layer, backward), {}
    known: set[Any] = set()
    for node in graph.nodes:
        if isinstance(node, Map):
            powers = {term for term in node.formula.atoms(sympy.Pow) if term.base == 2 and not term.exp.is_number}
            needed = (powers | node.formula.atoms(softplus) | node.formula.atoms(sigmoid)) - known
            calls = sum(2 if isinstance(term, softplus) else 1 for term in needed)
            known |= needed
            if calls:
                found[node.name] = calls * _size(graph, node)
    return found


def least_bytes(layer: Layer, final_states: bool = False, backward: bool = False) -> dict[str, sympy.Expr]:
    """Bytes that must cross the memory bus, by array: inputs once, outputs once (docs/maths.md, Least work).

    backward: adjoints of the outputs are inputs, gradients are outputs, and the outputs themselves are not needed.
    """
    graph = graph_of(layer, backward)
    results = gradients(layer, graph) if backward else TARGETS
    ends = [node for node in graph.nodes if isinstance(node, Input) or node.name in results]
    found = {node.name: _entries(layer, node) * ELEMENT_BYTES for node in ends if {"i", "j"} & set(node.axes)}
    state = BATCH * NHEADS * HEADDIM * DSTATE * FP32_BYTES
    if "seq" in found:
        found["seq"] = TOKENS * INT32_BYTES
    # what comes made is as exact as it was made
    made = ("dt", "own", "log_decay") if layer.discretisation.made else ()
    found |= {name: TOKENS * NHEADS * FP32_BYTES for name in found if name.removeprefix("d_") in made}
    if layer.initial_states:
        found |= dict.fromkeys(("initial_states", *(["d_initial_states"] if backward else [])), state)
    if final_states:
        found["d_final_states" if backward else "final_states"] = state
    return found


def total_bytes(layer: Layer, final_states: bool = False, backward: bool = False) -> sympy.Expr:
    return sympy.Add(*least_bytes(layer, final_states, backward).values())


def extra_bytes(layer: Layer, schedule: str, prepared: bool = True) -> dict[str, sympy.Expr]:
    """Bytes that a schedule moves beyond the least, by reason.

    schedule: "single_pass" moves no states; "segments" and "split" write a summary per segment or per chunk, replace it
    by the state that enters there, and read that again: four crossings per state element, 8 bytes in bf16 and 16 in
    fp32.  The kernel that makes the summaries reads its operands a second time.
    prepared: step sizes and running sums go through memory in fp32, written once and read by each kernel.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    # kernels that walk over all tokens
    passes = 1 if schedule == "single_pass" else 2
    steps = TOKENS * NHEADS * (2 if layer.family.decays else 1) * FP32_BYTES
    found: dict[str, sympy.Expr] = {}
    if prepared:
        found["step sizes and running sums"] = steps * (1 + passes)
    if passes == 2:
        least = least_bytes(layer)
        again = ("x", "B", "seq") if prepared else ("x", "B", "seq", "dt_raw")
        length = CHUNK if schedule == "split" else SEGMENT
        found["operands read again"] = sympy.Add(*(least[name] for name in again if name in least))
        found["states between kernels"] = 4 * TOKENS / length * NHEADS * HEADDIM * DSTATE * STATE_BYTES
    return found


def at(expr: sympy.Expr, sizes: Mapping[Any, float]) -> float:
    """A count for the given sizes, by symbol.  TypeError where a size is missing."""
    return float(expr.xreplace({symbol: sympy.sympify(size) for symbol, size in sizes.items()}))  # type: ignore[arg-type]


def _entries(layer: Layer, node: Node) -> sympy.Expr:
    """Number of entries of an array that has some for every token; a gradient has as many as what it is of."""
    operand = node.name.removeprefix("d_")
    heads = layer.layout.extent(operand) if operand in ("x", "B", "C") else NHEADS if "h" in node.axes else 1
    return TOKENS * heads * sympy.Mul(*(EXTENT[axis] for axis in node.axes if axis in ("p", "n")))


def _size(graph: Graph, node: Map | Contract) -> sympy.Expr:
    """How often the body of a node runs: the product of its axes' extents, over all chunks and heads or groups."""
    axes = {*node.axes, *([node.over] if isinstance(node, Contract) else [])}
    # what all heads of a group share is computed once per group
    heads = NHEADS if "h" in axes else NGROUPS
    causal = CAUSAL if {"i", "j"} <= axes and _only_causal(graph, node) else 1
    return heads * TOKENS / CHUNK * causal * sympy.Mul(*(EXTENT[axis] for axis in sorted(axes - {"h"})))


def _only_causal(graph: Graph, node: Map | Contract) -> bool:
    """Whether only the pairs i >= j of a node count: it, what it reads or all that reads it is zero elsewhere."""
    if isinstance(node, Contract) and any(_zero_above(graph, name_of(term)) for term in (node.left, node.right)):
        return True
    return _zero_above(graph, node.name) or _unread_above(graph, node.name)


def _unread_above(graph: Graph, name: str) -> bool:
    """Whether what is made of a value is zero where i < j, at once or after more pointwise steps."""
    readers = [node for node in graph.nodes if name in reads(node)]
    pointwise = {node.name for node in readers if isinstance(node, Map) and {"i", "j"} <= set(node.axes)}
    return bool(readers) and all(
        _zero_above(graph, node.name) or (node.name in pointwise and _unread_above(graph, node.name))
        for node in readers
    )


def _zero_above(graph: Graph, name: str) -> bool:
    """Whether a value over rows and columns is zero where i < j: pointwise, or a sum over heads."""
    node = graph[name]
    if isinstance(node, Sum):
        return _zero_above(graph, name_of(node.of))
    if not isinstance(node, Map) or not {"i", "j"} <= set(node.axes):
        return False
    zeros = {term: sympy.Integer(0) for term in node.formula.atoms(sympy.Indexed) if _zero_above(graph, name_of(term))}
    return node.formula.xreplace(dict.fromkeys(CONDITIONS, sympy.false)).xreplace(zeros) == 0
