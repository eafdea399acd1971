"""A step that reads the state and, at most times, does not write it: y from kept inputs as well.  step_graph -> Kernel

The state is that before the kept tokens.  Between two writes a step is one row of the block decomposition, of which the
kept tokens are the columns; where no more can be kept the recurrence brings the state up to date.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.layer import Layer
from ...spec.step import step_graph
from ..ir import Arange, For, Index, Kernel, Leave, Load, Mask, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import common, decode, heads

# what a kept token has, beside the new one's
OF_A_KEPT_TOKEN = ("dt", "x", "B", "log_decay", "centre_decay", "x_weighted")


@dataclass(frozen=True)
class Replay:
    """A shape of the step with a replay.  n_tiles, heads: as in `decode.Step`."""

    n_tiles: int = 1
    heads: bool = False

    @property
    def name(self) -> str:
        return "replay_step" + ("_heads" if self.heads else "") + ("" if self.n_tiles == 1 else f"_{self.n_tiles}n")


def kernel(layer: Layer, shape: Replay = Replay()) -> Kernel:
    """y of one token, and either its inputs kept or the state after it."""
    columns = Piece("", Span("j", "k", "BLOCK_K", "0", "k_in"), position="k")
    at = {**decode.pieces(shape.n_tiles), "j": (columns,)}
    sources = {name: decode.of_the_only_token(each) for name, each in decode.sources(layer, True, level=0).items()}
    sources |= kept_sources(layer)
    lowering = Lowering(
        step_graph(layer, replay=True),
        at,
        heads.sources(layer, sources) if shape.heads else sources,
        rename=decode.RENAME,
        zero_past_end=frozenset(("kept_log_decay",)),
        constant_level=0,
        scopes=[[], []],
    )
    tiles = lowering.combinations(("h", "p", "n"))
    first: tuple[Stmt, ...] = ()
    if shape.heads:
        first = heads.load_ahead(lowering, tiles)
    else:
        decode.load_state(lowering, tiles)
    row = {**tiles[0], "j": columns}
    lowering.store(1, "y", row, "y", ("b", "0", "head", decode.on_p(row)))
    before = (
        Load(Value("count", (), "int"), "count", ("slot",)),
        Mask("k_in", "j", "k", "count"),
    )
    last = When("count >= KEPT", _write(layer, lowering, tiles), _keep(layer, lowering, tiles))
    body: tuple[Stmt, ...]
    if shape.heads:
        shared = merge(common.loads_first([*lowering.scopes[0], *first]))
        body = (*before, *shared, heads.loop((*lowering.scopes[1], last)))
    else:
        body = (*before, *merge(common.loads_first(lowering.scopes[0] + lowering.scopes[1])), last)
    whose = "some heads', head after head," if shape.heads else "a head's"
    return Kernel(
        shape.name,
        f"One program makes rows of {whose} y from the state and the kept inputs; when no more can be kept it writes "
        "the state.",
        ("y", "state_scaled"),
        (
            *decode.state_tensors(),
            *decode.operand_tensors(layer),
            *kept_tensors(layer),
            Tensor("y", ("batch", "tokens", "nheads", "HEADDIM"), "operand", strided="unit", out=True),
        ),
        decode.SIZES,
        decode.REALS,
        (
            *("HEADDIM", "DSTATE", "KEPT", "FORMAT"),
            *(["HEADS"] if shape.heads else []),
            *("BLOCK_P", *decode.block_names(shape.n_tiles), "BLOCK_K"),
        ),
        (*decode.OPTIONS, *(["EARLY"] if shape.heads else [])),
        heads.GRID if shape.heads else decode.GRID,
        (
            *(heads if shape.heads else decode).place(layer, shape.n_tiles),
            Arange("k", "j", "BLOCK_K"),
            *(heads.skip_padding() if shape.heads else decode.skip_padding("1")),
            *body,
        ),
        given=("stored",),
    )


def advance(layer: Layer) -> Kernel:
    """How many inputs are kept, after a step: one more, or none."""
    return Kernel(
        "replay_advance",
        "One program counts the inputs that are kept of one row of the batch.",
        (),
        (
            Tensor("state_batch_indices", ("batch",), "index", flag="HAS_SLOTS"),
            Tensor("count", ("nslots",), "int", out=True),
        ),
        ("batch", "nslots", "pad_slot_id"),
        (),
        ("KEPT",),
        ("HAS_SLOTS",),
        ("batch", "1", "1"),
        (
            Scalar("b", "program_id(0)", wide=True),
            *decode.slot_of_row((Leave(),)),
            Load(Value("count", (), "int"), "count", ("slot",)),
            Scalar("kept", "(count + 1) % (KEPT + 1)"),
            Store("count", ("slot",), Value("kept", (), "int")),
        ),
    )


def _head(layer: Layer, name: str) -> str:
    return "head" if layer.layout.per_head(name) else "group"


def kept_sources(layer: Layer) -> dict[str, Source]:
    def on_k(at: Pieces) -> Index:
        return common.on(at["j"], "j")

    return {
        "kept_dt": Source("kept_dt", lambda at: ("slot", "head", on_k(at)), level=0),
        "kept_x": Source(
            "kept_x", lambda at: ("slot", _head(layer, "x"), on_k(at), decode.on_p(at)), level=0, dtype="operand"
        ),
        "kept_B": Source(
            "kept_B",
            lambda at: ("slot", _head(layer, "B"), on_k(at), common.on(at["n"], "n")),
            level=0,
            dtype="operand",
        ),
    }


def kept_tensors(layer: Layer) -> tuple[Tensor, ...]:
    """What is kept, and the same memory once more as what is written of it: places that no program reads."""
    dims = {
        "x": ("nslots", common.heads_dim(layer, "x"), "KEPT", "HEADDIM"),
        "dt": ("nslots", "nheads", "KEPT"),
        "B": ("nslots", common.heads_dim(layer, "B"), "KEPT", "DSTATE"),
    }
    dtypes = {"x": "operand", "dt": "float32", "B": "operand"}
    return (
        Tensor("count", ("nslots",), "int"),
        *(Tensor(f"kept_{name}", dims[name], dtypes[name]) for name in dims),
        *(Tensor(f"new_{name}", dims[name], dtypes[name], out=True) for name in dims),
    )


def _write(layer: Layer, lowering: Lowering, tiles: list[Pieces]) -> tuple[Stmt, ...]:
    """The recurrence over the kept tokens and the new one, and the state that it leaves."""
    index: dict[str, tuple[str, str | None]] = {"dt": ("head", None), "x": (_head(layer, "x"), "p")}
    index["B"] = (_head(layer, "B"), "n")

    def source(name: str, dtype: str) -> Source:
        head, axis = index[name]

        def place(at: Pieces) -> tuple[Index, ...]:
            return "slot", head, "s", *(() if axis is None else (common.on(at[axis], axis),))

        return Source(f"kept_{name}", place, dtype=dtype)

    recurrence = Lowering(
        lowering.graph,
        lowering.pieces,
        {"dt": source("dt", "float32"), "x": source("x", "operand"), "B": source("B", "operand")},
        rename={**decode.RENAME, **{name: f"{name}_s" for name in OF_A_KEPT_TOKEN}},
        constant_level=0,
    )
    if layer.family.uses_a:
        rate = lowering.need("A", tiles[0])
        assert rate is not None
        recurrence.bind("A", tiles[0], rate[0], 0)
    for at in tiles:
        recurrence.bind("state", at, Value(lowering.variable("state_out", at), ("p", "n")), 0)
        recurrence.need("state_out", at)
    outer = lowering.scopes
    lowering.scopes = [[], []]
    for at in tiles:
        lowering.need("state_out", at)
    new, lowering.scopes = lowering.scopes[0] + lowering.scopes[1], outer
    return (
        *recurrence.scopes[0],
        For("s", "KEPT", common.loads_first(recurrence.scopes[1])),
        *new,
        *decode.leave_state(lowering, tiles, "state", "state_scale", ("slot", "head"), "0"),
    )


def _keep(layer: Layer, lowering: Lowering, tiles: list[Pieces]) -> tuple[Stmt, ...]:
    """The inputs of the new token, in the first place that is free; what programs share is stored by the first."""
    first = "head % (nheads // ngroups) == 0"

    def value(name: str, at: Pieces) -> Value:
        made = lowering.need(name, at)
        assert made is not None
        return made[0]

    x = Store("new_x", ("slot", _head(layer, "x"), "count", decode.on_p(tiles[0])), value("x", tiles[0]))
    shared = tuple(
        Store("new_B", ("slot", _head(layer, "B"), "count", common.on(at["n"], "n")), value("B", at)) for at in tiles
    )
    dt = Store("new_dt", ("slot", "head", "count"), value("dt", tiles[0]))
    return (
        x if layer.layout.per_head("x") else When(first, (x,)),
        When("p0 == 0", (dt, *(shared if layer.layout.per_head("B") else (When(first, shared),)))),
    )
