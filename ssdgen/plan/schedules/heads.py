"""A decode step whose programs go through heads that share B and C.  step_graph -> Kernel

What heads share is loaded and made once.  While a head is computed the state and operands of the next one are on their
way, so that a program's loads, arithmetic and stores overlap, and what every program does besides is done by fewer.
They may be launched early: then the launch itself overlaps with the kernel before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import sympy

from ...spec.dims import entry
from ...spec.layer import Layer
from ..ir import For, Full, Index, Leave, Let, Load, Scalar, Span, Stmt, Store, Value, Wait, When, Widen
from ..lower import Lowering, Pieces, Source, merge
from . import common, decode

GRID = ("batch * (nheads // HEADS) * (HEADDIM // BLOCK_P)", "1", "1")
# where the program's first head, the one that is computed and the next one stand
FIRST, HEAD, NEXT = "first_head", "head", "next_head"


def place(layer: Layer, n_tiles: int) -> tuple[Stmt, ...]:
    """Which rows of which heads and which row of the batch a program has; HEADS divides the heads of a group."""
    plain = decode.place(layer, n_tiles)
    of_the_program: dict[str, Stmt] = {
        "head": Scalar(FIRST, "program_id(0) // p_blocks % (nheads // HEADS) * HEADS", wide=True),
        "b": Scalar("b", "program_id(0) // p_blocks // (nheads // HEADS)", wide=True),
    }
    if common.has_groups(layer):
        of_the_program["group"] = Scalar("group", common.group_expr(layer, FIRST))
    return tuple(of_the_program.get(s.name, s) if isinstance(s, Scalar) else s for s in plain)


def skip_padding() -> tuple[Stmt, ...]:
    """The slot of the row, and the seed.  A row without a slot gets zeros, and its program ends."""
    nothing, p = Value("nothing", ("p",)), Span("p", "p", "BLOCK_P", "p0")
    zeros = (
        Full(nothing, ("BLOCK_P",)),
        For("trip", "HEADS", (Store("y", ("b", "0", f"{FIRST} + trip", p), nothing),)),
        Leave(),
    )
    return (
        # on GPUs whose kernels may be launched while the one before still runs: only from here on is memory read
        When("EARLY", (Wait(),)),
        *decode.slot_of_row(zeros),
        When("RANDOM", (Load(Value("seed", (), "int"), "seed", ("0",)),), (Scalar("seed", "0"),)),
    )


def sources(layer: Layer, given: dict[str, Source]) -> dict[str, Source]:
    """The same with the level of each: what heads share stands in front of the loop.  Without a rate that is unused."""
    used = {name: each for name, each in given.items() if name != "A" or layer.family.uses_a}
    return {name: replace(each, level=0 if _shared(layer, name) else 1) for name, each in used.items()}


def _shared(layer: Layer, name: str) -> bool:
    operand = name.removeprefix("kept_")
    return operand in common.OPERANDS and not layer.layout.per_head(operand)


def load_ahead(lowering: Lowering, tiles: list[Pieces]) -> tuple[Stmt, ...]:
    """Have every trip read what the trip before it has loaded.  Returns what stands in front of the loop.

    The state's own numbers wait as they are stored, tiles in their own dtype.
    """
    loads: list[tuple[Value, Source, Pieces]] = []
    stored = Source("state", lambda at: ("slot", HEAD, decode.on_p(at), common.on(at["n"], "n")), dtype="stored")
    for at in tiles:
        loads.append((Value(lowering.variable("stored", at), ("p", "n"), "stored"), stored, at))
    for name, source in lowering.sources.items():
        if source.level != 1:
            continue
        for at in lowering.combinations(lowering.node_axes(name)):
            axes = tuple(axis for axis in lowering.node_axes(name) if at[axis].span is not None)
            loads.append((Value(lowering.variable(name, at), axes), source, at))
            lowering.bind(name, at, loads[-1][0], 1)
    for value, source, _ in loads:
        lowering.emit(1, Let(value, _symbol(_next(value)), (_next(value),)), source.flag)
    lowering.emit(1, Scalar(NEXT, f"minimum({HEAD} + 1, {FIRST} + HEADS - 1)", wide=True))
    lowering.scopes[1] += _loads(loads, NEXT)
    for at in tiles:
        name = lowering.variable("stored", at)
        state = Value(name, ("p", "n"))
        lowering.emit(1, Widen(state, replace(state, dtype="stored")))
        lowering.bind("stored", at, state, 1)
    return tuple(_loads(loads, FIRST))


def loop(body: Iterable[Stmt]) -> For:
    """The heads of a program.  body: what it does for one of them."""
    return For(
        "trip",
        "HEADS",
        (
            Scalar(HEAD, f"{FIRST} + trip"),
            Scalar("row", f"(slot * nheads + {HEAD}) * HEADDIM + p0"),
            *merge(tuple(body)),
        ),
    )


def _next(value: Value) -> Value:
    # one number is widened at once, a tile when it is computed with
    return Value(f"{value.name}_next", value.axes, "stored" if value.axes else "float32")


def _symbol(value: Value) -> sympy.Expr:
    return entry(value.name, *value.axes) if value.axes else sympy.Symbol(value.name, real=True)


def _loads(loads: list[tuple[Value, Source, Pieces]], head: str) -> list[Stmt]:
    found: list[Stmt] = []
    for value, source, at in loads:
        index: tuple[Index, ...] = tuple(head if part == HEAD else part for part in source.index(at))
        load = Load(_next(value), source.tensor, index)
        found.append(When(source.flag, (load,)) if source.flag else load)
    return found
