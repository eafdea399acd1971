"""Gradients of the step sizes, of A and of the bias, from what the other kernels left of them.  chunk_adjoint -> Kernel

The counterpart of `dt_cumsum`: the running sum comes back from the end of each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.dims import entry
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Scalar, Span, Stmt, Store, Tensor, Value
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import adjoint, common
from .walk import zero_past_end

# who leaves parts: programs that share out headdim, and those that share out dstate
BLOCKS = {
    "p_blocks": adjoint.WALK_VECTORS,
    "n_blocks": (*adjoint.GROUP_VECTORS, *adjoint.NUMBERS),
}


@dataclass(frozen=True)
class Steps:
    """Shape of the code.  blocks: programs have left parts of what decays and step sizes get, which are added up."""

    blocks: bool = False

    @property
    def name(self) -> str:
        return "dt_gradients_blocks" if self.blocks else "dt_gradients"


def kernel(layer: Layer, shape: Steps = Steps()) -> Kernel:
    """d_dt of the step size before its transform, and what each chunk adds to d_A and d_dt_bias.

    Where A has a number for every token, d_A is whole.
    """
    row = Piece("", Span("j", "row", "CHUNK", "row0", "row_in"), position="row")
    head = Piece("", Span("h", "head", "BLOCK_H", "head0", "head_in"))
    at = {"h": head, "j": row, "i": row}
    graph = adjoint.graph(layer)
    tiles = {node.name: ("j", "h") for node in graph.nodes if set(node.axes) == {"h", "j"}}
    tiles |= {node.name: ("i", "h") for node in graph.nodes if set(node.axes) == {"h", "i"}}
    vectors = adjoint.there(layer, *adjoint.WALK_VECTORS, *adjoint.GROUP_VECTORS)
    numbers = adjoint.there(layer, *adjoint.NUMBERS)
    sources = common.raw_sources(layer, "b", dt="dt_raw")
    if not shape.blocks:
        sources |= {name: Source(name, adjoint.vector_index) for name in vectors}
        sources |= {name: Source(name, adjoint.number_index) for name in numbers}
    sources |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, seqlen) - 1")
    lowering = Lowering(
        graph,
        {axis: (piece,) for axis, piece in at.items()},
        sources,
        rename=adjoint.RENAME,
        zero_past_end=_zero(layer),
        value_axes=tiles,
        kept=adjoint.KEPT,
    )
    added = [stmt for blocks in BLOCKS for stmt in _added_up(lowering, layer, at, blocks)] if shape.blocks else []
    tokens = ("b", common.on(row, "j"), common.on(head, "h"))
    lowering.store(1, "d_dt_raw", at, "d_dt", tokens)
    whole = [("d_A", "NEEDS_A")] if layer.family.per_token else []
    for name, flag in whole:
        with lowering.under(flag):
            lowering.store(1, name, at, name, tokens)
    partial = [("d_A", "NEEDS_A"), ("d_dt_bias", "NEEDS_DT_BIAS")]
    partial = [(name, flag) for name, flag in partial if name in graph and (name, flag) not in whole]
    for name, flag in partial:
        with lowering.under(flag):
            made = lowering.need(name, {"h": head})
            assert made is not None
            lowering.emit(1, Store(name, ("b", "chunk", common.on(head, "h")), made[0]))
    return Kernel(
        shape.name,
        "One program makes the gradients of the step sizes of one chunk, for a block of heads"
        + (", from what the programs for tiles of headdim and of dstate left." if shape.blocks else "."),
        ("d_dt_raw", *(name for name, _ in (*whole, *partial))),
        (
            *(common.renamed(tensor, dt="dt_raw") for tensor in common.raw_tensors(layer)),
            common.seq_tensor(),
            *_parts(layer, shape),
            Tensor("d_dt", ("batch", "seqlen", "nheads"), "any", out=True),
            *(Tensor(name, ("batch", "seqlen", "nheads"), "any", flag=flag, out=True) for name, flag in whole),
            *(Tensor(name, ("batch", "nchunks", "nheads"), "float32", flag=flag, out=True) for name, flag in partial),
        ),
        ("batch", "seqlen", "nheads", "nchunks", "padded", *(BLOCKS if shape.blocks else ())),
        ("dt_min", "dt_max"),
        ("CHUNK", "BLOCK_H"),
        ("HAS_SEQ_IDX", "HAS_DT_BIAS", "DT_SOFTPLUS", *(flag for _, flag in (*whole, *partial))),
        ("cdiv(nheads, BLOCK_H)", "nchunks", "batch"),
        (
            Scalar("head0", "program_id(0) * BLOCK_H"),
            Scalar("chunk", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("row0", "chunk * CHUNK"),
            Arange("row", "j", "CHUNK"),
            Arange("head", "h", "BLOCK_H"),
            Mask("row_in", "j", "row", "seqlen - row0"),
            Mask("head_in", "h", "head", "nheads - head0"),
            *merge(tuple(lowering.scopes[0])),
            *added,
            *merge(common.loads_first(lowering.scopes[1])),
        ),
        given=(*vectors, *numbers),
    )


def _parts(layer: Layer, shape: Steps) -> tuple[Tensor, ...]:
    """What the other kernels left, whole or in parts."""
    if not shape.blocks:
        vectors = adjoint.there(layer, *adjoint.VECTORS)
        return adjoint.vector_tensors(layer, vectors, adjoint.there(layer, *adjoint.NUMBERS))
    return (
        *adjoint.vector_tensors(layer, adjoint.WALK_VECTORS, (), blocks="p_blocks"),
        *adjoint.vector_tensors(layer, adjoint.GROUP_VECTORS, adjoint.NUMBERS, blocks="n_blocks"),
    )


def _added_up(lowering: Lowering, layer: Layer, at: Pieces, blocks: str) -> list[Stmt]:
    """The parts of each vector and number, one after the other."""
    zeros: list[Stmt] = []
    body: list[Stmt] = []
    for name in adjoint.there(layer, *BLOCKS[blocks]):
        axes = lowering.node_axes(name)
        total = Value(name, axes)
        part = Value(f"{name}_part", axes)
        index = adjoint.number_index(at) if name in adjoint.NUMBERS else adjoint.vector_index(_read_at(axes, at))
        zeros.append(Full(total, tuple(span.size for axis in axes if (span := at[axis].span))))
        body.append(Load(part, name, ("part", *index)))
        body.append(Let(total, entry(name, *axes) + entry(part.name, *axes), (total, part)))
        lowering.bind(name, at, total, 1)
    return [*zeros, For("block", blocks, (Scalar("part", "block", wide=True), *body))] if body else []


def _read_at(axes: tuple[str, ...], at: Pieces) -> Pieces:
    """The pieces of these axes: rows and columns are the same tokens here."""
    return {axis: at[axis] for axis in axes}


def _zero(layer: Layer) -> frozenset[str]:
    """The adjoint of a value that is zero past the end is zero there too."""
    forward = zero_past_end(layer)
    names = {f"d_{name}{scaled}" for name in forward for scaled in ("", "_scaled")}
    return forward | frozenset(name for name in names if name in adjoint.graph(layer))


__all__ = ["Steps", "kernel"]
