"""A broken decomposition is noticed: every sign, factor, term and mask of the chunk graph, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sympy

from ssdgen.spec.chain import chunked, segmented
from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.graph import Graph, Map, Node
from ssdgen.spec.layer import Layer
from ssdgen.spec.oracle import oracle
from ssdgen.spec.semiseparable import Outcome, Tokens, recurrence, same
from tests.spec.cases import Sizes, draw
from tests.spec.cases import chunked as chunked_numbers

PLAIN = Layer(initial_states=True)
FULL = Layer(skip="headdim", gate=True, dt_bias=True, dt_softplus=True, initial_states=True, boundaries=True)
# a chunk without a boundary, one with a boundary inside, one that follows it: each condition is met and missed
SEGMENTS = [(0, 2), (2, 4, 5)]
SEQUENCE = (0, 0, 0, 1, 1)


def broken_formulas(expr: sympy.Expr) -> Iterator[tuple[str, sympy.Expr]]:
    """The formula with one sign flipped, one factor or term left out, or one condition dropped."""
    yield "negated", -expr
    for part in sympy.preorder_traversal(expr):
        if isinstance(part, sympy.Indexed):
            continue
        if isinstance(part, (sympy.Mul, sympy.Add)):
            for place, argument in enumerate(part.args):
                rest = part.func(*part.args[:place], *part.args[place + 1 :])
                yield f"without {argument}", expr.xreplace({part: rest})
                if isinstance(part, sympy.Add):
                    yield f"minus {argument}", expr.xreplace({part: rest - argument})
        if isinstance(part, sympy.Piecewise):
            yield "without its condition", expr.xreplace({part: part.args[0][0]})


def with_node(graph: Graph, node: Node) -> Graph:
    return Graph(graph.name, tuple(node if old.name == node.name else old for old in graph.nodes))


def mutants(layer: Layer) -> list[tuple[str, Graph]]:
    graph, flags = chunk_graph(layer), layer.flags()
    found = []
    for node in graph.nodes:
        if isinstance(node, Map):
            on = node.option is None or flags[node.option]
            formula = node.formula if on else node.otherwise
            assert formula is not None
            for what, wrong in broken_formulas(formula):
                changed = replace(node, formula=wrong) if on else replace(node, otherwise=wrong)
                found.append((f"{node.name} {what}", with_node(graph, changed)))
            if node.option and on and node.otherwise is not None:
                found.append(
                    (f"{node.name} without its option", with_node(graph, replace(node, formula=node.otherwise)))
                )
    unweighted = replace(graph["local_state"], left=entry("x", "h", "j", "p"))  # type: ignore[type-var]
    return [*found, ("local_state of the bare input", with_node(graph, unweighted))]


def differs(found: Outcome, expected: Outcome) -> bool:
    states = zip(found.state[0], expected.state[0], strict=True)
    return not (all(same(found.y[at], expected.y[at]) for at in expected.y) and all(same(a, b) for a, b in states))


@pytest.mark.parametrize("layer", [PLAIN, FULL], ids=["plain", "every option"])
def test_every_broken_graph_is_noticed_exactly(layer: Layer):
    sequence = SEQUENCE if layer.boundaries else ()
    long, short = Tokens(layer, seqlen=5, sequence=sequence), Tokens(layer, seqlen=2, sequence=sequence[:2])
    expected, expected_short = recurrence(long), recurrence(short)
    assert not differs(segmented(long, SEGMENTS), expected)

    def noticed(graph: Graph) -> bool:
        # two tokens are enough for most, and quicker
        return differs(chunked(short, (0, 1, 2), graph), expected_short) or differs(
            segmented(long, SEGMENTS, graph), expected
        )

    cases = mutants(layer)
    assert len(cases) > 40
    assert [what for what, graph in cases if not noticed(graph)] == []


@pytest.mark.parametrize("name", ["scores_whole", "right_decay_whole", "left_decay_whole", "centre_decay_whole", "dt"])
def test_a_broken_graph_is_noticed_in_numbers(name: str, seed: int):
    layer = Layer(initial_states=True)
    arrays = draw(layer, Sizes(seqlen=8), seed)
    expected = oracle(layer, **arrays).y
    graph = chunk_graph(layer)
    node = graph[name]
    assert isinstance(node, Map)
    for wrong in (
        with_node(graph, replace(node, formula=-node.formula)),
        with_node(graph, replace(node, formula=sympy.Integer(1))),
    ):
        assert abs(chunked_numbers(layer, arrays, 3, graph=wrong)[0] - expected).max() > 1e-3
