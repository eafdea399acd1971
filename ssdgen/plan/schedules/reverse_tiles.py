"""The walk back as consumers make it: one tile of headdim each, with their registers full.  chunk_adjoint -> reverse

The adjoint of the state takes half of a consumer's registers. What else a chunk needs is made one thing after the
other, and the adjoint goes to memory tile by tile, through shared memory, from where it is multiplied as well.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import sympy

from ...spec.derivative import cases
from ...spec.dims import entry
from ...spec.graph import Graph, Map
from ...spec.layer import Layer
from ..ir import Dot, Scalar, Stmt, Store, Value
from ..lower import Lowering, Pieces
from . import adjoint, common

# C B^T with the decays of the mask
DECAYED = "CB_decayed"


@cache
def graph(layer: Layer) -> Graph:
    """The adjoint of a chunk with C B^T decayed as soon as it is made: the decays of the mask are not kept beside it.

    What all entries of the scores' adjoint share is multiplied by it, and that by the step sizes.
    """
    whole = adjoint.graph(layer)
    mask, scores, of_steps, of_sums = (
        whole[name] for name in (adjoint.DECAYS, "scores_whole", "d_dt_scores_terms", adjoint.DECAYED)
    )
    assert isinstance(mask, Map) and isinstance(scores, Map) and isinstance(of_steps, Map) and isinstance(of_sums, Map)
    (decays, causal) = cases(mask.formula)[0]
    products, of_mask = entry("CB", *whole["CB"].axes), entry(mask.name, *mask.axes)
    steps: Any = scores.formula / of_mask / products
    decayed, terms = entry(DECAYED, *mask.axes), entry(of_steps.name, *of_steps.axes)
    made = {
        scores.name: replace(scores, formula=decayed * steps),
        of_steps.name: replace(of_steps, formula=decayed * of_sums.formula / of_mask),
    }
    if (name := "d_dA_cs_scores_terms") in whole:
        made[name] = Map(name, whole[name].axes, terms * steps)
    first = Map(DECAYED, mask.axes, sympy.Piecewise((decays * products, causal), (0, True)))
    return Graph(whole.name, adjoint.in_order([first, *(made.get(node.name, node) for node in whole.nodes)]))


def indices(consumers: int, left: bool) -> list[Stmt]:
    """Which head and which tile of headdim a consumer walks for: those of one program are of one group, all walk."""
    return [
        Scalar("p_blocks", "cdiv(HEADDIM, BLOCK_P)"),
        *((Scalar("walks", "nheads // ngroups * p_blocks"),) if left else ()),
        Scalar("programs", f"{'walks' if left else 'nheads // ngroups * p_blocks'} // {consumers}"),
        Scalar("group", "program_id(0) // programs", wide=True),
        Scalar("walk", f"program_id(0) % programs * {consumers} + consumer"),
        Scalar("head", "group * (nheads // ngroups) + walk // p_blocks"),
        Scalar("p_block", "walk % p_blocks", wide=True),
        Scalar("p0", "walk % p_blocks * BLOCK_P"),
        Scalar("segment", "program_id(1)", wide=True),
        Scalar("b", "program_id(2)", wide=True),
    ]


def outputs(lowering: Lowering, layer: Layer, left: bool = False) -> None:
    """Everything of a trip, the adjoint of the state that enters too, each thing gone before the next is made."""
    ((head,), (row,), (column,)) = (lowering.pieces[axis] for axis in ("h", "j", "p"))
    at: Pieces = {"h": head, "j": row, "i": row, "p": column}
    if left:
        _outputs_of_left(lowering, layer, at)
        return
    common.made(lowering, "CB", "d_scores")
    with lowering.under("NEEDS_D"):
        # worked out while these two are; for each chunk: what adds up over chunks would take registers all through it
        lowering.store(1, "d_D", at, "d_D", ("b", "chunk", "head", common.on(column, "p")))
    common.made(lowering, DECAYED, "scores")
    vectors(lowering, layer, True, "d_dt_scores", "d_dA_cs_scores_rows")
    _right_factor(lowering, at)
    vectors(lowering, layer, True, "d_right_decay")
    part = adjoint.head_part(layer, "d_x")
    lowering.need(f"{part}_base" if f"{part}_base" in lowering.graph else part, at)
    # under way while d_x is finished
    common.made(lowering, "d_state")
    made = lowering.need(part, at)
    assert made is not None
    index = ("b", common.on(row, "j"), "head", common.on(column, "p"))
    lowering.emit(1, Store("d_x", index, made[0], True), "NEEDS_X")


def _outputs_of_left(lowering: Lowering, layer: Layer, at: Pieces) -> None:
    """The same where the adjoint of the state is multiplied from registers.

    No product waits for its tiles to leave then: they go one by one, each between two other things, so that the one
    before has gone.  The scores follow them through the tile.
    """
    tiles = lowering.pieces["n"]

    def leaves(number: int) -> None:
        for piece in tiles[number * len(tiles) // 4 : (number + 1) * len(tiles) // 4]:
            # in a branch: else the compiler keeps what it is rounded to for the product, 64 registers of it
            _out(lowering, {**at, "n": piece}, "walk < walks")

    # the compiler ends products before a branch: none is under way at the first, and later those that are needed next
    leaves(0)
    common.made(lowering, "CB", "d_scores")
    with lowering.under("NEEDS_D"):
        index = ("b", "chunk", "head", common.on(at["p"], "p"))
        lowering.store(1, "d_D", at, "d_D", index)
    common.made(lowering, DECAYED)
    leaves(1)
    vectors(lowering, layer, True, "d_dt_scores")
    leaves(2)
    vectors(lowering, layer, True, "d_dA_cs_scores_rows")
    leaves(3)
    common.made(lowering, "scores", "d_x_weighted")
    vectors(lowering, layer, True, "d_right_decay")
    part = adjoint.head_part(layer, "d_x")
    lowering.need(f"{part}_base" if f"{part}_base" in lowering.graph else part, at)
    common.made(lowering, "d_state")
    made = lowering.need(part, at)
    assert made is not None
    index = ("b", common.on(at["j"], "j"), "head", common.on(at["p"], "p"))
    lowering.emit(1, Store("d_x", index, made[0], True), "NEEDS_X")


def _out(lowering: Lowering, at: Pieces, condition: str | None = None) -> Value:
    """A tile of the adjoint of the state that leaves the chunk goes to memory."""
    state = lowering.need("d_state_out", at)
    assert state is not None
    index = ("b", "chunk", "head", common.on(at["p"], "p"), common.on(at["n"], "n"))
    lowering.emit(1, Store("d_states", index, state[0], True), condition)
    return state[0]


def _right_factor(lowering: Lowering, at: Pieces) -> None:
    """Each tile of the adjoint goes out, and is multiplied where it goes through."""
    node = lowering.graph["d_x_weighted"]
    out = Value(lowering.variable(node.name, at), ("j", "p"))
    for number, piece in enumerate(lowering.pieces["n"]):
        left = lowering.need("B", {**at, "n": piece})
        assert left is not None
        lowering.emit(1, Dot(out, left[0], _out(lowering, {**at, "n": piece}), "n", number > 0))
    lowering.bind(node.name, at, out, 1)


# ---- as any walk back has it


def vectors(lowering: Lowering, layer: Layer, blocks: bool, *names: str) -> None:
    """What decays and step sizes get; blocks: the part of it that a tile of headdim gives."""
    for name in adjoint.there(layer, *names):
        for at in lowering.combinations(lowering.graph[name].axes):
            index = (*(("p_block",) if blocks else ()), *adjoint.vector_index(at))
            lowering.store(1, name, at, name, index, flag="NEEDS_DT")


__all__ = ["graph", "indices", "outputs", "vectors"]
