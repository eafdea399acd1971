"""Decode kernels for one token whose programs have tiles of headdim, all on their way at once.  step_graph -> Kernel

What a multiprocessor can have on its way is what its registers hold.  Numbers of the state take least room as they are
stored, so a program loads all its tiles, and widens and computes one at a time.  B, C and the step size are then loaded
and made once for all of them.  Where a program stands follows from the grid, without a division.

With a replay a kernel of a few programs, `replay_scores`, multiplies C by the kept B of each row of the batch once, and
counts what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...spec.graph import Graph
from ...spec.layer import Layer
from ...spec.step import step_graph
from ..ir import (
    Arange,
    Begun,
    For,
    Full,
    Index,
    Kernel,
    Leave,
    Load,
    Mask,
    Narrow,
    Release,
    Scalar,
    Span,
    Stmt,
    Store,
    Tensor,
    Value,
    Wait,
    When,
    Widen,
)
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import common, decode
from .replay import kept_sources, kept_tensors

TILES = (1, 2, 4)
# (tiles, those of them that are on their way at once)
AHEAD = ((4, 2), (8, 4))
MASK = "k_in"
# a kept token's dimension, in whole blocks
_SCRATCH = (
    Tensor("held", ("batch",), "int"),
    Tensor("CB", ("batch", "ngroups"), "float32"),
    Tensor("kept_CB", ("batch", "ngroups", "BLOCK_K"), "float32"),
)
# read for the decays of a head and the scores of its tokens
_OF_HEAD = ("A", "dt", "dt_bias", "D_head", "CB", "kept_CB", "kept_dt")


@dataclass(frozen=True)
class Tiles:
    """A shape of the step.

    p_tiles: tiles of headdim of a program; replay: y from kept inputs too; units: the state is counted in the scale of
    its row until it is stored, of scaled states; ahead: tiles that are on their way at once, all of them where it is 0,
    so that the others are loaded while those before them are computed.
    """

    p_tiles: int = 1
    replay: bool = False
    units: bool = False
    ahead: int = 0

    @property
    def name(self) -> str:
        tiles = "1tile" if self.p_tiles == 1 else f"{self.p_tiles}tiles"
        words = f"_{self.ahead}ahead" * bool(self.ahead) + "_units" * self.units
        return f"{'replay' if self.replay else 'state'}_step_{tiles}{words}"


def shapes() -> tuple[Tiles, ...]:
    """Those that are emitted.  In units are states of 8 bits, which are bound by arithmetic."""
    cuts = (*((p, 0) for p in TILES), *AHEAD)
    plain = (Tiles(p, replay, ahead=ahead) for replay in (False, True) for p, ahead in cuts)
    return (*plain, *(Tiles(p, units=True, ahead=ahead) for p, ahead in cuts))


def applies(layer: Layer) -> bool:
    """Whether there are such kernels: x is of a head, B and C of a group."""
    return layer.layout.per_head("x") and not layer.layout.per_head("B") and not layer.layout.per_head("C")


def graph(layer: Layer, replay: bool, units: bool = False) -> Graph:
    """The graph that these kernels are lowered from."""
    return step_graph(layer, replay=replay, merged=True, units=units)


def kernel(layer: Layer, shape: Tiles) -> Kernel:
    """y of one token, and the state after it; with a replay either its inputs are kept or the state is written."""
    if not applies(layer):
        raise ValueError("tiles of a program share B and C; take the other kernels for this layout")
    columns = Piece("", Span("j", "k", "BLOCK_K", "0", MASK), position="k")
    sources = {name: decode.of_the_only_token(each) for name, each in decode.sources(layer, True, level=0).items()}
    del sources["scale"]
    sources["D_head"] = Source("D_head", lambda at: ("head",), level=0, flag="D_BY_HEAD")
    if not layer.family.uses_a:
        del sources["A"]
    if shape.replay:
        sources |= kept_sources(layer) | _scores_sources()
    # one tile is computed after the other: both levels are one list
    body: list[Stmt] = []
    lowering = Lowering(
        graph(layer, shape.replay, shape.units),
        {**_pieces(shape.p_tiles), "j": (columns,)},
        sources,
        rename={**decode.RENAME, "in_units": "state"},
        zero_past_end=frozenset(("kept_log_decay",)),
        two_terms=frozenset(("x_kept",)),
        spread=frozenset(("kept_state",)),
        constant_level=0,
        scopes=[body, body],
    )
    tiles = [{**at, "j": columns} for at in lowering.combinations(("h", "p", "n"))]
    # what is made of each tile
    made: list[list[Stmt]] = []
    for at in tiles:
        _load(lowering, at)
        _widen(lowering, at)
        if not shape.replay:
            lowering.need("in_units" if shape.units else "state_out", at)
        lowering.store(0, "y", at, "y", ("b", "0", "head", decode.on_p(at)))
        if not shape.replay:
            lowering.emit(0, When("STORE_STATE", _leave(lowering, at, shape.units)))
        made.append(body.copy())
        body.clear()
    first = shape.ahead or len(tiles)
    whole = _loads_before([stmt for part in made[:first] for stmt in _loads(part)], shape.replay)
    for k, part in enumerate(made):
        whole = (*whole, *merge(tuple(stmt for stmt in common.loads_first(part) if not _is_load(stmt))))
        later = made[k + first] if k + first < len(made) else []
        whole = (*whole, *((*_loads(later), Begun()) if later else ()))
    if shape.replay:
        whole = (*whole, When("held >= KEPT", _write(lowering, tiles), _keep(lowering, tiles)))
    about = "makes tiles of y from the state and the kept inputs, and writes the state when no more can be kept"
    step = "advances tiles of rows of a head's state by one token"
    rows = "BLOCK_P" if shape.p_tiles == 1 else f"({shape.p_tiles} * BLOCK_P)"
    place = (
        Scalar("p_blocks", f"HEADDIM // {rows}"),
        Scalar("p0", f"program_id(0) % p_blocks * {rows}", wide=True),
        Scalar("group", "program_id(1)", wide=True),
        Scalar("head", "group * group_heads + program_id(0) // p_blocks", wide=True),
        Scalar("b", "program_id(2)", wide=True),
        Arange("p", "p", "BLOCK_P"),
        Arange("n", "n", "BLOCK_N"),
        *((Arange("k", "j", "BLOCK_K"),) if shape.replay else ()),
    )
    return Kernel(
        shape.name,
        f"One program {about if shape.replay else step}.",
        ("y", "state_scaled"),
        (
            *decode.state_tensors(),
            *decode.operand_tensors(layer),
            Tensor("D_head", ("nheads",), "any", strided="all", flag="D_BY_HEAD"),
            *(_kept(layer) if shape.replay else ()),
            Tensor("y", ("batch", "tokens", "nheads", "HEADDIM"), "operand", strided="unit", out=True),
        ),
        (*decode.SIZES, "group_heads"),
        decode.REALS,
        (
            *("HEADDIM", "DSTATE", *(["KEPT"] if shape.replay else []), "FORMAT", "BLOCK_P", "BLOCK_N"),
            *(["BLOCK_K"] if shape.replay else []),
        ),
        (*decode.OPTIONS, "D_BY_HEAD", *([] if shape.replay else ["STORE_STATE"]), "EARLY"),
        (f"group_heads * (HEADDIM // {rows})", "ngroups", "batch"),
        (*place, *_skip_padding(tiles, shape.replay), *whole),
        given=("stored", "CB", "kept_CB") if shape.replay else ("stored",),
    )


def scores(layer: Layer) -> Kernel:
    """C B^T of the new token and the kept ones of every group, and how many are kept afterwards.

    held: how many inputs are kept before the step.
    """
    if not applies(layer):
        raise ValueError("scores are those of a group where it shares B and C")
    of_all = Piece("", Span("j", "k", "BLOCK_K", "0", MASK), position="k")
    there = Span("j", "k", "BLOCK_K", "0", "k_there")
    kept = Source("kept_B", lambda at: ("slot", "group", there, common.on(at["n"], "n")), level=0, dtype="operand")
    body: list[Stmt] = []
    named = {name: decode.of_the_only_token(decode.sources(layer, True, level=0)[name]) for name in ("B", "C")}
    lowering = Lowering(
        graph(layer, replay=True),
        {**_pieces(1), "j": (of_all,)},
        {**named, "kept_B": kept},
        # what is not kept is loaded all the same: the count is then not waited for
        zero_past_end=frozenset(("kept_CB_terms",)),
        constant_level=0,
        scopes=[body, body],
    )
    at = {**lowering.combinations(("h", "p", "n"))[0], "j": of_all}
    lowering.store(0, "kept_CB", at, "kept_CB", ("b", "group", replace(there, mask=None)))
    lowering.store(0, "CB", at, "CB", ("b", "group"))
    value = lowering.need("B", at)
    assert value is not None
    shared = Store("new_B", ("slot", "group", "count", common.on(at["n"], "n")), value[0])
    dims = {tensor.name: tensor for tensor in (*decode.operand_tensors(layer), *kept_tensors(layer))}
    return Kernel(
        "replay_scores",
        "One program multiplies C of one row of the batch by B of every token that is kept and of the new one, and "
        "counts what is kept.",
        ("CB", "kept_CB"),
        (
            Tensor("state_batch_indices", ("batch",), "index", flag="HAS_SLOTS"),
            dims["B"],
            dims["C"],
            replace(dims["count"], out=True),
            dims["kept_B"],
            dims["new_B"],
            *(replace(tensor, out=True) for tensor in _SCRATCH),
        ),
        ("batch", "tokens", "nslots", "ngroups", "pad_slot_id"),
        (),
        ("DSTATE", "KEPT", "BLOCK_N", "BLOCK_K"),
        ("HAS_SLOTS", "EARLY"),
        ("batch", "1", "1"),
        (
            When("EARLY", (Release(),)),
            Scalar("b", "program_id(0)", wide=True),
            Arange("n", "n", "BLOCK_N"),
            Arange("k", "j", "BLOCK_K"),
            Mask("k_there", "j", "k", "KEPT"),
            *decode.slot_of_row((Leave(),)),
            Load(Value("count", (), "int"), "count", ("slot",)),
            Mask(MASK, "j", "k", "count"),
            Scalar("kept", "(count + 1) % (KEPT + 1)"),
            For("group", "ngroups", (*common.loads_first(body), When("count < KEPT", (shared,)))),
            Store("held", ("b",), Value("count", (), "int")),
            Store("count", ("slot",), Value("kept", (), "int")),
        ),
    )


def _kept(layer: Layer) -> tuple[Tensor, ...]:
    """What `scores` leaves, and what is kept but for the count and the new B, which are written there."""
    return (*_SCRATCH, *(tensor for tensor in kept_tensors(layer) if tensor.name not in ("count", "new_B")))


def _pieces(p_tiles: int) -> dict[str, tuple[Piece, ...]]:
    """A head, some tiles of headdim, and all of dstate."""
    if p_tiles == 1:
        return decode.pieces(1)
    rows = tuple(Piece(f"_{k}", Span("p", "p", "BLOCK_P", _origin(k)), order=k) for k in range(p_tiles))
    return {**decode.pieces(1), "p": rows}


def _origin(k: int) -> str:
    return "p0" if k == 0 else f"p0 + {k} * BLOCK_P" if k > 1 else "p0 + BLOCK_P"


def _scores_sources() -> dict[str, Source]:
    return {
        "CB": Source("CB", lambda at: ("b", "group"), level=0),
        "kept_CB": Source(
            "kept_CB", lambda at: ("b", "group", replace(_span(common.on(at["j"], "j")), mask=None)), level=0
        ),
    }


def _span(index: Index) -> Span:
    assert isinstance(index, Span)
    return index


def _load(lowering: Lowering, at: Pieces) -> None:
    """The numbers of a tile as they are stored, and their scales, which are 1 where there are none."""
    stored = Value(lowering.variable("stored", at), ("p", "n"), "stored")
    lowering.emit(0, _load_of(stored, at))
    scale = Value(lowering.variable("scale", at), ("p",))
    load = Load(scale, "state_scale", ("slot", "head", decode.on_p(at)))
    lowering.emit(0, When("HAS_SCALE", (load,), (Full(scale, ("BLOCK_P",), 1.0),)))
    lowering.bind("scale", at, scale, 0)


def _load_of(stored: Value, at: Pieces) -> Load:
    return Load(stored, "state", ("slot", "head", decode.on_p(at), common.on(at["n"], "n")))


def _widen(lowering: Lowering, at: Pieces) -> None:
    state = Value(lowering.variable("stored", at), ("p", "n"))
    lowering.emit(0, Widen(state, replace(state, dtype="stored")))
    lowering.bind("stored", at, state, 0)


def _loads_before(loads: list[Stmt], replay: bool) -> tuple[Stmt, ...]:
    """The state's loads and those of rows, then those that numbers of a head are made of.

    A compiler would wait for the step size before it asks for what is needed after it.
    """
    of_head = [stmt for stmt in loads if _loaded(stmt) in _OF_HEAD]
    late = [stmt for stmt in loads if _loaded(stmt) == "kept_x"]
    of_state = [stmt for name in ("state", "state_scale") for stmt in loads if _loaded(stmt) == name]
    rows = [stmt for stmt in loads if stmt not in (*of_head, *late, *of_state)]
    if replay:
        # what the kernel before this one makes, and what depends on it
        held = Load(Value("held", (), "int"), "held", ("b",))
        late = [When("EARLY", (Wait(),)), held, Mask(MASK, "j", "k", "held"), *late, Begun()]
    return (*merge(tuple(of_state)), *merge(tuple(rows)), Begun(), *late, *of_head)


def _loads(body: list[Stmt]) -> list[Stmt]:
    return [stmt for stmt in body if _is_load(stmt)]


def _loaded(stmt: Stmt) -> str:
    """The tensor of a load."""
    load = stmt.body[0] if isinstance(stmt, When) else stmt
    assert isinstance(load, Load)
    return load.tensor


def _is_load(stmt: Stmt) -> bool:
    return isinstance(stmt, Load) or (isinstance(stmt, When) and all(isinstance(inner, Load) for inner in stmt.body))


def _skip_padding(tiles: list[Pieces], replay: bool) -> tuple[Stmt, ...]:
    """As `decode.skip_padding`, for all tiles of a program.

    A kernel that may start before the one in front has ended reads nothing until then; where inputs are kept that is
    `scores`, which starts after all others.
    """
    nothing = Value("nothing", ("p",))
    zeros = (
        Full(nothing, ("BLOCK_P",)),
        *(Store("y", ("b", "0", "head", decode.on_p(at)), nothing) for at in tiles),
        Leave(),
    )
    return (
        *(() if replay else (When("EARLY", (Wait(),)),)),
        *decode.slot_of_row(zeros),
        When("RANDOM", (Load(Value("seed", (), "int"), "seed", ("0",)),), (Scalar("seed", "0"),)),
        Scalar("row", "(slot * nheads + head) * HEADDIM"),
    )


def _leave(lowering: Lowering, at: Pieces, units: bool = False) -> tuple[Stmt, ...]:
    span = at["p"].span
    assert span is not None
    row = f"row + {span.origin}"
    if not units:
        return decode.leave_state(lowering, [at], "state", "state_scale", ("slot", "head"), "0", row)
    found: list[Stmt] = []
    outer, lowering.scopes = lowering.scopes, [found, found]
    lowering.store(0, "scale_out", at, "state_scale", ("slot", "head", decode.on_p(at)))
    scaled = lowering.need("state_scaled", at)
    assert scaled is not None
    stored = Value(lowering.variable("stored", at).replace("state", "stored"), ("p", "n"), "stored")
    found.append(Narrow(stored, scaled[0], row, "0", "0"))
    found.append(Store("state", ("slot", "head", decode.on_p(at), common.on(at["n"], "n")), stored))
    lowering.scopes = outer
    return tuple(found)


def _write(lowering: Lowering, tiles: list[Pieces]) -> tuple[Stmt, ...]:
    """The state after all tokens: what is left of it, the product of the kept inputs, and the new token's.

    Tiles are read again, from the cache: one that waited in registers would take the room of another program's.
    """
    found: list[Stmt] = []
    outer, lowering.scopes = lowering.scopes, [found, found]
    for at in tiles:
        stored = Value(lowering.variable("stored", at), ("p", "n"), "stored")
        lowering.emit(0, replace(_load_of(stored, at), out=replace(stored, name=f"{stored.name}_again")))
        lowering.emit(0, Widen(replace(stored, dtype="float32"), replace(stored, name=f"{stored.name}_again")))
        kept = Value(f"{lowering.variable('kept_x', at)}_again", ("j", "p"), "operand")
        lowering.emit(0, Load(kept, "kept_x", lowering.sources["kept_x"].index(at)))
        lowering.bind("kept_x", at, kept, 0)
        lowering.need("state_out", at)
        found += _leave(lowering, at)
    lowering.scopes = outer
    return tuple(found)


def _keep(lowering: Lowering, tiles: list[Pieces]) -> tuple[Stmt, ...]:
    """The inputs of the new token that a head has, in the first place that is free."""

    def value(name: str, at: Pieces) -> Value:
        made = lowering.need(name, at)
        assert made is not None
        return made[0]

    x = [Store("new_x", ("slot", "head", "held", decode.on_p(at)), value("x", at)) for at in tiles]
    dt = Store("new_dt", ("slot", "head", "held"), value("dt", tiles[0]))
    return (*x, When("p0 == 0", (dt,)))


__all__ = ["AHEAD", "TILES", "Tiles", "applies", "graph", "kernel", "scores", "shapes"]
