"""Gradients of the step sizes, of A and of the bias, from what the other kernels left of them.  chunk_adjoint -> Kernel

The counterpart of `dt_cumsum`: the running sum comes back from the end of each chunk.
"""

from __future__ import annotations

from ...spec.layer import Layer
from ..ir import Arange, Kernel, Mask, Scalar, Span, Store, Tensor
from ..lower import Lowering, Piece, Source, merge
from . import adjoint, common
from .walk import zero_past_end


def kernel(layer: Layer) -> Kernel:
    """d_dt of the step size before its transform, and what each chunk adds to d_A and d_dt_bias."""
    row = Piece("", Span("j", "row", "CHUNK", "row0", "row_in"), position="row")
    head = Piece("", Span("h", "head", "BLOCK_H", "head0", "head_in"))
    at = {"h": head, "j": row, "i": row}
    graph = adjoint.graph(layer)
    tiles = {node.name: ("j", "h") for node in graph.nodes if set(node.axes) == {"h", "j"}}
    tiles |= {node.name: ("i", "h") for node in graph.nodes if set(node.axes) == {"h", "i"}}
    vectors = adjoint.there(layer, *adjoint.WALK_VECTORS, *adjoint.GROUP_VECTORS)
    numbers = adjoint.there(layer, *adjoint.NUMBERS)
    sources = common.raw_sources(layer, "b", dt="dt_raw")
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
    tokens = ("b", common.on(row, "j"), common.on(head, "h"))
    lowering.store(1, "d_dt_raw", at, "d_dt", tokens)
    partial = [("d_A", "NEEDS_A"), ("d_dt_bias", "NEEDS_DT_BIAS")]
    partial = [(name, flag) for name, flag in partial if name in graph]
    for name, flag in partial:
        with lowering.under(flag):
            made = lowering.need(name, {"h": head})
            assert made is not None
            lowering.emit(1, Store(name, ("b", "chunk", common.on(head, "h")), made[0]))
    return Kernel(
        "dt_gradients",
        "One program makes the gradients of the step sizes of one chunk, for a block of heads.",
        ("d_dt_raw", *(name for name, _ in partial)),
        (
            *(common.renamed(tensor, dt="dt_raw") for tensor in common.raw_tensors(layer)),
            common.seq_tensor(),
            *adjoint.vector_tensors(layer, vectors, numbers),
            Tensor("d_dt", ("batch", "seqlen", "nheads"), "any", out=True),
            *(Tensor(name, ("batch", "nchunks", "nheads"), "float32", flag=flag, out=True) for name, flag in partial),
        ),
        ("batch", "seqlen", "nheads", "nchunks", "padded"),
        ("dt_min", "dt_max"),
        ("CHUNK", "BLOCK_H"),
        ("HAS_SEQ_IDX", "HAS_DT_BIAS", "DT_SOFTPLUS", *(flag for _, flag in partial)),
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
            *merge(common.loads_first(lowering.scopes[1])),
        ),
        given=(*vectors, *numbers),
    )


def _zero(layer: Layer) -> frozenset[str]:
    """The adjoint of a value that is zero past the end is zero there too."""
    forward = zero_past_end(layer)
    names = {f"d_{name}{scaled}" for name in forward for scaled in ("", "_scaled")}
    return forward | frozenset(name for name in names if name in adjoint.graph(layer))


__all__ = ["kernel"]
