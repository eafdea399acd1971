"""The convolution where positions lie side by side: programs have tiles of tokens and channels.  spec.conv -> Kernel

What stands some tokens before or after in a tile is the tile that begins so many tokens earlier or later.  So an input
is read once for each tap, and a gradient makes the adjoints of the sum once for each tap; the cache holds what is read
again.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...spec.conv import conv_adjoint, conv_graph
from ...spec.dims import entry, name_of
from ...spec.graph import Sum as SumNode
from ..ir import Arange, Full, Kernel, Let, Load, Mask, Scalar, Span, Stmt, Store, Sum, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece, Source
from .conv import (
    CHANNELS,
    KEPT,
    after,
    backward_tensors,
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

ROW = ("batch", "dim", "seqlen")


@dataclass(frozen=True)
class Tile:
    width: int
    backward: bool = False

    @property
    def name(self) -> str:
        return f"conv_tile{'_backward' if self.backward else ''}_{self.width}w"


def kernel(shape: Tile) -> Kernel:
    """The kernel that computes y and the final states or, backward, the gradients."""
    width, backward = shape.width, shape.backward
    about = "One program convolves a tile of channels and tokens."
    if backward:
        about = (
            "One program makes the gradients of a tile of channels and tokens. What it adds to the gradients of the "
            "weight it leaves in parts."
        )
    flags = ("HAS_BIAS", "SILU", "HAS_SEQ_IDX", "HAS_INITIAL")
    flags += ("HAS_D_STATES", "STORE_D_INITIAL") if backward else ("STORE_FINAL",)
    return Kernel(
        shape.name,
        about,
        ("d_x", *gradient_names(width)) if backward else ("y", "state_out"),
        backward_tensors(ROW, "ntiles") if backward else forward_tensors(ROW),
        ("batch", "rows", "seqlen", "dim", "width", "state_len", "sums", "ntiles"),
        (),
        ("BLOCK_D", "BLOCK_T"),
        flags,
        ("ntiles", "cdiv(dim, BLOCK_D)", "rows"),
        (*_place(shape), *_body(shape)),
        gates=True,
    )


def _place(shape: Tile) -> tuple[Stmt, ...]:
    first: Stmt = Scalar("t0", "tile * BLOCK_T")
    whole: tuple[Stmt, ...] = (Scalar("row", "b"), Scalar("start", "0", wide=True))
    if shape.backward:
        whole = ()
        # the gradient of the initial state is that of the inputs before the first token
        early = Scalar("t0", f"tile * BLOCK_T - {shape.width - 1}")
        first = When("STORE_D_INITIAL", (early,), (first,))
    return (
        Scalar("tile", "program_id(0)", wide=True),
        *channel_statements(1),
        Scalar("b", "program_id(2)", wide=True),
        *whole,
        Scalar("length", "seqlen", wide=True),
        first,
        Arange("t", "t", "BLOCK_T"),
    )


def _piece(order: int) -> Piece:
    place = Span("t", "t", "BLOCK_T", after("t0", order), f"in{suffix(order)}")
    return Piece(suffix(order), place, order=order)


def _tokens(order: int, mask: str = "in") -> Span:
    return Span("t", "t", "BLOCK_T", after("t0", order), f"{mask}{suffix(order)}")


def _lowering(shape: Tile) -> Lowering:
    """With the tiles that any value is needed in: those of the inputs reach furthest."""
    reach = shape.width - 1
    orders = range(-reach, reach + 1 if shape.backward else 1)
    d_y = Source("d_y", lambda at: ("b", span(), _tokens(at["t"].order)))
    lowering = Lowering(
        conv_adjoint(shape.width) if shape.backward else conv_graph(shape.width),
        {"t": tuple(_piece(order) for order in orders), "d": (CHANNELS,)},
        {"d_y": d_y, **channel_sources(shape.width, 0, None if shape.backward else "HAS_BIAS")},
        kept=KEPT,
    )
    if shape.backward:
        bias_in_units(lowering)
    for order in orders:
        for stmt in _inputs(order, shape.width):
            lowering.emit(0, stmt)
        at = {"t": _piece(order), "d": CHANNELS}
        lowering.bind("x", at, Value(f"x{suffix(order)}", ("t", "d")), 0)
        lowering.bind("seq", at, Value(f"seq{suffix(order)}", ("t",), "int"), 0)
    return lowering


def _inputs(order: int, width: int) -> tuple[Stmt, ...]:
    """The tile of inputs that begins so many tokens later, and the sequences of its tokens."""
    name, begin = suffix(order), after("t0", order)
    x, seq = Value(f"x{name}", ("t", "d")), Value(f"seq{name}", ("t",), "int")
    history = Value(f"entering{name}", ("t", "d"))
    early = (f"{begin} + t < 0", f"{begin} + t >= -{width - 1}")
    columns = Span("t", "t", "BLOCK_T", after(begin, width - 1), f"early{name}")
    first = sympy.Piecewise((entry(seq.name, "t"), sympy.Ne(entry(f"in{name}", "t"), 0)), (scalar("seq_first"), True))
    return (
        Mask(f"in{name}", "t", "t", "BLOCK_T", (f"{begin} + t >= 0", f"{begin} + t < seqlen")),
        Load(x, "x", ("b", span(), _tokens(order))),
        When(
            "HAS_INITIAL",
            (
                Mask(f"early{name}", "t", "t", "BLOCK_T", early),
                Load(history, "initial_states", ("b", span(), columns)),
                Let(x, entry(history.name, "t", "d") + entry(x.name, "t", "d"), (history, x)),
            ),
        ),
        When(
            "HAS_SEQ_IDX",
            (
                Load(seq, "seq_idx", ("b", _tokens(order))),
                Let(seq, first, (seq, Value("seq_first", (), "int"))),
            ),
        ),
    )


def _body(shape: Tile) -> tuple[Stmt, ...]:
    lowering, width = _lowering(shape), shape.width
    at = {"t": _piece(0), "d": CHANNELS}
    ends: tuple[Stmt, ...] = (
        Load(Value("seq_first", (), "int"), "seq_idx", ("b", "0")),
        Load(Value("seq_last", (), "int"), "seq_idx", ("b", "length - 1")),
    )
    if not shape.backward:
        lowering.store(1, "y", at, "y", ("b", span(), _tokens(0)))
        last: tuple[Stmt, ...] = (final_states(width, "tile == 0", ROW),)
        ends = ends[:1]
    else:
        _gradients(lowering, width)
        last = tuple(store_parts(width, "tile"))
    return (
        When("HAS_SEQ_IDX", ends),
        *merge(tuple(lowering.scopes[0])),
        *merge(tuple(lowering.scopes[1])),
        *last,
    )


def _gradients(lowering: Lowering, width: int) -> None:
    at = {"t": _piece(0), "d": CHANNELS}
    ending = Value("d_state_out_0", ("t", "d"))
    columns = Span("t", "t", "BLOCK_T", f"t0 - length + {width - 1}", "ends")
    inside = (f"t0 + t >= length - {width - 1}", "t0 + t < length")
    loads = (Mask("ends", "t", "t", "BLOCK_T", inside), Load(ending, "d_states", ("b", span(), columns)))
    nothing: Full = zeros(ending.name, "BLOCK_T", "BLOCK_D")
    lowering.emit(1, When("HAS_D_STATES", loads, (nothing,)))
    lowering.bind("d_state_out", at, ending, 1)
    made = lowering.need("d_x", at)
    assert made is not None
    lowering.emit(1, Store("d_x", ("b", span(), _tokens(0)), made[0]))
    columns = Span("t", "t", "BLOCK_T", f"t0 + {width - 1}", "before")
    stores = (
        Mask("before", "t", "t", "BLOCK_T", ("t0 + t < 0",)),
        Store("d_initial_states", ("b", span(), columns), made[0]),
    )
    lowering.emit(1, When("STORE_D_INITIAL", stores))
    for name, variable in summed_names(width).items():
        node = lowering.graph[name]
        assert isinstance(node, SumNode)
        terms = lowering.need(name_of(node.of), at)
        assert terms is not None
        total = Sum(Value(variable, ("d",)), terms[0], "t")
        lowering.emit(1, total, "HAS_BIAS" if variable == "d_bias" else None)
