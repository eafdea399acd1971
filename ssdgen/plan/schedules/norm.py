"""The gated norms: a program normalises rows, whole, in registers.  spec.norm -> Kernel

A row is a group of channels of a token, in one tile or, where that pads less, in two.  In the backward pass a program
goes through many rows, of which it loads the next ones before it computes, and sums up the gradients of the weight.
Its tiles are of one size: what threads have of them lies alike, so they are added up before threads exchange anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...spec.dims import entry, name_of
from ...spec.graph import Map, Sum
from ...spec.norm import Norm, norm_adjoint, norm_graph
from ..ir import Arange, For, Full, Index, Kernel, Let, Load, Mask, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..ir import Sum as SumStmt
from ..lower import Lowering, merge
from ..pieces import Piece, Source
from ..tiles import EQUAL

SUMMED = ("d_weight", "d_bias")
# tiles of a row that ship: forwards the second one may be smaller, backwards all have one size
FORWARD_TILES, BACKWARD_TILES = (1, 2), EQUAL


@dataclass(frozen=True)
class Rows:
    """tiles: of the channels of a row: one or two, or backward any number of one size."""

    norm: Norm
    backward: bool = False
    tiles: int = 1

    @property
    def name(self) -> str:
        words = ["rms" if self.norm.rms else "layer", "norm", *(["gate_first"] if self.norm.gate_first else [])]
        return "_".join(
            [*words, *(["backward"] if self.backward else []), *([f"{self.tiles}d"] if self.tiles > 1 else [])]
        )

    @property
    def equal(self) -> bool:
        return self.backward or self.tiles == 1


def kernel(shape: Rows) -> Kernel:
    """The kernel that computes y or, backward, the gradients."""
    about = "One program normalises some rows: groups of channels."
    if shape.backward:
        about = (
            "One program makes the gradients of every so many rows, groups of channels. What it adds to the gradients "
            "of weight and bias it leaves in parts."
        )
    row = ("rows", "dim")
    inputs = (
        Tensor("x", row, "any", "unit"),
        Tensor("z", row, "any", "unit", "HAS_Z"),
        Tensor("weight", ("dim",), "any", "no"),
        Tensor("bias", ("dim",), "any", "no", "HAS_BIAS"),
    )
    outputs = (
        (
            Tensor("d_y", row, "any", "unit"),
            Tensor("d_x", row, "any", "unit", out=True),
            Tensor("d_z", row, "any", "unit", "HAS_Z", out=True),
            Tensor("parts", ("nprograms", "2", "dim"), "float32", "no", out=True),
        )
        if shape.backward
        else (Tensor("y", row, "any", "unit", out=True),)
    )
    blocks = ("BLOCK_D",) if shape.equal else ("BLOCK_D_0", "BLOCK_D_1")
    return Kernel(
        shape.name,
        about,
        ("d_x", "d_z", *SUMMED) if shape.backward else ("y",),
        (*inputs, *outputs),
        ("rows", "dim", "group_size", "ngroups", *(["nprograms"] if shape.backward else [])),
        ("size", "eps"),
        ("BLOCK_T", *blocks),
        ("HAS_Z", "HAS_BIAS"),
        ("nprograms" if shape.backward else "cdiv(rows, BLOCK_T)", "ngroups"),
        (*_place(shape), *(_backward(shape) if shape.backward else _forward(shape))),
        gates=True,
    )


def _place(shape: Rows) -> tuple[Stmt, ...]:
    channels: list[Stmt] = []
    for k, piece in enumerate(_channels(shape)):
        assert piece.span is not None and piece.span.mask is not None
        before = "" if k == 0 else f" - {_channels_before(shape, k)}"
        if k == 0 or not shape.equal:
            channels.append(Arange(piece.span.offsets, "d", piece.span.size))
        channels.append(Mask(piece.span.mask, "d", piece.span.offsets, f"group_size{before}"))
    return (
        Scalar("group", "program_id(1)"),
        Scalar("c0", "group * group_size"),
        *channels,
        Arange("t", "t", "BLOCK_T"),
    )


def _channels(shape: Rows) -> tuple[Piece, ...]:
    if shape.tiles == 1:
        return (Piece("", Span("d", "d", "BLOCK_D", "c0", "d_in")),)
    found: list[Piece] = []
    for k in range(shape.tiles):
        offsets, size = ("d", "BLOCK_D") if shape.equal else (f"d_{k}", f"BLOCK_D_{k}")
        origin = "c0" if k == 0 else f"c0 + {_channels_before(shape, k)}"
        found.append(Piece(f"_{k}", Span("d", offsets, size, origin, f"d_in_{k}"), order=k))
    return tuple(found)


def _channels_before(shape: Rows, k: int) -> str:
    """Channels of a row before its k-th tile, of two unequal ones or of equal ones."""
    if not shape.equal:
        return "BLOCK_D_0"
    return "BLOCK_D" if k == 1 else f"{k} * BLOCK_D"


def _rows(origin: str = "t0", mask: str = "t_in") -> Span:
    return Span("t", "t", "BLOCK_T", origin, mask)


def _on(piece: Piece) -> Span:
    assert piece.span is not None
    return piece.span


def _lowering(shape: Rows, level: int) -> Lowering:
    """level: where what all rows share is loaded."""
    graph = norm_adjoint(shape.norm) if shape.backward else norm_graph(shape.norm)

    def row(at: dict[str, Piece]) -> tuple[Index, ...]:
        return _rows(), _on(at["d"])

    def channel(at: dict[str, Piece]) -> tuple[Index, ...]:
        return (_on(at["d"]),)

    pure = (n for n in graph.nodes if isinstance(n, Map) and n.option is None and isinstance(n.formula, sympy.Indexed))
    rows = Piece("", _rows())
    return Lowering(
        graph,
        {"t": (rows,), "d": _channels(shape)},
        {
            "x": Source("x", row),
            "z": Source("z", row, flag="HAS_Z"),
            "weight": Source("weight", channel, level),
            "bias": Source("bias", channel, level, flag="HAS_BIAS"),
        },
        # what is past the end of a row would count in its sums, what is past the last row in those over rows
        zero_past_end=frozenset(("centred", "scale")),
        kept=frozenset(("gated", "d_biased", "d_x")),
        spread=frozenset(node.name for node in pure),
        add_first=shape.equal,
    )


def _forward(shape: Rows) -> tuple[Stmt, ...]:
    lowering = _lowering(shape, 1)
    lowering.emit(0, Scalar("t0", "program_id(0) * BLOCK_T", wide=True))
    lowering.emit(0, Mask("t_in", "t", "t", "rows - t0"))
    for name in ("x", "z"):
        for at in lowering.combinations(("t", "d")):
            lowering.need(name, at)
    for at in lowering.combinations(("t", "d")):
        lowering.store(1, "y", at, "y", (_rows(), _on(at["d"])))
    return (*lowering.scopes[0], *merge(tuple(lowering.scopes[1])))


def _backward(shape: Rows) -> tuple[Stmt, ...]:
    lowering = _lowering(shape, 0)
    every = lowering.combinations(("t", "d"))
    loaded = ("x", "d_y", "z")
    for name in loaded:
        for at in every:
            # the rows that were loaded while the ones before were computed: they waited in their own dtype
            ahead, value = _ahead(name, at), Value(f"{name}{at['d'].suffix}", ("t", "d"))
            kept = Let(value, entry(ahead.name, "t", "d"), (ahead,))
            lowering.emit(1, kept, "HAS_Z" if name == "z" else None)
            lowering.bind(name, at, value, 1)
    lowering.scopes[1] += [Scalar("later", "t0 + nprograms * BLOCK_T"), *_load_ahead(loaded, every, "later")]
    for name, flag in (("d_x", None), ("d_z", "HAS_Z")):
        for at in every:
            if flag is None:
                lowering.store(1, name, at, name, (_rows(), _on(at["d"])))
                continue
            with lowering.under(flag):
                lowering.store(1, name, at, name, (_rows(), _on(at["d"])))
    sums: list[Stmt] = []
    ends: list[Stmt] = []
    for number, name in enumerate(SUMMED):
        for at in every:
            start, add, end = _summed(lowering, name, number, at)
            flag = "HAS_BIAS" if name == "d_bias" else None
            sums.append(When(flag, (start,)) if flag else start)
            lowering.emit(1, add, flag)
            ends += [When(flag, end)] if flag else end
    return (
        Scalar("program", "program_id(0)", wide=True),
        Scalar("first", "program * BLOCK_T"),
        *merge(tuple(lowering.scopes[0])),
        *merge(tuple(sums)),
        *merge(tuple(_load_ahead(loaded, every, "first"))),
        Scalar("trips", "cdiv(maximum(rows - first, 0), nprograms * BLOCK_T)", narrow=True),
        For(
            "trip",
            "trips",
            (
                Scalar("t0", "first + trip * nprograms * BLOCK_T"),
                Mask("t_in", "t", "t", "rows - t0"),
                *merge(tuple(lowering.scopes[1])),
            ),
        ),
        *merge(tuple(ends)),
    )


def _ahead(name: str, at: dict[str, Piece]) -> Value:
    return Value(f"{name}_next{at['d'].suffix}", ("t", "d"), "stored")


def _load_ahead(names: tuple[str, ...], every: list[dict[str, Piece]], origin: str) -> list[Stmt]:
    found: list[Stmt] = [Mask("ahead", "t", "t", f"rows - {origin}")]
    for name in names:
        for at in every:
            load = Load(_ahead(name, at), name, (_rows(origin, "ahead"), _on(at["d"])))
            found.append(When("HAS_Z", (load,)) if name == "z" else load)
    return found


def _summed(lowering: Lowering, name: str, number: int, at: dict[str, Piece]) -> tuple[Stmt, Stmt, tuple[Stmt, ...]]:
    """A gradient that is a sum over rows: what it starts from, what a trip adds, and what the program leaves."""
    node = lowering.graph[name]
    assert isinstance(node, Sum)
    made = lowering.need(name_of(node.of), at)
    assert made is not None
    total, suffix = Value(f"{name}_rows{at['d'].suffix}", ("t", "d")), at["d"].suffix
    added: sympy.Expr = entry(total.name, "t", "d") + entry(made[0].name, "t", "d")
    whole = Value(f"{name}{suffix}", ("d",))
    return (
        Full(total, ("BLOCK_T", _on(at["d"]).size)),
        Let(total, added, (total, made[0])),
        (SumStmt(whole, total, "t"), Store("parts", ("program", str(number), _on(at["d"])), whole)),
    )
