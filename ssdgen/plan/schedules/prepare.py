"""Step sizes and their running sums, once for all kernels that follow.  chunk_graph -> Kernel"""

from __future__ import annotations

from ...spec.decompose import chunk_graph
from ...spec.layer import Layer
from ..ir import Arange, Kernel, Mask, Scalar, Span
from ..lower import Lowering, Piece
from . import common
from .walk import zero_past_end


def kernel(layer: Layer) -> Kernel:
    """dt after its transform and the running sum of the log-decay in each chunk, both padded to whole chunks."""
    row = Piece("", Span("j", "row", "CHUNK", "row0", "row_in"), position="row")
    head = Piece("", Span("h", "head", "BLOCK_H", "head0", "head_in"))
    at = {"h": head, "j": row, "i": row}
    tile = ("j", "h")
    names = ("A",) if layer.family.per_token else ()
    names += ("dt_raw", "dt_biased", "dt_positive", "dt", "log_decay", "dA_cs")
    lowering = Lowering(
        chunk_graph(layer),
        {axis: (piece,) for axis, piece in at.items()},
        common.raw_sources(layer, "b", dt="dt_raw"),
        rename=common.RENAME,
        zero_past_end=zero_past_end(layer),
        value_axes=dict.fromkeys(names, tile),
    )
    padded = ("b", Span("h", "head", "BLOCK_H", "head0", "head_in"), Span("j", "row", "CHUNK", "row0", None))
    for name in ("dt", "dA_cs") if layer.family.decays else ("dt",):
        lowering.store(1, name, at, name, padded)
    tensors = common.raw_tensors(layer)
    return Kernel(
        "dt_cumsum",
        "One program makes the step sizes of one chunk and their running log-decay, for a block of heads.",
        ("dt", "log_decay", "dA_cs") if layer.family.decays else ("dt",),
        (*(common.renamed(tensor, dt="dt_raw") for tensor in tensors), *common.prepared_tensors(layer, out=True)),
        ("batch", "seqlen", "nheads", "padded"),
        ("dt_min", "dt_max"),
        ("CHUNK", "BLOCK_H"),
        ("HAS_DT_BIAS", "DT_SOFTPLUS"),
        ("cdiv(nheads, BLOCK_H)", "padded // CHUNK", "batch"),
        (
            Scalar("head0", "program_id(0) * BLOCK_H"),
            Scalar("row0", "program_id(1) * CHUNK", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Arange("row", "j", "CHUNK"),
            Arange("head", "h", "BLOCK_H"),
            Mask("row_in", "j", "row", "seqlen - row0"),
            Mask("head_in", "h", "head", "nheads - head0"),
            *lowering.scopes[0],
            *lowering.scopes[1],
        ),
    )
