"""The convolution of new tokens, one after the other, and the state that they leave.  spec.conv -> Kernel

A program has some channels of one row. The state is the last inputs, in the order of time, or a ring in which input t
stands at t modulo its length.
"""

from __future__ import annotations

import sympy

from ...spec.conv import conv_graph
from ...spec.dims import entry
from ..ir import For, Kernel, Let, Load, Mask, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece
from .conv import CHANNELS, channel_sources, channel_statements, span


def name(width: int) -> str:
    return f"conv_update_{width}w"


def kernel(width: int) -> Kernel:
    """The kernel that computes y of each token and moves the state on, in place."""
    token = ("batch", "dim", "tokens")
    return Kernel(
        name(width),
        "One program convolves the new tokens of a row, one after the other, for a tile of channels. A row whose slot "
        "is none is padding: its result is zero.",
        ("active",),
        (
            Tensor("x", token, "any", "all"),
            Tensor("weight", ("dim", "width"), "any", "all"),
            Tensor("bias", ("dim",), "any", "no", "HAS_BIAS"),
            Tensor("conv_state", ("slots", "dim", "state_len"), "any", "all", out=True),
            Tensor("cache_seqlens", ("batch",), "index", "no", "HAS_RING"),
            Tensor("conv_state_indices", ("batch",), "index", "no", "HAS_INDICES"),
            Tensor("y", token, "any", "all", out=True),
        ),
        ("batch", "slots", "dim", "tokens", "width", "state_len"),
        (),
        ("BLOCK_D",),
        ("HAS_BIAS", "SILU", "HAS_RING", "HAS_INDICES"),
        ("cdiv(dim, BLOCK_D)", "batch"),
        (*_place(), *_tokens(width), When("not HAS_RING", _moved_up())),
        given=tuple(f"tap_{back}" for back in range(1, width)),
        gates=True,
    )


def _place() -> tuple[Stmt, ...]:
    cached = Value("cached", (), "int")
    return (
        *channel_statements(0),
        Scalar("b", "program_id(1)", wide=True),
        When(
            "HAS_INDICES",
            (Load(Value("slot", (), "int"), "conv_state_indices", ("b",)),),
            (Scalar("slot", "b"),),
        ),
        Mask("there", "d", "d", "dim - d0", ("slot >= 0", "slot < slots")),
        When(
            "HAS_RING",
            (
                Load(cached, "cache_seqlens", ("b",)),
                # not negative, whatever is given
                Scalar("newest", "(cached % state_len + state_len) % state_len + state_len"),
            ),
        ),
    )


def _state(position: str, mask: str = "there") -> tuple[str | Span, ...]:
    return "slot", span(mask), position


def _tokens(width: int) -> tuple[Stmt, ...]:
    here = {"t": Piece("", scalar="t"), "d": CHANNELS}
    lowering = Lowering(conv_graph(width), {axis: (piece,) for axis, piece in here.items()}, channel_sources(width, 0))
    before: list[Stmt] = []
    for back in range(width - 1, 0, -1):
        x, place = Value(f"x_m{back}", ("d",)), Value(f"at_m{back}", ())
        ring = Scalar(place.name, f"(newest - {back}) % state_len")
        before.append(When("HAS_RING", (ring,), (Scalar(place.name, f"state_len - {back}"),)))
        before.append(Load(x, "conv_state", _state(place.name)))
        # a row is one sequence: what a tap sees is the input itself
        lowering.bind(f"tap_{back}", here, x, 1)
    x = Value("x", ("d",))
    lowering.emit(1, Load(x, "x", ("b", span(), "t")))
    lowering.bind("x", here, x, 1)
    made = lowering.need("active", here)
    assert made is not None
    y = made[0]
    kept = sympy.Piecewise((entry(y.name, "d"), sympy.Ne(entry("there", "d"), 0)), (0, True))
    lowering.emit(1, Let(y, kept, (y,)))
    lowering.emit(1, Store("y", ("b", span(), "t"), y))
    lowering.emit(1, Store("conv_state", _state("(newest + t) % state_len"), x), "HAS_RING")
    for back in range(width - 1, 0, -1):
        last = Value(f"x_m{back - 1}" if back > 1 else "x", ("d",))
        lowering.emit(1, Let(Value(f"x_m{back}", ("d",)), entry(last.name, "d"), (last,)))
    return (
        *merge(tuple(lowering.scopes[0])),
        *merge(tuple(before)),
        For("t", "tokens", merge(tuple(lowering.scopes[1]))),
    )


def _moved_up() -> tuple[Stmt, ...]:
    """Each place gets what stands as many places after it as there are tokens, and the last ones the tokens."""
    old, new = Value("old", ("d",)), Value("new", ("d",))
    body = (
        Mask("stays", "d", "d", "dim - d0", ("slot >= 0", "slot < slots", "place + tokens < state_len")),
        Load(old, "conv_state", _state("place + tokens", "stays")),
        Mask("enters", "d", "d", "dim - d0", ("slot >= 0", "slot < slots", "place + tokens >= state_len")),
        Load(new, "x", ("b", span("enters"), "place + tokens - state_len")),
        Let(new, entry("new", "d") + entry("old", "d"), (new, old)),
        Store("conv_state", _state("place"), new),
    )
    return (For("place", "state_len", body),)
