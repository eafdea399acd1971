"""The convolution where channels lie side by side: programs walk along tokens.  spec.conv -> Kernel

A program has some channels of a part of a sequence.  It goes through it a few tokens at a time, loads the next ones
before it computes, and keeps the last width - 1 inputs in registers: every input is read once.  Backwards it goes the
same way: the gradient of an input is finished width - 1 tokens later, so it keeps as many adjoints of the sum as
inputs, and goes that far into the next part.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...spec.conv import conv_adjoint, conv_graph
from ...spec.dims import entry, name_of
from ...spec.graph import Sum
from ..ir import For, FromWords, InWords, Kernel, Let, Load, Mask, Scalar, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece, Source
from .conv import (
    CHANNELS,
    KEPT,
    after,
    backward_tensors,
    before,
    bias_in_units,
    channel_sources,
    channel_statements,
    final_states,
    forward_tensors,
    gradient_names,
    scalar,
    span,
    store_parts,
    suffix,
    summed_names,
    zeros,
)

ROW = ("batch", "seqlen", "dim")


@dataclass(frozen=True)
class Walk:
    """tokens: how many are loaded together, at least width - 1; a program's own are a multiple of them."""

    width: int
    backward: bool = False
    tokens: int = 4

    @property
    def name(self) -> str:
        return f"conv_walk{'_backward' if self.backward else ''}_{self.width}w"


def kernel(shape: Walk) -> Kernel:
    """The kernel that computes y and the final states or, backward, the gradients."""
    width, tokens = shape.width, shape.tokens
    if tokens < width - 1:
        raise ValueError(f"{tokens} tokens are loaded together; it must be at least width - 1 = {width - 1}")
    tensors = backward_tensors(ROW, "nsegments") if shape.backward else forward_tensors(ROW)
    about = (
        "One program convolves a tile of channels of a part of a sequence: it walks along the tokens and keeps the "
        "last inputs."
    )
    if shape.backward:
        about = (
            "One program makes the gradients of a tile of channels of a part of a sequence: it walks along the tokens "
            "and keeps the last inputs and adjoints. What it adds to the gradients of the weight it leaves in parts."
        )
    flags = ("HAS_BIAS", "SILU", "HAS_SEQ_IDX", "HAS_CU_SEQLENS", "HAS_INITIAL")
    flags += ("HAS_D_STATES", "STORE_D_INITIAL") if shape.backward else ("STORE_FINAL",)
    return Kernel(
        shape.name,
        about,
        ("d_x", *gradient_names(width)) if shape.backward else ("y", "state_out"),
        (*tensors, Tensor("cu_seqlens", ("rows + 1",), "index", "no", "HAS_CU_SEQLENS")),
        ("batch", "rows", "seqlen", "dim", "width", "state_len", "sums", "nsegments"),
        (),
        ("BLOCK_D",),
        flags,
        ("cdiv(dim, BLOCK_D)", "nsegments", "rows"),
        (*_place(tokens), *(_backward(shape) if shape.backward else _forward(shape))),
        gates=True,
    )


def _place(tokens: int) -> tuple[Stmt, ...]:
    """Which channels and tokens a program has: `part` of the `length` tokens from `start` on."""
    packed: tuple[Stmt, ...] = (
        Scalar("row", "0", wide=True),
        Load(Value("start", (), "int"), "cu_seqlens", ("b",)),
        Load(Value("stop", (), "int"), "cu_seqlens", ("b + 1",)),
        Scalar("length", "stop - start", narrow=True),
    )
    whole: tuple[Stmt, ...] = (
        Scalar("row", "b"),
        Scalar("start", "0", wide=True),
        Scalar("length", "seqlen", narrow=True),
    )
    return (
        *channel_statements(0),
        # positions in a sequence are numbers of 32 bits: they are compared often, and multiplied only with a start
        Scalar("segment", "program_id(1)"),
        Scalar("b", "program_id(2)", wide=True),
        When("HAS_CU_SEQLENS", packed, whole),
        Scalar("part", f"cdiv(cdiv(length, nsegments), {tokens}) * {tokens}"),
        Scalar("first", "segment * part"),
        Scalar("last", "minimum(first + part, length)"),
        Scalar("trips", f"cdiv(maximum(last - first, 0), {tokens})", narrow=True),
    )


def _pieces(orders: range) -> dict[int, Piece]:
    return {order: Piece(suffix(order), scalar=after("t", order), order=order) for order in orders}


def _lowering(shape: Walk, orders: range) -> Lowering:
    """Of the tokens of one trip, and those before them."""
    width = shape.width

    def sequence(at: dict[str, Piece]) -> tuple:
        return "row", f"minimum({at['t'].scalar}, length - 1)"

    lowering = Lowering(
        conv_adjoint(width) if shape.backward else conv_graph(width),
        {"t": tuple(_pieces(orders).values()), "d": (CHANNELS,)},
        {
            "seq": Source("seq_idx", sequence, dtype="int", flag="HAS_SEQ_IDX"),
            **channel_sources(width, 0, None if shape.backward else "HAS_BIAS"),
        },
        kept=KEPT,
    )
    if shape.backward:
        bias_in_units(lowering)
    return lowering


def _bind(lowering: Lowering, width: int, carried: tuple[str, ...] = ()) -> None:
    """What the trip before has left."""
    for back in range(1, width):
        at = {"t": _pieces(range(-back, 0))[-back], "d": CHANNELS}
        for name in ("x", *carried):
            lowering.bind(name, at, Value(f"{name}_m{back}", ("d",)), 1)
        lowering.bind("seq", at, Value(f"seq_m{back}", (), "int"), 1)


def _arrived(lowering: Lowering, pieces: list[Piece], names: tuple[str, ...]) -> None:
    """What the trip before has loaded, which waited in its own bits, and the sequences of these tokens."""
    for name in names:
        for piece in pieces:
            value = Value(f"{name}{piece.suffix}", ("d",))
            lowering.emit(1, FromWords(value, _ahead(name, piece), name))
            lowering.bind(name, {"t": piece, "d": CHANNELS}, value, 1)
    for piece in pieces:
        lowering.need("seq", {"t": piece})


def _ahead(name: str, piece: Piece) -> Value:
    return Value(f"{name}_next{piece.suffix}", ("d",), "stored")


def _load_ahead(pieces: list[Piece], names: tuple[str, ...], t: str, at: str, limit: str) -> list[Stmt]:
    """The tokens from the position `t` on, which stands at `at` of a row, up to a limit."""
    found: list[Stmt] = []
    for piece in pieces:
        inside = (f"{after(t, piece.order)} < {limit}",)
        found.append(Mask(f"ahead{piece.suffix}", "d", "d", "dim - d0", inside))
    for name in names:
        for piece in pieces:
            index = ("row", after(at, piece.order), span(f"ahead{piece.suffix}"))
            found.append(Load(_ahead(name, piece), name, index))
    return [*found, *(InWords(_ahead(name, piece), _ahead(name, piece)) for name in names for piece in pieces)]


def _carry(lowering: Lowering, width: int, names: tuple[str, ...]) -> None:
    """What the next trip starts from: the last tokens of this one."""
    last = lowering.pieces["t"][-1].order
    for back in range(width - 1, 0, -1):
        piece = next(piece for piece in lowering.pieces["t"] if piece.order == last + 1 - back)
        for name in names:
            made = lowering.need(name, {"t": piece, "d": CHANNELS})
            assert made is not None
            lowering.emit(1, Let(Value(f"{name}_m{back}", ("d",)), entry(made[0].name, "d"), (made[0],)))
        value = Value(f"seq{piece.suffix}", (), "int")
        kept = Let(Value(f"seq_m{back}", (), "int"), scalar(value.name), (value,))
        lowering.emit(1, kept, "HAS_SEQ_IDX")


def _trip(lowering: Lowering, tokens: int, names: tuple[str, ...], limit: str) -> list[Piece]:
    """Where a trip stands, what it has, and the loads for the next one, up to a limit."""
    pieces = list(_pieces(range(tokens)).values())
    lowering.emit(1, Scalar("t", f"first + trip * {tokens}"))
    lowering.emit(1, Scalar("at", "start + t"))
    _arrived(lowering, pieces, names)
    lowering.scopes[1] += _load_ahead(pieces, names, f"t + {tokens}", f"at + {tokens}", limit)
    return pieces


def _forward(shape: Walk) -> tuple[Stmt, ...]:
    width, tokens = shape.width, shape.tokens
    lowering = _lowering(shape, range(1 - width, tokens))
    _bind(lowering, width)
    pieces = _trip(lowering, tokens, ("x",), "last")
    for piece in pieces:
        inside = f"in{piece.suffix}"
        lowering.emit(1, Mask(inside, "d", "d", "dim - d0", (f"{piece.scalar} < length",)))
        lowering.store(1, "y", {"t": piece, "d": CHANNELS}, "y", ("row", after("at", piece.order), span(inside)))
    _carry(lowering, width, ("x",))
    return (
        *merge(tuple(lowering.scopes[0])),
        *merge(tuple(before("first", width, ROW, limit="length"))),
        *_load_ahead(pieces, ("x",), "first", "start + first", "last"),
        For("trip", "trips", merge(tuple(lowering.scopes[1]))),
        final_states(width, "segment == 0", ROW),
    )


def _backward(shape: Walk) -> tuple[Stmt, ...]:
    width, tokens = shape.width, shape.tokens
    lowering = _lowering(shape, range(1 - width, tokens))
    bias = lowering.graph["d_units_bias"]
    assert isinstance(bias, Sum)
    adjoint, loaded = name_of(bias.of), ("x", "d_y")
    _bind(lowering, width, (adjoint,))
    pieces = _trip(lowering, tokens, loaded, "length")
    for piece in pieces:
        lowering.need(adjoint, {"t": piece, "d": CHANNELS})
        _accumulate(lowering, piece, width)
        _store(lowering, piece.order - (width - 1), width, first=True)
    _carry(lowering, width, ("x", adjoint))

    # the last tokens' gradients wait for the tokens after them, which are another program's, and loaded already
    rest = _lowering(shape, range(1 - width, width - 1))
    rest.made.update({key: made for key, made in lowering.made.items() if made[1] == 0})
    _bind(rest, width, (adjoint,))
    _arrived(rest, list(_pieces(range(width - 1)).values()), loaded)
    for back in range(width - 1, 0, -1):
        _store(rest, -back, width, first=False)

    last = Load(Value("seq_last", (), "int"), "seq_idx", ("row", "length - 1"))
    start = [zeros(f"{adjoint}_m{back}", "BLOCK_D") for back in range(width - 1, 0, -1)]
    sums = [zeros(f"d_weight_{back}", "BLOCK_D") for back in range(width)]
    return (
        *merge(tuple(lowering.scopes[0])),
        *merge((*before("first", width, ROW, limit="length"), When("HAS_SEQ_IDX", (last,)))),
        *_load_ahead(pieces, loaded, "first", "start + first", "length"),
        *start,
        *sums,
        When("HAS_BIAS", (zeros("d_bias", "BLOCK_D"),)),
        For("trip", "trips", merge(tuple(lowering.scopes[1]))),
        Scalar("t", f"first + trips * {tokens}"),
        Scalar("at", "start + t"),
        *merge(tuple(rest.scopes[1])),
        *store_parts(width, "segment"),
    )


def _accumulate(lowering: Lowering, piece: Piece, width: int) -> None:
    """Add what a token gives to the gradients of its channels."""
    for name, variable in summed_names(width).items():
        node = lowering.graph[name]
        assert isinstance(node, Sum)
        made = lowering.need(name_of(node.of), {"t": piece, "d": CHANNELS})
        assert made is not None
        total = Value(variable, ("d",))
        added: sympy.Expr = entry(variable, "d") + entry(made[0].name, "d")
        lowering.emit(1, Let(total, added, (total, made[0])), "HAS_BIAS" if variable == "d_bias" else None)


def _store(lowering: Lowering, order: int, width: int, first: bool) -> None:
    """The gradient of the input at a piece; before the first token it is that of the initial state."""
    piece = next(piece for piece in lowering.pieces["t"] if piece.order == order)
    at = {"t": piece, "d": CHANNELS}
    ending, mask = Value(f"d_state_out{piece.suffix}", ("d",)), f"ends{piece.suffix}"
    inside = (f"{piece.scalar} >= length - {width - 1}", f"{piece.scalar} < length")
    column = f"{piece.scalar} - length + {width - 1}"
    loads = (
        Mask(mask, "d", "d", "dim - d0", inside),
        Load(ending, "d_states", ("b", span(mask), column)),
    )
    lowering.emit(1, When("HAS_D_STATES", loads, (zeros(ending.name, "BLOCK_D"),)))
    lowering.bind("d_state_out", at, ending, 1)
    made = lowering.need("d_x", at)
    assert made is not None
    own, row = f"own{piece.suffix}", ("row", after("at", piece.order))
    lowering.emit(1, Mask(own, "d", "d", "dim - d0", (f"{piece.scalar} >= first", f"{piece.scalar} < length")))
    lowering.emit(1, Store("d_x", (*row, span(own)), made[0]))
    if first and order < 0:
        early = f"early{piece.suffix}"
        stores = (
            Mask(early, "d", "d", "dim - d0", (f"{piece.scalar} < 0",)),
            Store("d_initial_states", ("b", span(early), after(f"{piece.scalar}", width - 1)), made[0]),
        )
        lowering.emit(1, When("STORE_D_INITIAL", stores))
