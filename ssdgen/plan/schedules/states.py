"""The states that enter the chunks and the adjoints of those that leave them, for the backward pass.  -> Kernel

A walk without outputs, in either direction: it stores what it holds when it comes to a chunk.  For segments the adjoint
has another, which stores only what a segment adds to it, as `segment_state` does forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.decompose import chunk_graph
from ...spec.layer import Layer
from ..ir import For, Full, Kernel, Load, Scalar, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, Piece, merge
from . import adjoint, common, consumers
from .reverse import prologue, row_mask, row_pieces, tile_offsets
from .walk import sizes_of


@dataclass(frozen=True)
class States:
    """Shape of the code.

    adjoint: from the last chunk to the first, with the adjoint of the state; each: store it at every chunk, not what
    the segment adds to it; n_tiles: tiles of dstate; consumers: as in Walk, for which what is scaled goes into its
    product in two terms of the operands' dtype: one is 2% faster and moves A's gradient by a third of its error.
    """

    adjoint: bool = False
    each: bool = True
    n_tiles: int = 1
    consumers: int = 0

    @property
    def name(self) -> str:
        whole = "chunk_adjoints" if self.each else "segment_adjoint"
        parts = [whole if self.adjoint else "chunk_states"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.consumers}consumer" + "s" * (self.consumers > 1)] if self.consumers else []
        return "_".join(parts)

    @property
    def value(self) -> str:
        """What is stored: the state that enters a chunk, or the adjoint of the one that leaves it."""
        return "d_state_out" if self.adjoint else "state"

    @property
    def moved_on(self) -> str:
        """What it is on the other side of the chunk."""
        return "d_state" if self.adjoint else "state_out"

    @property
    def scaled(self) -> str:
        """The operand with the decays in it."""
        return "d_y_state" if self.adjoint else "x_weighted"

    @property
    def operands(self) -> tuple[str, str]:
        return ("d_y", "C") if self.adjoint else ("x", "B")


def kernel(layer: Layer, shape: States) -> Kernel:
    """The walk through the chunks of a segment.  Raises ValueError for shapes that cannot be."""
    if not shape.each and not shape.adjoint:
        raise ValueError("the state that a segment leaves is made by `segment_state`; use walk.kernel")
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", 1)
    if shape.consumers:
        n_sizes = ("BLOCK_N",) * shape.n_tiles  # one descriptor moves all tiles
    pieces = row_pieces(n_sizes, p_sizes, "p0")
    # consumers keep headdim along the rows, as walks of the forward pass do
    axes = ("h", "p", "n") if shape.consumers else ("h", "n", "p")
    lowering = Lowering(
        adjoint.graph(layer) if shape.adjoint else chunk_graph(layer),
        pieces,
        _sources(layer, shape),
        rename=adjoint.RENAME if shape.adjoint else common.RENAME,
        notes={} if shape.adjoint else dict(common.NOTES),
        value_axes=_axes(shape, axes),
        kept=adjoint.KEPT if shape.adjoint else frozenset(),
        # what is scaled goes into its product as two tiles: the matrix unit has time while memory binds
        two_terms=frozenset({shape.scaled} if shape.consumers else ()),
    )
    condition = "walk < walks" if shape.consumers else None
    loads: list[Stmt] = []
    zeros: list[Stmt] = []
    ends: list[Stmt] = []
    for at in lowering.combinations(axes):
        state = Value(lowering.variable(shape.value, at), axes[1:])
        where = ("head", common.on(at["p"], "p"), common.on(at["n"], "n"))
        loads.append(Load(state, "leaving" if shape.adjoint else "entering", ("b", "segment", *where)))
        zeros.append(Full(state, tuple(span.size for axis in axes[1:] if (span := at[axis].span))))
        if shape.each:
            stored = Store(_tensor(shape), ("b", "chunk", *where), state, shape.consumers > 0)
            lowering.emit(1, stored, condition)
            ends.append(Store("d_initial", ("b", *where), state))
        else:
            ends.append(Store("summary", ("b", "segment", *where), state))
        lowering.bind(shape.value, at, state, 1)
    for at in lowering.combinations(axes):
        lowering.need(shape.moved_on, at)
    chunk = "first + chunks - 1 - step" if shape.adjoint else "first + step"
    places = [Scalar("chunk", chunk), Scalar("row0", "chunk * CHUNK"), row_mask(pieces)]
    loop = For("step", "chunks", merge(common.loads_first([*places, *lowering.scopes[1]])))
    there = "HAS_LEAVING" if shape.adjoint else "HAS_ENTERING"
    opening: list[Stmt] = [When(there, tuple(loads), tuple(zeros))] if shape.each else zeros
    closing = [When(condition, tuple(ends))] if condition else ends
    if shape.each:
        closing = [When("STORE_INITIAL", tuple(closing))] if shape.adjoint else []
    return Kernel(
        shape.name,
        _about(shape),
        (shape.moved_on,),
        _tensors(layer, shape),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "nchunks", "segment_len", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *dict.fromkeys(n_sizes), *p_sizes),
        _flags(shape),
        (consumers.programs(_shared(layer, shape), shape.consumers), "nsegments", "batch"),
        (
            *_prologue(layer, shape, pieces),
            *opening,
            *merge(tuple(lowering.scopes[0])),
            loop,
            *closing,
        ),
        shape.consumers,
        given=("dt", "dA_cs", "dA_last"),
    )


def _tensor(shape: States) -> str:
    return "d_states" if shape.adjoint else "states"


def _shared(layer: Layer, shape: States) -> bool:
    """Whether heads share an operand that the walk reads."""
    return any(not layer.layout.per_head(name) for name in shape.operands if name != "d_y")


def _prologue(layer: Layer, shape: States, pieces: dict[str, tuple[Piece, ...]]) -> list[Stmt]:
    if not shape.consumers:
        return prologue(layer, pieces, _shared(layer, shape), blocks=True)
    return [
        *consumers.indices(_shared(layer, shape), shape.consumers),
        Scalar("first", "segment * (segment_len // CHUNK)"),
        Scalar("stop", "minimum(segment * segment_len + segment_len, seqlen)"),
        Scalar("chunks", "cdiv(stop - segment * segment_len, CHUNK)", narrow=True),
        *tile_offsets(pieces, "CHUNK"),
    ]


def _axes(shape: States, axes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Axes of states, and of the operand that has headdim, as what it is multiplied into has it."""
    names = ("d_state", "d_state_out", "d_state_y_state") if shape.adjoint else ("state", "state_out", "local_state")
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, axes)
    if shape.consumers:
        found |= dict.fromkeys(("d_y_skip", "d_y_state", "z"), ("h", "p", "i")) if shape.adjoint else {}
        found |= {} if shape.adjoint else {"x_weighted": ("h", "p", "j")}
    return found


def _sources(layer: Layer, shape: States):
    described = shape.consumers > 0
    found = adjoint.operand_sources(layer, 1, descriptor=described)
    found |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, stop) - 1")
    found |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1", descriptor=described)
    if shape.adjoint:
        found |= common.option_sources("b", level=1)
    return found


def _flags(shape: States) -> tuple[str, ...]:
    if not shape.adjoint:
        return ("HAS_SEQ_IDX", "HAS_ENTERING")
    found = ("HAS_SEQ_IDX", "HAS_Z", *(("HAS_LEAVING", "STORE_INITIAL") if shape.each else ()))
    return (*found, consumers.BESIDE) if shape.consumers else found


def _tensors(layer: Layer, shape: States) -> tuple[Tensor, ...]:
    state = ("nheads", "HEADDIM", "DSTATE")
    segments = ("batch", "nsegments", *state)
    if not shape.adjoint:
        return (
            common.operand(layer, "x", "HEADDIM"),
            common.operand(layer, "B", "DSTATE"),
            *common.prepared_tensors(layer),
            common.seq_tensor(),
            Tensor("entering", segments, "state", flag="HAS_ENTERING"),
            adjoint.states_tensor("states", out=True),
        )
    found = [common.operand(layer, "C", "DSTATE"), adjoint.d_y_tensor()]
    found += [tensor for tensor in common.prepared_tensors(layer) if tensor.name != "dt"]
    found += [common.seq_tensor(), common.gate_tensor()]
    if not shape.each:
        return (*found, Tensor("summary", segments, "state", out=True))
    found.append(Tensor("leaving", segments, "state", flag="HAS_LEAVING"))
    found.append(adjoint.states_tensor("d_states", out=True))
    return (*found, Tensor("d_initial", ("batch", *state), "state", flag="STORE_INITIAL", out=True))


def _about(shape: States) -> str:
    who = f"Each of {shape.consumers} groups of warps" if shape.consumers > 1 else "One program"
    held = "the adjoint of the state" if shape.adjoint else "the state"
    way = " from the last to the first" if shape.adjoint else ""
    what = "what a segment adds to the adjoint of the state that enters it"
    if shape.each:
        what = (
            "the adjoint of the state that leaves each chunk" if shape.adjoint else "the state that enters each chunk"
        )
    text = f"{who} walks the chunks of a segment for one head{way}, {held} in registers; it writes {what}."
    return text + (" Another warp moves the tiles that they read, stages ahead." if shape.consumers else "")


__all__ = ["States", "kernel"]
