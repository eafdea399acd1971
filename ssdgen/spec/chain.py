"""The layer as a chain of blocks, in symbols: chunks, and segments of chunks.  chunk_graph -> expressions

What a run of tokens does to the state that enters it is the pair (d, S): it leaves d state + S. Runs join by

    (d_2, S_2) after (d_1, S_1) = (d_2 d_1, d_2 S_1 + S_2),

which is associative, so a segment of chunks is a block of the same kind as a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy

from .decompose import chunk_graph, decay
from .entries import Entries, Entry
from .graph import Graph
from .semiseparable import Outcome, Tokens, initial_state

# by (head, token, position in headdim)
Outputs = dict[tuple[int, int, int], sympy.Expr]


@dataclass(frozen=True)
class Summary:
    """What a run of tokens does to a state.  total: log2 of the decay over the run; state: what the run adds, P x N."""

    total: sympy.Expr
    state: sympy.Matrix


def entering(state: sympy.Matrix) -> Summary:
    """Where a segment starts: nothing has decayed yet."""
    return Summary(sympy.Integer(0), state)


def identity(tokens: Tokens) -> Summary:
    """Summary of no tokens at all."""
    return entering(sympy.zeros(tokens.headdim, tokens.dstate))


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of `first` followed by `second`."""
    kept = decay(second.total).doit()
    return Summary(first.total + second.total, second.state + first.state.applyfunc(lambda entry: kept * entry))


def chunk(tokens: Tokens, head: int, start: int, stop: int, before: Summary, graph: Graph | None = None) -> Entries:
    """The graph of one chunk, tokens start to stop - 1, of one head: the axis h has a single position, 0.

    before: what came before since the start of the segment.  graph: another one than the layer's own.
    """
    layout = tokens.layer.layout

    def operand(name: str) -> Entry:
        # a shared operand has no head axis: every head reads the same entry
        place = 1 if layout.per_head(name) else 0
        return lambda *at: tokens.operand(name, head, start + at[place], at[place + 1])

    inputs: dict[str, Any] = {
        "dt_raw": lambda h, j: tokens.dt_raw(head, start + j),
        "dt_bias": lambda h: tokens.dt_bias(head),
        "dt_min": lambda: sympy.Integer(0),
        "dt_max": lambda: sympy.oo,
        "A": lambda h, j=None: tokens.a(head, j if j is None else start + j),
        "x": operand("x"),
        "B": operand("B"),
        "C": operand("C"),
        "D": lambda h, p: tokens.d(head, p),
        "z": lambda h, i, p: tokens.z(head, start + i, p),
        "seq": lambda j: sympy.Integer(tokens.sequence_of(start + j)),
        "seq_before": lambda: sympy.Integer(tokens.sequence_of(start - 1)),
        "seq_last": lambda: sympy.Integer(tokens.sequence_of(stop - 1)),
        "state": lambda h, p, n: before.state[p, n],
        "total": lambda h: before.total,
    }
    sizes = {"i": stop - start, "n": tokens.dstate}
    return Entries(graph or chunk_graph(tokens.layer), inputs, sizes, tokens.layer.flags())


def leaving(tokens: Tokens, block: Entries) -> Summary:
    """Total and state that leave a chunk."""
    state = sympy.Matrix(tokens.headdim, tokens.dstate, lambda p, n: block("state_out", 0, int(p), int(n)))
    return Summary(block("total_out", 0), state)


def walk(tokens: Tokens, head: int, cuts: Sequence[int], before: Summary, graph: Graph | None = None) -> list[Entries]:
    """The chunks between the cuts, one after another; of each only what it hands on is computed yet."""
    blocks = []
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        blocks.append(chunk(tokens, head, start, stop, before, graph))
        before = leaving(tokens, blocks[-1])
    return blocks


def summary(tokens: Tokens, head: int, cuts: Sequence[int], graph: Graph | None = None) -> Summary:
    """Summary of the tokens from the first cut to the last, found by walking the chunks between the cuts."""
    return leaving(tokens, walk(tokens, head, cuts, identity(tokens), graph)[-1])


def outputs(tokens: Tokens, head: int, cuts: Sequence[int], blocks: Sequence[Entries]) -> Outputs:
    """y of the walked chunks."""
    spans = zip(cuts[:-1], cuts[1:], blocks, strict=True)
    positions = ((block, start, t) for start, stop, block in spans for t in range(start, stop))
    return {(head, t, p): block("y", 0, t - start, p) for block, start, t in positions for p in range(tokens.headdim)}


def chunked(tokens: Tokens, cuts: Sequence[int], graph: Graph | None = None) -> Outcome:
    """All tokens, chunk after chunk.  cuts: first token of each chunk, then seqlen."""
    y: Outputs = {}
    states = {}
    for head in range(tokens.nheads):
        blocks = walk(tokens, head, cuts, entering(initial_state(tokens, head)), graph)
        y |= outputs(tokens, head, cuts, blocks)
        states[head] = leaving(tokens, blocks[-1]).state
    return Outcome(y, states)


def segmented(tokens: Tokens, segments: Sequence[Sequence[int]], graph: Graph | None = None) -> Outcome:
    """All tokens, in two levels: a summary per segment, a scan over them, then each segment from its true state.

    segments: the cuts of each segment; each ends where the next one starts.
    """
    y: Outputs = {}
    states = {}
    for head in range(tokens.nheads):
        before = entering(initial_state(tokens, head))
        for cuts in segments:
            y |= outputs(tokens, head, cuts, walk(tokens, head, cuts, entering(before.state), graph))
            before = combine(before, summary(tokens, head, cuts, graph))
        states[head] = before.state
    return Outcome(y, states)


def factored(tokens: Tokens, head: int, cuts: Sequence[int], row: int, column: int) -> tuple[sympy.Matrix, ...]:
    """The block of M with rows in chunk `row` and columns in chunk `column` < `row` as left, centre and right factor.

    left: rows x N, centre: N x N, right: N x columns. Their product is the block, whose rank is thus at most N.
    """
    spans = list(zip(cuts[:-1], cuts[1:], strict=True))

    def at(place: int) -> tuple[Entries, int]:
        start, stop = spans[place]
        return chunk(tokens, head, start, stop, identity(tokens)), stop - start

    def factor(place: int, decay_name: str, operand: str) -> sympy.Matrix:
        block, length = at(place)
        axes = (0,) if tokens.layer.layout.per_head(operand) else ()
        return sympy.Matrix(
            length, tokens.dstate, lambda t, n: block(decay_name, 0, int(t)) * block(operand, *axes, int(t), int(n))
        )

    between = (at(place)[0]("centre_decay", 0) for place in range(column + 1, row))
    centre = reduce(lambda left, right: left * right, between, sympy.Integer(1)) * sympy.eye(tokens.dstate)
    return factor(row, "left_decay", "C"), centre, factor(column, "right_decay", "B").T
