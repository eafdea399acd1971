"""Chunk-parallel output: one program per row tile, from the state that enters the chunk.  chunk_graph -> Kernel

The last step of the `split` schedule: y = left factor (entering state) + diagonal block, the block's columns in a loop
that stops at the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.decompose import chunk_graph
from ...spec.graph import Contract, Map
from ...spec.layer import Layer
from ..ir import Arange, For, Kernel, Let, Mask, Scalar, Span, Stmt, Store, Tensor, Value
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import common
from .walk import sizes_of

OUTSIDE, LOOP, AFTER = 0, 1, 2


@dataclass(frozen=True)
class Scan:
    """Shape of the code: tiles of dstate and headdim (96 = 64 + 32)."""

    n_tiles: int = 1
    p_tiles: int = 1

    @property
    def name(self) -> str:
        parts = ["chunk_scan"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        return "_".join(parts)


def kernel(layer: Layer, shape: Scan) -> Kernel:
    """The chunk-parallel output of `layer` as a kernel."""
    graph = chunk_graph(layer)
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    row = Piece("_i", Span("i", "row", "BLOCK_M", "row0", "row_in"), position="row_position", alias="_i")
    col = Piece("_j", Span("j", "col", "BLOCK_K", "col0", "col_in"), position="col_position")
    pieces = {
        "h": (Piece("", scalar="head"),),
        "i": (row,),
        "j": (col,),
        "n": common.spans("n", "n", n_sizes, "0"),
        "p": common.spans("p", "p", p_sizes, "p0"),
    }
    lowering = Lowering(
        graph,
        pieces,
        _sources(layer),
        rename=common.RENAME,
        notes=dict(common.NOTES),
        value_axes={"state": ("h", "n", "p")},
        constant_level=OUTSIDE,
        scopes=[[], [], []],
    )
    _output_tiles(lowering)
    prologue: list[Stmt] = [
        Scalar("p_blocks", "cdiv(HEADDIM, BLOCK_P)" if shape.p_tiles == 1 else "1"),
        *([Scalar("p0", "program_id(0) % p_blocks * BLOCK_P")] if shape.p_tiles == 1 else []),
        Scalar("head", "program_id(0) // p_blocks", wide=True),
        *([Scalar("group", common.group_expr(layer, "head"))] if common.has_groups(layer) else []),
        Scalar("row_tiles", "CHUNK // BLOCK_M"),
        Scalar("chunk", "program_id(1) // row_tiles", wide=True),
        Scalar("row_tile", "program_id(1) % row_tiles"),
        Scalar("b", "program_id(2)", wide=True),
        Scalar("start", "chunk * CHUNK"),
        Scalar("row0", "start + row_tile * BLOCK_M"),
        Arange("row", "i", "BLOCK_M"),
        Arange("col", "j", "BLOCK_K"),
        *(
            Arange(piece.span.offsets, axis, piece.span.size)
            for axis in ("n", "p")
            for piece in pieces[axis]
            if piece.span
        ),
        Scalar("row_position", "row_tile * BLOCK_M + row"),
        Mask("row_in", "i", "row", "seqlen - row0"),
    ]
    for axis, limit in (("n", "DSTATE"), ("p", "HEADDIM")):
        prologue += [common.mask(p.span, limit) for p in pieces[axis] if p.span]
    columns = [
        Scalar("col0", "start + step * BLOCK_K"),
        Scalar("col_position", "step * BLOCK_K + col"),
        Mask("col_in", "j", "col", "seqlen - col0"),
    ]
    loop = For(
        "step", "cdiv((row_tile + 1) * BLOCK_M, BLOCK_K)", (*columns, *merge(common.loads_first(lowering.scopes[LOOP])))
    )
    return Kernel(
        shape.name,
        "One program makes the output of one row tile of a chunk, from the state that enters the chunk.",
        ("y",),
        _tensors(layer),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", "BLOCK_M", "BLOCK_K", *n_sizes, *p_sizes),
        ("HAS_SEQ_IDX", "HAS_D", "HAS_Z"),
        (
            "nheads * cdiv(HEADDIM, BLOCK_P)" if shape.p_tiles == 1 else "nheads",
            "nsegments * (CHUNK // BLOCK_M)",
            "batch",
        ),
        (*prologue, *merge(common.loads_first(lowering.scopes[OUTSIDE])), loop, *merge(tuple(lowering.scopes[AFTER]))),
    )


def _output_tiles(lowering: Lowering) -> None:
    """Left factor outside the loop, diagonal block accumulated inside it, skip and gate after it."""
    graph = lowering.graph
    summed = "y_later" if "y_later" in graph else "y_ssm"
    for at in lowering.combinations(("h", "p", "i")):
        out = Value(lowering.variable("y", at), ("i", "p"))
        y_ssm, y_diag = graph[summed], graph["y_diag"]
        assert isinstance(y_ssm, Map) and isinstance(y_diag, Contract)
        diagonal = next(term for term in y_ssm.formula.args if str(term).startswith("y_diag"))
        formula, reads, _ = lowering.formula(y_ssm.formula - diagonal, at, OUTSIDE)
        lowering.emit(OUTSIDE, Let(out, formula, reads))
        lowering.contract(y_diag, {**at, "j": lowering.pieces["j"][0]}, out, acc=True)
        lowering.bind(summed, at, out, AFTER)
        made = lowering.need("y", at)
        assert made is not None
        lowering.emit(AFTER, Store("y", ("b", common.on(at["i"], "i"), "head", common.on(at["p"], "p")), made[0]))


def _sources(layer: Layer) -> dict[str, Source]:
    def level(at: Pieces) -> int:
        return OUTSIDE if at["j"].suffix == "_i" else LOOP

    def level_x(at: Pieces) -> int:
        return AFTER if at["j"].suffix == "_i" else LOOP

    sources = {
        "x": common.operand_source(layer, "x", "b", "j", "p", False, level_x),
        "B": common.operand_source(layer, "B", "b", "j", "n", False, LOOP),
        "C": common.operand_source(layer, "C", "b", "i", "n", False, OUTSIDE),
        "state": Source(
            "entering",
            lambda at: ("b", "chunk", "head", common.on(at["p"], "p"), common.on(at["n"], "n")),
            level=OUTSIDE,
            axes=("n", "p"),
        ),
    }
    sources |= common.option_sources("b", level=AFTER)
    sources |= common.prepared_sources(layer, "b", last="start + CHUNK - 1", level=level)
    sources |= common.seq_sources(
        "b", first="start", last="minimum(start + CHUNK, seqlen) - 1", level=level, scalar_level=OUTSIDE
    )
    return sources


def _tensors(layer: Layer) -> tuple[Tensor, ...]:
    return (
        common.operand(layer, "x", "HEADDIM"),
        common.operand(layer, "B", "DSTATE"),
        common.operand(layer, "C", "DSTATE"),
        *common.prepared_tensors(layer, outputs=True),
        common.seq_tensor(),
        common.skip_tensor(),
        common.gate_tensor(),
        Tensor("entering", ("batch", "nsegments", "nheads", "HEADDIM", "DSTATE"), "state"),
        Tensor("y", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", out=True),
    )


__all__ = ["Scan", "kernel"]
