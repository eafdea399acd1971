"""What a two-sided mask has above the diagonal, added to what is there.  two_sided.upper_graph -> Kernel

One program walks the chunks from the last to the first with the state of all later tokens in registers.  The pass over
the mask up to the diagonal has left its y, which is read where the rest of it is made: nothing else goes over memory.
"""

from __future__ import annotations

from ...spec.layer import Layer
from ...spec.two_sided import upper_graph
from ..ir import For, Full, Kernel, Scalar, Stmt, Store, Tensor, Value
from ..lower import Lowering, Source, merge
from . import common
from .reverse import prologue, row_mask, row_pieces
from .walk import sizes_of

STATE = ("h", "n", "p")
NOTES = {
    "y_state": "what all later chunks give to every row",
    "CB": "what the rows after give, inside the chunk",
    "centre_decay_whole": "the state of all tokens from this chunk on",
}


def name_of(n_tiles: int) -> str:
    return "mirror_walk" + (f"_{n_tiles}n" if n_tiles > 1 else "")


def kernel(layer: Layer, n_tiles: int = 1) -> Kernel:
    """The walk as a kernel of `layer`, of which the layout counts.  n_tiles: tiles of dstate (96 = 64 + 32)."""
    n_sizes = sizes_of("BLOCK_N", n_tiles)
    pieces = row_pieces(n_sizes, ("BLOCK_P",), "p0")
    lowering = Lowering(
        upper_graph(layer),
        pieces,
        _sources(layer),
        rename=common.RENAME,
        notes=dict(NOTES),
        value_axes=dict.fromkeys(("state", "state_out", "local_state"), STATE),
    )
    zeros: list[Stmt] = []
    for at in lowering.combinations(STATE):
        state = Value(lowering.variable("state", at), STATE[1:])
        zeros.append(Full(state, tuple(span.size for axis in STATE[1:] if (span := at[axis].span))))
        lowering.bind("state", at, state, 1)
    for at in lowering.combinations(("h", "i", "p")):
        lowering.need("y", at)
    for at in lowering.combinations(STATE):
        lowering.need("state_out", at)
    for at in lowering.combinations(("h", "i", "p")):
        made = lowering.need("y", at)
        assert made is not None
        lowering.emit(1, Store("y", ("b", common.on(at["i"], "i"), "head", common.on(at["p"], "p")), made[0]))
    places = [Scalar("row0", "(first + chunks - 1 - step) * CHUNK"), row_mask(pieces)]
    loop = For("step", "chunks", merge(common.loads_first([*places, *lowering.scopes[1]])))
    tokens = ("batch", "seqlen", "nheads", "HEADDIM")
    return Kernel(
        name_of(n_tiles),
        "One program walks all chunks from the last one back for one head, the state in registers; it adds to y.",
        ("y", "state_out"),
        (
            common.operand(layer, "x", "HEADDIM"),
            common.operand(layer, "B", "DSTATE"),
            common.operand(layer, "C", "DSTATE"),
            *common.prepared_tensors(layer),
            common.seq_tensor(),
            Tensor("below", tokens, "operand"),
            Tensor("y", tokens, "operand", out=True),
        ),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "segment_len", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *n_sizes, "BLOCK_P"),
        ("HAS_SEQ_IDX",),
        ("nheads * cdiv(HEADDIM, BLOCK_P)", "nsegments", "batch"),
        (
            *prologue(layer, pieces, common.has_groups(layer), blocks=True),
            *zeros,
            *merge(tuple(lowering.scopes[0])),
            loop,
        ),
        given=("dt", "dA_cs", "dA_last"),
    )


def _sources(layer: Layer) -> dict[str, Source]:
    found = {
        name: common.operand_source(layer, name, "b", row, col, False)
        for name, row, col in (("x", "j", "p"), ("B", "j", "n"), ("C", "i", "n"))
    }
    found["y_below"] = Source(
        "below", lambda at: ("b", common.on(at["i"], "i"), "head", common.on(at["p"], "p")), dtype="operand"
    )
    found |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1")
    sequences = common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, seqlen - 1)")
    found["seq"], found["seq_after"] = sequences["seq"], sequences["seq_last"]
    found["seq_first"] = Source("seq_idx", lambda _: ("b", "row0"), 1, "int", "HAS_SEQ_IDX")
    return found


__all__ = ["kernel", "name_of"]
