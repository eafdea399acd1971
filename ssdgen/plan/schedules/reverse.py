"""One program walks the chunks of a segment from the last to the first, the adjoint of the state in registers.

chunk_adjoint -> Kernel.  It makes the gradients of x, z and D and its part of the step sizes'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...spec.dims import entry
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Mask, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..ir import Load as LoadStmt
from ..lower import Lowering, Piece, Pieces, merge
from . import adjoint, common, consumers, reverse_tiles
from .reverse_tiles import vectors
from .walk import sizes_of


@dataclass(frozen=True)
class Reverse:
    """Shape of the code: tiles of dstate and headdim, of which a program has all.

    blocks: programs share out headdim instead. Each leaves its part of what decays and step sizes get.
    consumers: of a program that is specialised by warps, each with a tile of headdim and equal tiles of dstate.
    left: the adjoint of their state is a left operand, from registers; else a right one, from shared memory.
    """

    n_tiles: int = 1
    p_tiles: int = 1
    blocks: bool = False
    consumers: int = 0
    left: bool = False

    @property
    def name(self) -> str:
        parts = ["reverse_walk"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        parts += ["blocks"] if self.blocks else []
        parts += ["left"] if self.left else []
        parts += [f"{self.consumers}consumer" + "s" * (self.consumers > 1)] if self.consumers else []
        return "_".join(parts)

    @property
    def state_axes(self) -> tuple[str, ...]:
        """States have headdim along their rows, as they lie in memory, for consumers in registers too."""
        return ("h", "p", "n") if self.consumers else STATE


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
    if shape.consumers and not (shape.blocks and adjoint.loops(layer)):
        raise ValueError(f"consumers go with a tile of headdim each and with shared B and C, not with {shape}")
    if shape.left and not shape.consumers:
        raise ValueError(f"only consumers choose on which side they multiply their state, not {shape}")
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    if shape.consumers:
        n_sizes = ("BLOCK_N",) * shape.n_tiles  # one descriptor moves all tiles
    pieces = row_pieces(n_sizes, p_sizes, "p0" if shape.blocks else "0")
    graph = reverse_tiles.graph(layer) if shape.consumers else adjoint.graph(layer)
    lowering = Lowering(
        graph,
        pieces,
        _sources(layer, shape),
        rename=adjoint.RENAME | ({"d_y_skip": "d_y"} if shape.consumers else {}),
        notes=dict(NOTES),
        value_axes=_columns_first(layer, shape),
        kept=adjoint.KEPT,
    )
    opening, closing = _carried(lowering, shape)
    if shape.consumers:
        reverse_tiles.outputs(lowering, layer, shape.left)
    else:
        _outputs(lowering, layer, shape)
    for at in lowering.combinations(shape.state_axes):
        lowering.need("d_state", at)
    head = prologue(layer, pieces, common.has_groups(layer), blocks=shape.blocks)
    head += [Scalar("p_block", "p0 // BLOCK_P", wide=True)] if shape.blocks else []
    grid = "nheads * cdiv(HEADDIM, BLOCK_P)" if shape.blocks else "nheads"
    if shape.consumers:
        head = [*reverse_tiles.indices(shape.consumers, shape.left), *_chunks(), *tile_offsets(pieces, "CHUNK")]
        grid = f"nheads * cdiv(HEADDIM, BLOCK_P) // {shape.consumers}"
    places = [
        Scalar("chunk", f"first + chunks - 1 - {'hidden(step)' if shape.consumers else 'step'}"),
        Scalar("row0", "chunk * CHUNK"),
        row_mask(pieces),
    ]
    body = lowering.scopes[1]
    if shape.consumers:
        # what is loaded where an option needs it stays there
        body = list(merge(tuple(body)))
    loop = For("step", "chunks", merge(common.loads_first([*places, *body])))
    return Kernel(
        shape.name,
        _about(shape),
        _equations(layer, shape),
        _tensors(layer, shape),
        ("batch", "seqlen", "nheads", "ngroups", "nsegments", "nchunks", "segment_len", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *dict.fromkeys(n_sizes), *p_sizes),
        _flags(shape),
        (grid, "nsegments", "batch"),
        (
            *head,
            *opening,
            *merge(tuple(lowering.scopes[0])),
            loop,
            *closing,
        ),
        shape.consumers,
        # without a gate the adjoint of y is that of what the state and the scores give
        given=("dt", "dA_cs", "dA_last", *(("d_y_skip",) if shape.consumers else ())),
        spare=shape.consumers > 0,
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
        *_chunks(),
    ]
    return [*stmts, *tile_offsets(pieces, "CHUNK")]


def _chunks() -> list[Stmt]:
    """The chunks of a segment."""
    return [
        Scalar("first", "segment * (segment_len // CHUNK)"),
        Scalar("stop", "minimum(segment * segment_len + segment_len, seqlen)"),
        Scalar("chunks", "cdiv(stop - segment * segment_len, CHUNK)", narrow=True),
    ]


def tile_offsets(pieces: dict[str, tuple[Piece, ...]], rows: str) -> list[Stmt]:
    """Offsets of rows and of the tiles of dstate and headdim, and masks of the latter."""
    stmts: list[Stmt] = [Arange("row", "i", rows)]
    tiles = [(axis, piece.span) for axis in ("n", "p") for piece in pieces[axis]]
    stmts += [Arange(span.offsets, axis, span.size) for axis, span in tiles if span]
    return stmts + [common.mask(span, {"n": "DSTATE", "p": "HEADDIM"}[axis]) for axis, span in tiles if span]


def _columns_first(layer: Layer, shape: Reverse) -> dict[str, tuple[str, ...]]:
    """Axes where states have headdim along their rows, and scores the columns of the mask.

    The scores are then the left operand of the gradient of x: nothing is transposed.  Where the adjoint of the state
    is a left operand instead, what comes of it has headdim along its rows too, and the scores are the right one.
    """
    found, sources = {}, ("x", "d_y", "d_y_skip")
    for node in (reverse_tiles if shape.consumers else adjoint).graph(layer).nodes:
        if set(node.axes) >= {"i", "j"}:
            found[node.name] = tuple(axis for axis in ("h", "j", "i") if axis in node.axes)
        elif set(node.axes) == {"h", "n", "p"}:
            found[node.name] = shape.state_axes
        elif shape.left and node.name not in sources and set(node.axes) in ({"h", "i", "p"}, {"h", "j", "p"}):
            found[node.name] = ("h", "p", *(axis for axis in node.axes if axis in "ij"))
    # the adjoint of the state has the rows of what is multiplied into it
    return found | ({"d_y_state": ("h", "p", "i")} if shape.consumers else {})


def _sources(layer: Layer, shape: Reverse):
    described = shape.consumers > 0
    found = adjoint.operand_sources(layer, 1, descriptor=described)
    if described:
        found["d_y_skip"] = found["d_y"]
    found |= common.option_sources("b", level=1)
    if described:
        found["D"] = replace(found["D"], level=1)
    found |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, stop) - 1")
    found |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1", descriptor=described, near=described)
    found["state"] = adjoint.state_source("states", STATE[1:])
    return found


def _carried(lowering: Lowering, shape: Reverse) -> tuple[list[Stmt], list[Stmt]]:
    """What the loop carries: how it begins, and where it goes in the end."""
    loads: list[Stmt] = []
    zeros: list[Stmt] = []
    stores: list[Stmt] = []
    axes = shape.state_axes
    for at in lowering.combinations(axes):
        state = Value(lowering.variable("d_state", at), axes[1:])
        where = ("head", common.on(at["p"], "p"), common.on(at["n"], "n"))
        loads.append(LoadStmt(state, "leaving", ("b", "segment", *where)))
        zeros.append(Full(state, tuple(span.size for axis in axes[1:] if (span := at[axis].span))))
        stores.append(Store("d_initial", ("b", *where), state))
        lowering.bind("d_state_out", at, state, 1)
    opening: list[Stmt] = [When("HAS_LEAVING", tuple(loads), tuple(zeros))]
    closing: list[Stmt] = [When("STORE_INITIAL", tuple(stores))]
    for at in lowering.combinations(("h", "p")):
        if shape.consumers:
            continue
        total = _skip_total(lowering, at)
        span = common.on(at["p"], "p")
        assert isinstance(span, Span)
        opening.append(When("NEEDS_D", (Full(total, (span.size,)),)))
        closing.append(When("NEEDS_D", (Store("d_D", ("b", "segment", "head", span), total),)))
    return opening, closing


def _skip_total(lowering: Lowering, at: Pieces) -> Value:
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
            made = lowering.need("d_D", at)
            assert made is not None
            total = _skip_total(lowering, at)
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
    vectors(lowering, layer, shape.blocks, *adjoint.WALK_VECTORS)


def _flags(shape: Reverse) -> tuple[str, ...]:
    if shape.consumers:
        return (
            "HAS_SEQ_IDX",
            "HAS_D",
            "HAS_LEAVING",
            "STORE_INITIAL",
            "NEEDS_X",
            "NEEDS_D",
            "NEEDS_DT",
            consumers.BESIDE,
        )
    return ("HAS_SEQ_IDX", "HAS_D", "HAS_Z", "HAS_LEAVING", "STORE_ADJOINTS", "STORE_INITIAL", *NEEDS)


def _tensors(layer: Layer, shape: Reverse) -> tuple[Tensor, ...]:
    state = ("nheads", "HEADDIM", "DSTATE")
    segments = ("batch", "nsegments", *state)
    # where heads share x, each leaves its part
    dtype = "operand" if layer.layout.per_head("x") else "float32"
    tokens = ("batch", "seqlen", "nheads", "HEADDIM")
    gated = not shape.consumers
    return (
        *(common.operand(layer, name, last) for name, last in (("x", "HEADDIM"), ("B", "DSTATE"), ("C", "DSTATE"))),
        adjoint.d_y_tensor(),
        *common.prepared_tensors(layer, outputs=True),
        common.seq_tensor(),
        common.skip_tensor(),
        *((common.gate_tensor(), adjoint.states_tensor("states", flag="NEEDS_Z")) if gated else ()),
        Tensor("leaving", segments, "state", flag="HAS_LEAVING"),
        Tensor("d_x", tokens, dtype, flag="NEEDS_X", out=True),
        *((Tensor("d_z", tokens, "operand", flag="NEEDS_Z", out=True),) if gated else ()),
        Tensor(
            "d_D",
            ("batch", "nsegments" if gated else "nchunks", "nheads", "HEADDIM"),
            "float32",
            flag="NEEDS_D",
            out=True,
        ),
        *adjoint.vector_tensors(layer, adjoint.WALK_VECTORS, (), True, "p_blocks" if shape.blocks else None),
        adjoint.states_tensor("d_states", out=True, flag="STORE_ADJOINTS" if gated else None),
        Tensor("d_initial", ("batch", *state), "state", flag="STORE_INITIAL", out=True),
    )


def _about(shape: Reverse) -> str:
    head, part = ("a tile of headdim of one head", ", its part of") if shape.blocks else ("one head", ",")
    who = f"Each of {shape.consumers} groups of warps" if shape.consumers else "One program"
    text = (
        f"{who} walks the chunks of a segment for {head} from the last to the first, the adjoint of the state "
        f"in registers; it writes the gradients of x{', z' * (not shape.consumers)} and D{part} those of each chunk's "
        "decays and step sizes, and each chunk's d_state_out."
    )
    return text + (" Another warp moves the tiles that they read, stages ahead." if shape.consumers else "")


def _equations(layer: Layer, shape: Reverse) -> tuple[str, ...]:
    vectors = adjoint.there(layer, *adjoint.WALK_VECTORS)
    gate = () if shape.consumers else ("d_z",)
    return (*gate, "d_D", adjoint.head_part(layer, "d_x"), *vectors, "d_state")


__all__ = ["Reverse", "kernel", "prologue", "row_mask", "row_pieces", "tile_offsets"]
