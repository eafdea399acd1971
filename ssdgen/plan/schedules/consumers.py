"""Parts of a walk whose program is specialised by warps.  -> walk

Who walks for what, step sizes that another warp makes, and states from summaries.
"""

from __future__ import annotations

from dataclasses import replace

import sympy

from ...spec.decompose import chunk_graph, decay
from ...spec.dims import entry
from ...spec.graph import Graph, Map, Node
from ...spec.layer import Layer
from ..ir import Aside, Let, Load, Scalar, Stmt, Value
from ..lower import Lowering, merge
from . import common

# Flag of a walk that may start while the kernel before it runs, none of whose results it reads.  Whoever is launched
# early has waited for what was before when it lets the next one start, so that such a walk finds that done.
BESIDE = "BESIDE"


def graph(layer: Layer, apart: bool, ahead: bool) -> Graph:
    """A chunk as a walk makes it.  apart, ahead: as in `Walk`.

    Where the diagonal is apart, what a token gives to itself is in y before what others give, and made once y is there:
    it takes no registers then while products run, and a walk of two tiles spills a third as much.  With C B^T ahead it
    makes no difference to them and delays the product.
    """
    whole = chunk_graph(layer, apart)
    if not apart or ahead:
        return whole
    later, made, given = whole["y_later"], whole["y_ssm"], whole["y_diag"]
    assert isinstance(later, Map) and isinstance(made, Map)
    others = entry(given.name, *given.axes)
    changed: dict[str, Node] = {
        later.name: replace(later, formula=later.formula.subs(others, 0)),
        made.name: replace(made, formula=made.formula + others),
    }
    return Graph(whole.name, tuple(changed.get(node.name, node) for node in whole.nodes))


def indices(shared: bool, consumers: int) -> list[Stmt]:
    """Which head and which tile of headdim a consumer walks for.

    shared: heads share operands; those of one program are then of one group.
    """
    stmts: list[Stmt] = [Scalar("p_blocks", "cdiv(HEADDIM, BLOCK_P)")]
    if shared:
        stmts += [
            Scalar("walks", "nheads // ngroups * p_blocks"),
            Scalar("programs", f"cdiv(walks, {consumers})"),
            Scalar("group", "program_id(0) // programs", wide=True),
            Scalar("walk", f"program_id(0) % programs * {consumers} + consumer"),
            # a walk too many goes along with the last one and stores nothing
            Scalar("at", "minimum(walk, walks - 1)"),
            Scalar("head", "group * (nheads // ngroups) + at // p_blocks"),
        ]
    else:
        stmts += [
            Scalar("walks", "nheads * p_blocks"),
            Scalar("walk", f"program_id(0) * {consumers} + consumer"),
            Scalar("at", "minimum(walk, walks - 1)"),
            Scalar("head", "at // p_blocks", wide=True),
        ]
    stmts += [Scalar("p0", "at % p_blocks * BLOCK_P")]
    return [*stmts, Scalar("segment", "program_id(1)", wide=True), Scalar("b", "program_id(2)", wide=True)]


def programs(shared: bool, consumers: int) -> str:
    """Programs for all heads and tiles of headdim; consumers: 0 or 1 where each has one of its own."""
    blocks = "cdiv(HEADDIM, BLOCK_P)"
    if not consumers:
        return f"nheads * {blocks}"
    if not shared:
        return f"cdiv(nheads * {blocks}, {consumers})"
    return f"ngroups * cdiv(nheads // ngroups * {blocks}, {consumers})"


def joined(outer: Lowering, state_axes: tuple[str, ...]) -> tuple[Stmt, ...]:
    """The state moves on by the summary of an earlier segment."""
    lowering = Lowering(outer.graph, outer.pieces, {}, rename=common.RENAME, value_axes=outer.value_axes)
    (head,) = outer.pieces["h"]
    total, centre = Value("total", ()), Value("centre_decay", ())
    lowering.emit(1, Load(total, "total", ("b", "earlier", head.scalar)))
    # boundaries are in the total already: minus infinity
    lowering.emit(1, Let(centre, decay(sympy.Symbol(total.name, real=True)), (total,)))
    lowering.bind("centre_decay", {"h": head}, centre, 1)
    for at in lowering.combinations(state_axes):
        local = Value(lowering.variable("local_state", at), state_axes[1:])
        index = ("b", "earlier", head.scalar, common.on(at["p"], "p"), common.on(at["n"], "n"))
        lowering.emit(1, Load(local, "summary", index))
        lowering.bind("local_state", at, local, 1)
        lowering.bind("state", at, Value(lowering.variable("state", at), state_axes[1:]), 1)
        lowering.need("state_out", at)
    return tuple(lowering.scopes[1])


def steps(outer: Lowering, layer: Layer, batch: str, zero_past_end: frozenset[str], apart: bool) -> Aside:
    """The step sizes and running sums of a chunk from what the caller passes, made aside and bound in `outer`.

    apart: the weights of the tokens' own inputs too.
    """
    sources = common.raw_sources(layer, batch) | (common.diagonal_sources(layer, batch) if apart else {})
    raw = {name: replace(source, level=1) for name, source in sources.items()}
    lowering = Lowering(outer.graph, outer.pieces, raw, rename=common.RENAME, zero_past_end=zero_past_end)
    (head,), (row,) = outer.pieces["h"], outer.pieces["j"]
    values, sizes = [], []
    for name in (*common.prepared_sources(layer, batch, last=""), *(("own_skip",) if apart else ())):
        at = {"h": head, "j": row}
        made = lowering.need(name, at)
        assert made is not None and row.span is not None
        outer.bind(name, at, made[0], 1)
        values.append(made[0])
        sizes.append((row.span.size,) * len(made[0].axes))
    return Aside(tuple(values), tuple(sizes), merge(tuple(lowering.scopes[1])))
