"""One program walks the chunks of a segment from the last to the first, the adjoint of the state in registers.

chunk_adjoint -> Kernel.  It makes the gradients of x, z and D and its part of the step sizes'.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.dims import entry
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Mask, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..ir import Load as LoadStmt
from ..lower import Lowering, Piece, Pieces, merge
from . import adjoint, common
from .walk import sizes_of


@dataclass(frozen=True)
class Reverse:
    """Shape of the code: tiles of dstate and headdim, of which a program has all.

    blocks: programs share out headdim instead. Each leaves its part of what decays and step sizes get.
    """

    n_tiles: int = 1
    p_tiles: int = 1
    blocks: bool = False

    @property
    def name(self) -> str:
        parts = ["reverse_walk"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        parts += ["blocks"] if self.blocks else []
        return "_".join(parts)


NEEDS = ("NEEDS_X", "NEEDS_Z", "NEEDS_D", "NEEDS_DT")
# states have headdim along their rows, as they lie in memory
STATE = ("h", "n", "p")
NOTES = {
    "d_x_weighted": "right factor: what the state that leaves the chunk was made of",
    "CB": "diagonal block, once more and its adjoint",
    "d_state": "left and centre factor: the adjoint of the state that enters the chunk",
}


def kernel(layer: Layer, shape: Reverse) -> Kernel:
    """The reverse walk of `layer` as a kernel.  Raises ValueError for shapes that cannot be."""
    if shape.blocks and shape.p_tiles > 1:
        raise ValueError(f"where programs share out headdim each has one tile of it, not {shape.p_tiles}")
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    pieces = row_pieces(n_sizes, p_sizes, "p0" if shape.blocks else "0")
    graph = adjoint.graph(layer)
    lowering = Lowering(
        graph,
        pieces,
        _sources(layer),
        rename=adjoint.RENAME,
        notes=dict(NOTES),
        value_axes=_columns_first(layer),
        kept=adjoint.KEPT,
    )
    opening, closing = _carried(lowering)
    _outputs(lowering, layer, shape)
    for at in lowering.combinations(STATE):
        lowering.need("d_state", at)
    places = [
        Scalar("chunk", "first + chunks - 1 - step"),
        Scalar("row0", "chunk * CHUNK"),
        row_mask(pieces),
    ]
    loop = For("step", "chunks", merge(common.loads_first([*places, *lowering.scopes[1]])))
    return Kernel(
        shape.name,
        _about(shape),
        _equations(layer),
        _tensors(layer, shape),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "nchunks", "segment_len", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *n_sizes, *p_sizes),
        ("HAS_SEQ_IDX", "HAS_D", "HAS_Z", "HAS_LEAVING", "STORE_ADJOINTS", "STORE_INITIAL", *NEEDS),
        ("nheads * cdiv(HEADDIM, BLOCK_P)" if shape.blocks else "nheads", "nsegments", "batch"),
        (
            *prologue(layer, pieces, common.has_groups(layer), blocks=shape.blocks),
            *((Scalar("p_block", "p0 // BLOCK_P", wide=True),) if shape.blocks else ()),
            *opening,
            *merge(tuple(lowering.scopes[0])),
            loop,
            *closing,
        ),
        given=("dt", "dA_cs", "dA_last"),
    )


def row_pieces(
    n_sizes: tuple[str, ...], p_sizes: tuple[str, ...], p_first: str, n_first: str = "0"
) -> dict[str, tuple[Piece, ...]]:
    """One head and one tile of rows, which are the columns too."""
    row = Piece("", Span("i", "row", "CHUNK", "row0", "row_in"), position="row")
    return {
        "h": (Piece("", scalar="head"),),
        "i": (row,),
        "j": (row,),
        "n": common.spans("n", "n", n_sizes, n_first),
        "p": common.spans("p", "p", p_sizes, p_first),
    }


def row_mask(pieces: dict[str, tuple[Piece, ...]], limit: str = "stop") -> Mask:
    span = pieces["i"][0].span
    assert span is not None
    return common.mask(span, limit)


def prologue(layer: Layer, pieces: dict[str, tuple[Piece, ...]], shared: bool, blocks: bool) -> list[Stmt]:
    """Which head and which chunks a program walks.  blocks: programs share out headdim."""
    stmts: list[Stmt] = []
    if blocks:
        stmts += [Scalar("p_blocks", "cdiv(HEADDIM, BLOCK_P)"), Scalar("p0", "program_id(0) % p_blocks * BLOCK_P")]
    stmts.append(Scalar("head", "program_id(0) // p_blocks" if blocks else "program_id(0)", wide=True))
    if shared:
        stmts.append(Scalar("group", common.group_expr(layer, "head")))
    stmts += [
        Scalar("segment", "program_id(1)", wide=True),
        Scalar("b", "program_id(2)", wide=True),
        Scalar("first", "segment * (segment_len // CHUNK)"),
        Scalar("stop", "minimum(segment * segment_len + segment_len, seqlen)"),
        Scalar("chunks", "cdiv(stop - segment * segment_len, CHUNK)", narrow=True),
    ]
    return [*stmts, *tile_offsets(pieces, "CHUNK")]


def tile_offsets(pieces: dict[str, tuple[Piece, ...]], rows: str) -> list[Stmt]:
    """Offsets of rows and of the tiles of dstate and headdim, and masks of the latter."""
    stmts: list[Stmt] = [Arange("row", "i", rows)]
    tiles = [(axis, piece.span) for axis in ("n", "p") for piece in pieces[axis]]
    stmts += [Arange(span.offsets, axis, span.size) for axis, span in tiles if span]
    return stmts + [common.mask(span, {"n": "DSTATE", "p": "HEADDIM"}[axis]) for axis, span in tiles if span]


def _columns_first(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Axes where states have headdim along their rows, and scores the columns of the mask.

    The scores are then the left operand of the gradient of x: nothing is transposed.
    """
    found = {}
    for node in adjoint.graph(layer).nodes:
        if set(node.axes) >= {"i", "j"}:
            found[node.name] = tuple(axis for axis in ("h", "j", "i") if axis in node.axes)
        elif set(node.axes) == {"h", "n", "p"}:
            found[node.name] = STATE
    return found


def _sources(layer: Layer):
    found = adjoint.operand_sources(layer, 1)
    found |= common.option_sources("b", level=1)
    found |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, stop) - 1")
    found |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1")
    found["state"] = adjoint.state_source("states", STATE[1:])
    return found


def _carried(lowering: Lowering) -> tuple[list[Stmt], list[Stmt]]:
    """What the loop carries: how it begins, and where it goes in the end."""
    loads: list[Stmt] = []
    zeros: list[Stmt] = []
    stores: list[Stmt] = []
    for at in lowering.combinations(STATE):
        state = Value(lowering.variable("d_state", at), STATE[1:])
        where = ("head", common.on(at["p"], "p"), common.on(at["n"], "n"))
        loads.append(LoadStmt(state, "leaving", ("b", "segment", *where)))
        zeros.append(Full(state, tuple(span.size for axis in STATE[1:] if (span := at[axis].span))))
        stores.append(Store("d_initial", ("b", *where), state))
        lowering.bind("d_state_out", at, state, 1)
    opening: list[Stmt] = [When("HAS_LEAVING", tuple(loads), tuple(zeros))]
    closing: list[Stmt] = [When("STORE_INITIAL", tuple(stores))]
    for at in lowering.combinations(("h", "p")):
        total = _d_skip(lowering, at)
        span = common.on(at["p"], "p")
        assert isinstance(span, Span)
        opening.append(When("NEEDS_D", (Full(total, (span.size,)),)))
        closing.append(When("NEEDS_D", (Store("d_D", ("b", "segment", "head", span), total),)))
    return opening, closing


def _d_skip(lowering: Lowering, at: Pieces) -> Value:
    """Variable that adds up the gradient of D over chunks."""
    return Value(f"{lowering.variable('d_D', at)}_total", ("p",))


def _outputs(lowering: Lowering, layer: Layer, shape: Reverse) -> None:
    """Everything of a trip but the adjoint of the state that enters, which overwrites the one that leaves."""

    def each(*axes: str):
        return lowering.combinations(("h", *axes))

    def rows(at: Pieces, tensor: str, value: str, flag: str | None, axis: str) -> None:
        made = lowering.need(value, at)
        assert made is not None
        index = ("b", common.on(at[axis], axis), "head", common.on(at["p"], "p"))
        lowering.emit(1, Store(tensor, index, made[0]), flag)

    for at in lowering.combinations(STATE):
        made = lowering.need("d_state_out", at)
        assert made is not None
        index = ("b", "chunk", "head", common.on(at["p"], "p"), common.on(at["n"], "n"))
        lowering.emit(1, Store("d_states", index, made[0]), "STORE_ADJOINTS")
    for name in ("x", "d_y_skip"):
        for at in each(*(axis for axis in lowering.graph[name].axes if axis != "h")):
            lowering.need(name, at)
    with lowering.under("NEEDS_D"):
        for at in each("p"):
            total, made = _d_skip(lowering, at), lowering.need("d_D", at)
            assert made is not None
            added = entry(total.name, "p") + entry(made[0].name, "p")
            lowering.emit(1, Let(total, added, (total, made[0])))
    # what d_z shares with the rest, made for both; of each tile the sums before it goes on
    for name in ("d_x_weighted", "d_right_decay", "left_decay", "scores"):
        for at in each(*(axis for axis in lowering.graph[name].axes if axis != "h")):
            lowering.need(name, at)
    for at in each("p"):
        lowering.need("D", at)
    with lowering.under("NEEDS_Z"):
        for at in each("i", "p"):
            rows(at, "d_z", "d_z", None, "i")
    for at in each("j", "p"):
        rows(at, "d_x", adjoint.head_part(layer, "d_x"), "NEEDS_X", "j")
    for name in adjoint.there(layer, *adjoint.WALK_VECTORS):
        for at in each(*lowering.graph[name].axes[1:]):
            index = (*(("p_block",) if shape.blocks else ()), *adjoint.vector_index(at))
            lowering.store(1, name, at, name, index, flag="NEEDS_DT")


def _tensors(layer: Layer, shape: Reverse) -> tuple[Tensor, ...]:
    state = ("nheads", "HEADDIM", "DSTATE")
    segments = ("batch", "nsegments", *state)
    # where heads share x, each leaves its part
    dtype = "operand" if layer.layout.per_head("x") else "float32"
    tokens = ("batch", "seqlen", "nheads", "HEADDIM")
    return (
        *(common.operand(layer, name, last) for name, last in (("x", "HEADDIM"), ("B", "DSTATE"), ("C", "DSTATE"))),
        adjoint.d_y_tensor(),
        *common.prepared_tensors(layer),
        common.seq_tensor(),
        common.skip_tensor(),
        common.gate_tensor(),
        adjoint.states_tensor("states", flag="NEEDS_Z"),
        Tensor("leaving", segments, "state", flag="HAS_LEAVING"),
        Tensor("d_x", tokens, dtype, flag="NEEDS_X", out=True),
        Tensor("d_z", tokens, "operand", flag="NEEDS_Z", out=True),
        Tensor("d_D", ("batch", "nsegments", "nheads", "HEADDIM"), "float32", flag="NEEDS_D", out=True),
        *adjoint.vector_tensors(layer, adjoint.WALK_VECTORS, (), True, "p_blocks" if shape.blocks else None),
        adjoint.states_tensor("d_states", out=True, flag="STORE_ADJOINTS"),
        Tensor("d_initial", ("batch", *state), "state", flag="STORE_INITIAL", out=True),
    )


def _about(shape: Reverse) -> str:
    head, part = ("a tile of headdim of one head", ", its part of") if shape.blocks else ("one head", ",")
    return (
        f"One program walks the chunks of a segment for {head} from the last to the first, the adjoint of the state "
        f"in registers; it writes the gradients of x, z and D{part} those of each chunk's decays and step sizes, and "
        "each chunk's d_state_out."
    )


def _equations(layer: Layer) -> tuple[str, ...]:
    vectors = adjoint.there(layer, *adjoint.WALK_VECTORS)
    return ("d_z", "d_D", adjoint.head_part(layer, "d_x"), *vectors, "d_state")


__all__ = ["Reverse", "kernel", "prologue", "row_mask", "row_pieces", "tile_offsets"]
