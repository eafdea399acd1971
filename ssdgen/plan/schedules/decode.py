"""One token, or a few, of a head: the state is read, advanced in registers and written.  step_graph -> Kernel

A program has whole rows of dstate, as many as fit its warps, so that it reads one contiguous block of the state.  There
is nothing to overlap inside of it: what hides the memory's latency is how many bytes all programs have in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...spec.layer import Layer
from ...spec.step import step_graph
from ..ir import (
    Arange,
    For,
    Full,
    Index,
    Kernel,
    Leave,
    Load,
    Mask,
    Narrow,
    Scalar,
    Span,
    Stmt,
    Store,
    Tensor,
    Value,
    When,
    Widen,
)
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import common

RENAME = {
    "dt_raw": "dt",
    "dt_biased": "dt",
    "dt_positive": "dt",
    "stored": "state",
    "state_out": "state",
    "y_ssm": "y",
    "y_skip": "y",
}
OPTIONS = ("HAS_D", "HAS_Z", "HAS_DT_BIAS", "DT_SOFTPLUS", "HAS_SLOTS", "HAS_SCALE", "RANDOM")
GRID = ("batch * nheads * (HEADDIM // BLOCK_P)", "1", "1")
SIZES = ("batch", "tokens", "nslots", "nheads", "ngroups", "pad_slot_id")
REALS = ("dt_min", "dt_max", "stored_step")


@dataclass(frozen=True)
class Step:
    """A shape of the step.

    n_tiles: tiles of dstate: one where it is a power of two, which nothing has to mask.  tied: step size and decay rate
    are one number for a head (Mamba-2), not one for every entry (Mamba-1).  heads: a program goes through several that
    share B and C (`heads.py`), with one token a call.
    """

    n_tiles: int = 1
    tied: bool = True
    heads: bool = False

    @property
    def name(self) -> str:
        words = ("" if self.tied else "_untied") + ("_heads" if self.heads else "")
        return "state_step" + words + ("" if self.n_tiles == 1 else f"_{self.n_tiles}n")


def kernel(layer: Layer, shape: Step = Step()) -> Kernel:
    """y of every token, and the state after the last one, over the state before the first."""
    if shape.heads:
        return _of_heads(layer, shape)
    at = pieces(shape.n_tiles)
    lowering = Lowering(
        step_graph(layer, shape.tied), at, sources(layer, shape.tied, level=1), rename=RENAME, constant_level=0
    )
    tiles = lowering.combinations(("h", "p", "n"))
    load_state(lowering, tiles)
    for tile in tiles:
        lowering.need("state_out", tile)
    lowering.store(1, "y", tiles[0], "y", ("b", "t", "head", on_p(tiles[0])))
    token = tuple(common.loads_first(lowering.scopes[1]))
    kept = leave_state(lowering, tiles, "step_states", "step_scales", ("b", "t", "head"), "t")
    last = leave_state(lowering, tiles, "state", "state_scale", ("slot", "head"), "TOKENS - 1")
    return Kernel(
        shape.name,
        "One program advances rows of a head's state by the tokens of a call and writes what each token gets of it.",
        ("y", "state_scaled"),
        (
            *state_tensors(),
            *operand_tensors(layer, shape.tied),
            Tensor("y", ("batch", "tokens", "nheads", "HEADDIM"), "operand", strided="unit", out=True),
            Tensor(
                "step_states",
                ("batch", "tokens", "nheads", "HEADDIM", "DSTATE"),
                "stored",
                strided="rows",
                flag="STORE_STEPS",
                out=True,
            ),
            Tensor("step_scales", ("batch", "TOKENS", "nheads", "HEADDIM"), "float32", flag="STORE_STEPS", out=True),
        ),
        SIZES,
        REALS,
        ("HEADDIM", "DSTATE", "TOKENS", "FORMAT", "BLOCK_P", *block_names(shape.n_tiles)),
        (*OPTIONS, "STORE_STATE", "STORE_STEPS"),
        GRID,
        (
            *place(layer, shape.n_tiles),
            *skip_padding(),
            *common.loads_first(lowering.scopes[0]),
            For("t", "TOKENS", (*merge(token), When("STORE_STEPS", kept))),
            When("STORE_STATE", last),
        ),
        given=("stored",),
    )


def _of_heads(layer: Layer, shape: Step) -> Kernel:
    """The same for one token, heads after heads."""
    # the file is of programs that go through heads, and takes what they share with others from here
    from . import heads

    if not shape.tied:
        raise ValueError("programs go through heads where step size and decay rate are one number for each")
    of_one = {name: of_the_only_token(source) for name, source in sources(layer, True, level=1).items()}
    lowering = Lowering(
        step_graph(layer),
        pieces(shape.n_tiles),
        heads.sources(layer, of_one),
        rename=RENAME,
        constant_level=0,
        scopes=[[], []],
    )
    tiles = lowering.combinations(("h", "p", "n"))
    first = heads.load_ahead(lowering, tiles)
    for tile in tiles:
        lowering.need("state_out", tile)
    lowering.store(1, "y", tiles[0], "y", ("b", "0", "head", on_p(tiles[0])))
    left = leave_state(lowering, tiles, "state", "state_scale", ("slot", "head"), "0")
    return Kernel(
        shape.name,
        "One program advances rows of the state of some heads by one token, head after head.",
        ("y", "state_scaled"),
        (
            *state_tensors(),
            *operand_tensors(layer),
            Tensor("y", ("batch", "tokens", "nheads", "HEADDIM"), "operand", strided="unit", out=True),
        ),
        SIZES,
        REALS,
        ("HEADDIM", "DSTATE", "FORMAT", "HEADS", "BLOCK_P", *block_names(shape.n_tiles)),
        (*OPTIONS, "STORE_STATE", "EARLY"),
        heads.GRID,
        (
            *heads.place(layer, shape.n_tiles),
            *heads.skip_padding(),
            *merge(common.loads_first([*lowering.scopes[0], *first])),
            heads.loop((*lowering.scopes[1], When("STORE_STATE", left))),
        ),
        given=("stored",),
    )


# ---- what a step and a step with a replay share


def pieces(n_tiles: int) -> dict[str, tuple[Piece, ...]]:
    """A head, a tile of headdim that divides it, and all of dstate."""
    head, p = Piece("", scalar="head"), Piece("", Span("p", "p", "BLOCK_P", "p0"))
    if n_tiles == 1:
        return {"h": (head,), "p": (p,), "n": (Piece("", Span("n", "n", "BLOCK_N")),)}
    rest = Span("n", "n_1", "BLOCK_N_1", "BLOCK_N_0", "n_1_in")
    n = (Piece("_0", Span("n", "n_0", "BLOCK_N_0")), Piece("_1", rest, order=1))
    return {"h": (head,), "p": (p,), "n": n}


def block_names(n_tiles: int) -> tuple[str, ...]:
    return ("BLOCK_N",) if n_tiles == 1 else ("BLOCK_N_0", "BLOCK_N_1")


def on_p(at: Pieces) -> Index:
    return common.on(at["p"], "p")


def state_tensors() -> tuple[Tensor, ...]:
    """The state, its scales and slots, and the seed of random rounding."""
    return (
        Tensor("state", ("nslots", "nheads", "HEADDIM", "DSTATE"), "stored", strided="rows", out=True),
        Tensor("state_scale", ("nslots", "nheads", "HEADDIM"), "float32", flag="HAS_SCALE", out=True),
        Tensor("state_batch_indices", ("batch",), "index", flag="HAS_SLOTS"),
        Tensor("seed", ("1",), "int", flag="RANDOM"),
    )


def operand_tensors(layer: Layer, tied: bool = True) -> tuple[Tensor, ...]:
    """x, dt, B, C and what else a token brings, each [batch, tokens, ..]; A, D and the bias of each head."""
    step, rate = ((), ()) if tied else (("HEADDIM",), ("HEADDIM", "DSTATE"))
    found = [
        Tensor(name, ("batch", "tokens", common.heads_dim(layer, name), last), "operand", strided="unit")
        for name, last in (("x", "HEADDIM"), ("B", "DSTATE"), ("C", "DSTATE"))
    ]
    found.append(Tensor("dt", ("batch", "tokens", "nheads", *step), "any", strided="all"))
    if layer.family.uses_a:
        found.append(Tensor("A", ("nheads", *rate), "any", strided="all"))
    found += [
        Tensor("dt_bias", ("nheads", *step), "any", strided="all", flag="HAS_DT_BIAS"),
        common.skip_tensor(),
        Tensor("z", ("batch", "tokens", "nheads", "HEADDIM"), "operand", strided="unit", flag="HAS_Z"),
    ]
    return tuple(found)


def sources(layer: Layer, tied: bool, level: common.Level) -> dict[str, Source]:
    """Where the inputs of a token come from.  level: of what changes from token to token."""

    def row(at: Pieces) -> tuple[Index, ...]:
        return () if tied else (on_p(at),)

    def rate(at: Pieces) -> tuple[Index, ...]:
        return () if tied else (on_p(at), common.on(at["n"], "n"))

    def operand(name: str, axis: str) -> Source:
        def index(at: Pieces) -> tuple[Index, ...]:
            head = "head" if layer.layout.per_head(name) else "group"
            return "b", "t", head, common.on(at[axis], axis)

        return Source(name, index, level=level, dtype="operand")

    return {
        "x": operand("x", "p"),
        "B": operand("B", "n"),
        "C": operand("C", "n"),
        "dt_raw": Source("dt", lambda at: ("b", "t", "head", *row(at)), level=level),
        "A": Source("A", lambda at: ("head", *rate(at)), level=0),
        "dt_bias": Source("dt_bias", lambda at: ("head", *row(at)), level=0, flag="HAS_DT_BIAS"),
        "D": Source("D", lambda at: ("head", on_p(at)), level=0, flag="HAS_D"),
        "z": Source("z", lambda at: ("b", "t", "head", on_p(at)), level=level, dtype="operand", flag="HAS_Z"),
        "scale": Source("state_scale", lambda at: ("slot", "head", on_p(at)), level=0, flag="HAS_SCALE"),
    }


def of_the_only_token(source: Source) -> Source:
    """The same source where a call has one token."""
    return replace(source, index=lambda at: tuple("0" if part == "t" else part for part in source.index(at)))


def place(layer: Layer, n_tiles: int) -> tuple[Stmt, ...]:
    """Which rows of which head and which row of the batch a program has; neighbours in memory are neighbours here."""
    found: list[Stmt] = [
        Scalar("p_blocks", "HEADDIM // BLOCK_P"),
        Scalar("p0", "program_id(0) % p_blocks * BLOCK_P"),
        Scalar("head", "program_id(0) // p_blocks % nheads", wide=True),
        Scalar("b", "program_id(0) // p_blocks // nheads", wide=True),
    ]
    if common.has_groups(layer):
        found.append(Scalar("group", common.group_expr(layer, "head")))
    found.append(Arange("p", "p", "BLOCK_P"))
    names = ("n",) if n_tiles == 1 else ("n_0", "n_1")
    found += [Arange(name, "n", block) for name, block in zip(names, block_names(n_tiles), strict=True)]
    if n_tiles == 2:
        found.append(Mask("n_1_in", "n", "n_1", "DSTATE - BLOCK_N_0"))
    return tuple(found)


def skip_padding(tokens: str = "TOKENS") -> tuple[Stmt, ...]:
    """The slot of the row, and the seed.  A row without a slot gets zeros, and its program ends."""
    nothing, p = Value("nothing", ("p",)), Span("p", "p", "BLOCK_P", "p0")
    zeros = (
        Full(nothing, ("BLOCK_P",)),
        For("t", tokens, (Store("y", ("b", "t", "head", p), nothing),)),
        Leave(),
    )
    return (
        *slot_of_row(zeros),
        When("RANDOM", (Load(Value("seed", (), "int"), "seed", ("0",)),), (Scalar("seed", "0"),)),
        Scalar("row", "(slot * nheads + head) * HEADDIM + p0"),
    )


def slot_of_row(padding: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The slot of the row.  padding: what is done in a row that has none, or one that is not there."""
    load = Load(Value("slot", (), "int"), "state_batch_indices", ("b",))
    nowhere = "(slot < 0) | (slot >= nslots) | (slot == pad_slot_id)"
    return (When("HAS_SLOTS", (load, When(nowhere, padding)), (Scalar("slot", "b"),)),)


def load_state(lowering: Lowering, tiles: list[Pieces]) -> None:
    """The state before the token, in fp32, at the outermost level."""
    for at in tiles:
        stored = Value(lowering.variable("stored", at), ("p", "n"), "stored")
        lowering.emit(0, Load(stored, "state", ("slot", "head", on_p(at), common.on(at["n"], "n"))))
    for at in tiles:
        state = Value(lowering.variable("stored", at), ("p", "n"))
        lowering.emit(0, Widen(state, replace(state, dtype="stored")))
        lowering.bind("stored", at, state, 0)


def leave_state(
    lowering: Lowering,
    tiles: list[Pieces],
    tensor: str,
    scales: str,
    where: tuple[Index, ...],
    token: str,
    row: str = "row",
) -> tuple[Stmt, ...]:
    """Statements that round and store the state as it is now, with its scales if it has some.

    row: number of the first row of dstate of these tiles.
    """
    outer, known = lowering.scopes, dict(lowering.made)
    found: dict[bool, tuple[Stmt, ...]] = {}
    for scaled in (True, False):
        lowering.scopes, lowering.made = [[] for _ in outer], dict(known)
        for at in tiles:
            lowering.bind("state_out", at, Value(lowering.variable("state_out", at), ("p", "n")), 0)
        if scaled:
            lowering.store(0, "scale_out", tiles[0], scales, (*where, on_p(tiles[0])))
        for at in tiles:
            made = lowering.need("state_scaled" if scaled else "state_out", at)
            assert made is not None
            stored = Value(lowering.variable("stored", at).replace("state", "stored"), ("p", "n"), "stored")
            span = at["n"].span
            assert span is not None
            lowering.emit(0, Narrow(stored, made[0], row, span.origin, token))
            lowering.emit(0, Store(tensor, (*where, on_p(at), common.on(at["n"], "n")), stored))
        found[scaled] = tuple(stmt for scope in lowering.scopes for stmt in scope)
    lowering.scopes, lowering.made = outer, known
    return (When("HAS_SCALE", found[True], found[False]),)
