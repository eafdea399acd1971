"""The state that enters each chunk, kept for the backward pass.  chunk_graph -> Kernel

The walk of the forward pass without outputs, which stores the state instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.decompose import chunk_graph
from ...spec.layer import Layer
from ..ir import For, Full, Kernel, Load, Scalar, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, merge
from . import adjoint, common
from .reverse import prologue, row_mask, row_pieces
from .walk import sizes_of


@dataclass(frozen=True)
class States:
    """Shape of the code: tiles of dstate."""

    n_tiles: int = 1

    @property
    def name(self) -> str:
        return "chunk_states" if self.n_tiles == 1 else f"chunk_states_{self.n_tiles}n"


def kernel(layer: Layer, shape: States) -> Kernel:
    """Entering states of all chunks of a segment, one program per head, segment and tile of headdim."""
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", 1)
    pieces = row_pieces(n_sizes, p_sizes, "p0")
    axes = ("h", "n", "p")
    sources = {name: common.operand_source(layer, name, "b", "j", col, False) for name, col in (("x", "p"), ("B", "n"))}
    sources |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, stop) - 1")
    sources |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1")
    lowering = Lowering(
        chunk_graph(layer),
        pieces,
        sources,
        rename=common.RENAME,
        notes=dict(common.NOTES),
        value_axes=dict.fromkeys(("state", "state_out", "local_state"), axes),
    )
    loads: list[Stmt] = []
    zeros: list[Stmt] = []
    for at in lowering.combinations(axes):
        state = Value(lowering.variable("state", at), axes[1:])
        where = ("head", common.on(at["p"], "p"), common.on(at["n"], "n"))
        loads.append(Load(state, "entering", ("b", "segment", *where)))
        zeros.append(Full(state, tuple(span.size for axis in axes[1:] if (span := at[axis].span))))
        lowering.emit(1, Store("states", ("b", "chunk", *where), state))
        lowering.bind("state", at, state, 1)
    for at in lowering.combinations(axes):
        lowering.need("state_out", at)
    places = [Scalar("chunk", "first + step"), Scalar("row0", "chunk * CHUNK"), row_mask(pieces)]
    loop = For("step", "chunks", merge(common.loads_first([*places, *lowering.scopes[1]])))
    return Kernel(
        shape.name,
        "One program walks the chunks of a segment for one head, the state in registers; it writes the state that "
        "enters each chunk.",
        ("state_out",),
        (
            common.operand(layer, "x", "HEADDIM"),
            common.operand(layer, "B", "DSTATE"),
            *common.prepared_tensors(layer),
            common.seq_tensor(),
            Tensor("entering", ("batch", "nsegments", "nheads", "HEADDIM", "DSTATE"), "state", flag="HAS_ENTERING"),
            adjoint.states_tensor("states", out=True),
        ),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "nchunks", "segment_len", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *n_sizes, *p_sizes),
        ("HAS_SEQ_IDX", "HAS_ENTERING"),
        ("nheads * cdiv(HEADDIM, BLOCK_P)", "nsegments", "batch"),
        (
            *prologue(layer, pieces, shared=common.has_groups(layer, outputs=False), blocks=True),
            When("HAS_ENTERING", tuple(loads), tuple(zeros)),
            *merge(tuple(lowering.scopes[0])),
            loop,
        ),
        given=("dt", "dA_cs", "dA_last"),
    )


__all__ = ["States", "kernel"]
