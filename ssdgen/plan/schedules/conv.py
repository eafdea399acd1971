"""What the kernels of the convolution share: tensors, names, and the inputs before a token.  -> conv_walk, conv_tile

A program has a tile of channels.  Positions are those in a sequence; before the first one stands the initial state.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy

from ...spec.conv import conv_adjoint, conv_graph
from ...spec.dims import entry
from ..ir import Arange, Full, Index, Let, Load, Mask, Scalar, Span, Stmt, Tensor, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece, Pieces, Source

CHANNELS = Piece("", Span("d", "d", "BLOCK_D", "d0", "d_in"))
# values that are kept as they are without their option, because that is read too
KEPT = frozenset(("tap_1", "tap_2", "tap_3", "state_out"))


STATES = ("rows", "dim", "state_len")


def forward_tensors(row: tuple[str, ...]) -> tuple[Tensor, ...]:
    """row: dimensions of x, the one that is contiguous last."""
    return (
        Tensor("x", row, "any", "unit"),
        *shared_tensors(),
        Tensor("initial_states", STATES, "any", "all", "HAS_INITIAL"),
        Tensor("y", row, "any", "unit", out=True),
        Tensor("final_states", STATES, "any", "no", "STORE_FINAL", out=True),
    )


def backward_tensors(row: tuple[str, ...], parts: str) -> tuple[Tensor, ...]:
    """parts: how many programs share a row, each of which leaves what it adds to the gradients of a channel."""
    return (
        Tensor("x", row, "any", "unit"),
        *shared_tensors(),
        Tensor("initial_states", STATES, "any", "all", "HAS_INITIAL"),
        Tensor("d_y", row, "any", "unit"),
        Tensor("d_states", STATES, "any", "all", "HAS_D_STATES"),
        Tensor("d_x", row, "any", "unit", out=True),
        Tensor("d_initial_states", STATES, "any", "no", "STORE_D_INITIAL", out=True),
        Tensor("parts", ("rows", parts, "sums", "dim"), "float32", "no", out=True),
    )


def shared_tensors() -> tuple[Tensor, ...]:
    return (
        Tensor("weight", ("dim", "width"), "any", "all"),
        Tensor("bias", ("dim",), "any", "no", "HAS_BIAS"),
        Tensor("seq_idx", ("batch", "seqlen"), "int", "no", "HAS_SEQ_IDX"),
    )


def channel_statements(program: int) -> tuple[Stmt, ...]:
    return (
        Scalar("d0", f"program_id({program}) * BLOCK_D"),
        Arange("d", "d", "BLOCK_D"),
        Mask("d_in", "d", "d", "dim - d0"),
    )


def channel_sources(width: int, level: int, flag: str | None = "HAS_BIAS") -> dict[str, Source]:
    """What a channel is multiplied with; the last column of the weight is that of the token itself.

    flag: of the load of the bias; None where what asks for it stands under that flag already.
    """

    def column(back: int) -> Callable[[Pieces], tuple[str | Span, ...]]:
        return lambda at: (span(), str(width - 1 - back))

    weights = {f"weight_{back}": Source("weight", column(back), level) for back in range(width)}
    return {**weights, "bias": Source("bias", lambda at: (span(),), level, flag=flag)}


def bias_in_units(lowering: Lowering) -> None:
    """Make it where there is a bias; without one nothing reads it."""
    at: dict[str, Piece] = {"d": CHANNELS}
    with lowering.under("HAS_BIAS"):
        made = lowering.need("units_bias", at)
    assert made is not None
    lowering.bind("units_bias", at, *made)


def span(mask: str = "d_in") -> Span:
    return Span("d", "d", "BLOCK_D", "d0", mask)


def suffix(order: int) -> str:
    """Of the token so many positions after the first one of a group, or before it."""
    return f"_{order}" if order >= 0 else f"_m{-order}"


def after(position: str, order: int) -> str:
    """The position so many tokens after another."""
    return position if order == 0 else f"{position} {'+' if order > 0 else '-'} {abs(order)}"


def token(position: str, mask: str, row: tuple[str, ...]) -> tuple[Index, ...]:
    """Where one token of the program's row and channels stands in a tensor of the dimensions `row`."""
    at: dict[str, Index] = {"batch": "row", "seqlen": f"start + {position}", "dim": span(mask)}
    return tuple(at[dim] for dim in row)


def before(at: str, width: int, row: tuple[str, ...], name: str = "m", limit: str | None = None) -> list[Stmt]:
    """The width - 1 inputs before the position `at`, and their sequences: x_m1, seq_m1, and so on back.

    limit: where the sequence ends, if `at` may be past that.
    """
    found: list[Stmt] = []
    for back in range(width - 1, 0, -1):
        x, seq = Value(f"x_{name}{back}", ("d",)), Value(f"seq_{name}{back}", (), "int")
        there, early = f"in_{name}{back}", f"before_{name}{back}"
        inside = (f"{at} >= {back}", *([f"{at} - {back} < {limit}"] if limit else []))
        place = f"maximum({at} - {back}, 0)"
        found += [
            Mask(there, "d", "d", "dim - d0", inside),
            Load(x, "x", token(f"{at} - {back}", there, row)),
            When("HAS_INITIAL", _initial(x, early, at, back, width)),
            When("HAS_SEQ_IDX", (Load(seq, "seq_idx", ("row", f"minimum({place}, {limit or place} - 1)")),))
            if limit
            else When("HAS_SEQ_IDX", (Load(seq, "seq_idx", ("row", place)),)),
        ]
    return found


def _initial(x: Value, mask: str, at: str, back: int, width: int) -> tuple[Stmt, ...]:
    """Of what comes before the first token, the initial state, where the row has nothing to read."""
    column = after(at, width - 1 - back)
    history = Value(f"entering_{x.name[2:]}", ("d",))
    return (
        Mask(mask, "d", "d", "dim - d0", (f"{at} < {back}",)),
        Load(history, "initial_states", ("b", span(mask), column)),
        Let(x, entry(x.name, "d") + entry(history.name, "d"), (x, history)),
    )


def final_states(width: int, condition: str, row: tuple[str, ...]) -> When:
    """What stays of a sequence: its last width - 1 inputs, written by the program for which the condition holds."""
    pieces = tuple(Piece(f"_e{back}", scalar=f"length - {back}", order=-back) for back in range(width - 1, 0, -1))
    lowering = Lowering(
        conv_graph(width),
        {"t": pieces, "d": (CHANNELS,)},
        {"seq_last": Source("seq_idx", lambda at: ("row", "length - 1"), dtype="int", flag="HAS_SEQ_IDX")},
        kept=KEPT,
    )
    lowering.scopes[1] += before("length", width, row, "e")
    for piece in pieces:
        at = {"t": piece, "d": CHANNELS}
        lowering.bind("x", at, Value(f"x{piece.suffix}", ("d",)), 1)
        lowering.bind("seq", at, Value(f"seq{piece.suffix}", (), "int"), 1)
        lowering.store(1, "state_out", at, "final_states", ("b", span(), str(width - 1 + piece.order)))
    return When("STORE_FINAL", (When(condition, tuple(lowering.scopes[1])),))


def zeros(name: str, *sizes: str) -> Full:
    axes = {"BLOCK_T": "t", "BLOCK_D": "d"}
    return Full(Value(name, tuple(axes[size] for size in sizes)), sizes)


def gradient_names(width: int) -> tuple[str, ...]:
    return (*(f"d_weight_{back}" for back in range(width)), "d_bias")


def summed_names(width: int) -> dict[str, str]:
    """{sum over a program's tokens in units: the variable of it, a gradient's, which it becomes in the end}."""
    return {f"d_units_{name.removeprefix('d_')}": name for name in gradient_names(width)}


def store_parts(width: int, part: str) -> list[Stmt]:
    """What a program adds to the gradients of its channels: those of the weight by column, then that of the bias."""
    at: dict[str, Piece] = {"d": CHANNELS}
    lowering = Lowering(conv_adjoint(width), {"d": (CHANNELS,)}, {})
    for name, variable in summed_names(width).items():
        # without a bias nobody asks for its gradient
        lowering.bind("d_units_bias_or_none" if variable == "d_bias" else name, at, Value(variable, ("d",)), 1)
    for back in range(width):
        column = ("b", part, str(width - 1 - back), span())
        lowering.store(1, f"d_weight_{back}", at, "parts", column)
    with lowering.under("HAS_BIAS"):
        lowering.store(1, "d_bias", at, "parts", ("b", part, str(width), span()))
    return list(merge(tuple(lowering.scopes[1])))


def scalar(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)
