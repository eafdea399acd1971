"""What comes before the chunks of Mamba-3: steps, turned operands, entering state.  spec.mamba3 -> Kernel

Angles run on from token to token.  So that chunks need not wait for each other, the kernel of the steps sums up turns
inside each; a short walk over these sums (mamba3_angles) finds the angle before each chunk, and what is turned takes
both.
"""

from __future__ import annotations

from functools import cache

from ...spec.dims import entry
from ...spec.graph import Cumsum, Graph
from ...spec.mamba3 import entering_graph, tokens_graph
from ..ir import Arange, For, Index, Kernel, Mask, Scalar, Span, Stmt, Tensor
from ..lower import Lowering, merge
from ..pieces import Piece, Pieces, Source
from . import common, pairs

HEAD = Piece("", scalar="head")
# of all pairs those that turn
RATES = Span("r", "r", "BLOCK_R", "0", "rate_in")
PAIRS = Piece("", Span("r", "r", "BLOCK_R"))
TOKENS = ("batch", "seqlen", "nheads")
OUTSIDE, LOOP = 0, 1
RENAME = {"angle_sum": "angle", "angle_last": "angle_out"}


@cache
def steps_graph() -> Graph:
    """The graph of tokens, with the running sums of a chunk of them."""
    whole = tokens_graph()
    running = Cumsum("dA_cs", ("h", "t"), entry("log_decay", "h", "t"), "t")
    return Graph(whole.name, (*whole.nodes, running))


# ---- tensors and sources


def step_tensors() -> tuple[Tensor, ...]:
    """Raw steps of the tokens, and the rates at which their pairs turn."""
    return (
        *(Tensor(name, TOKENS, "any", "all") for name in ("adt", "step", "mix")),
        Tensor("rate", (*TOKENS, "rates"), "any", "unit"),
    )


def pairs_tensor(name: str, heads: str = "nheads", flag: str | None = None, out: bool = False) -> Tensor:
    """B, C or a gradient of theirs, in pairs; those that come from outside with strides of their own."""
    dims = ("batch", "seqlen", heads, "DSTATE")
    return Tensor(name, dims, "operand", "unit" if heads == "ngroups" and not out else "no", flag, out)


def vector(name: str, out: bool = False) -> Tensor:
    """A number for each token of a head, padded to whole chunks."""
    return Tensor(name, ("batch", "nheads", "padded"), "float32", out=out)


def angles(name: str, out: bool = False) -> Tensor:
    """A sum of turns, or the adjoint of an angle, for each pair that turns."""
    return Tensor(name, (*TOKENS, "rates"), "float32", out=out)


def parts_tensor(name: str, count: str, out: bool = False) -> Tensor:
    """The same of chunks, or of other parts of the tokens."""
    return Tensor(name, ("batch", "nheads", count, "rates"), "float32", out=out)


def biases() -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{name}_bias", ("nheads", "DSTATE"), "any") for name in ("B", "C"))


def span(piece: Piece, mask: bool = True) -> Span:
    """The tokens of a piece; without a mask where the tensor is padded."""
    assert piece.span is not None
    return piece.span if mask else Span(piece.span.axis, piece.span.offsets, piece.span.size, piece.span.origin)


def step_sources() -> dict[str, Source]:
    def index(at: Pieces) -> tuple[Index, ...]:
        return "b", span(at["t"]), "head"

    found = {name: Source(name, index) for name in ("adt", "step", "mix")}
    return found | {"rate": Source("rate", lambda at: ("b", span(at["t"]), "head", RATES))}


def load_operands(lowering: Lowering, at: Pieces) -> None:
    """B and C of a group, which its heads share, and the biases of a head."""
    for name in ("B", "C"):
        pairs.load(lowering, name, at, name, ("b", span(at["t"]), "group"), OUTSIDE, "operand")
        pairs.load(lowering, f"{name}_bias", at, f"{name}_bias", ("head",), LOOP)


def turned_index(at: Pieces) -> tuple[Index, ...]:
    return "b", span(at["t"]), "head"


def angle_sources() -> dict[str, Source]:
    """What an angle is made of: the turns of its chunk up to it, and the angle before the chunk."""
    return {
        "turn_cs": Source("turn_cs", lambda at: ("b", span(at["t"]), "head", RATES)),
        "angle_in": Source("angle_before", lambda _: ("b", "head", "chunk", RATES)),
    }


def vector_source(name: str) -> Source:
    return Source(name, lambda at: ("b", "head", span(at["t"], mask=False)))


def pair_masks() -> tuple[Stmt, ...]:
    return *pairs.masks(), Arange("r", "r", "BLOCK_R"), Mask("rate_in", "r", "r", "rates")


# ---- kernels


def steps() -> Kernel:
    """Weights, and running log-decays and turns, of a chunk."""
    row = Piece("", Span("t", "row", "CHUNK", "row0", "row_in"))
    # a step gives a weight to the token before it: that of the next token is read too
    later = Piece("_next", Span("t", "row", "CHUNK", "row0 + 1", "next_in"), order=1)
    at = {"h": HEAD, "t": row, "r": PAIRS}
    pieces = {axis: (piece,) for axis, piece in at.items()}
    lowering = Lowering(steps_graph(), pieces, step_sources(), beside={"t": (later,)})
    for name in ("gamma", "dt", "dA_cs"):
        lowering.store(1, name, at, name, ("b", "head", span(row, mask=False)))
    lowering.store(1, "turn_cs", at, "turn_cs", ("b", span(row), "head", RATES))
    lowering.store(1, "turn_last", at, "turn_last", ("b", "head", "chunk", RATES))
    return Kernel(
        "mamba3_steps",
        "One program makes the weights, running log-decays and running turns of a chunk, for one head.",
        ("gamma", "dt", "dA_cs", "turn_cs", "turn_last"),
        (
            *step_tensors(),
            *(vector(name, out=True) for name in ("gamma", "dt", "dA_cs")),
            angles("turn_cs", out=True),
            parts_tensor("turn_last", "nchunks", out=True),
        ),
        ("batch", "seqlen", "nheads", "rates", "nchunks", "padded"),
        (),
        ("CHUNK", "BLOCK_R"),
        (),
        ("nheads", "nchunks", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("chunk", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("row0", "chunk * CHUNK"),
            Arange("row", "t", "CHUNK"),
            Mask("row_in", "t", "row", "seqlen - row0"),
            Mask("next_in", "t", "row", "seqlen - row0 - 1"),
            Arange("r", "r", "BLOCK_R"),
            Mask("rate_in", "r", "r", "rates"),
            *merge(common.loads_first(lowering.scopes[1])),
        ),
    )


def turn() -> Kernel:
    """B and C of some heads of a group, turned, and the weights of the tokens' own inputs."""
    tokens = Piece("", Span("t", "t", "BLOCK_T", "t0", "t_in"))
    at = {"h": HEAD, "t": tokens, "r": PAIRS}
    sources = angle_sources() | {"gamma": vector_source("gamma")}
    sources["D_head"] = Source("D_head", lambda _: ("head",), level=LOOP, flag="HAS_D")
    lowering = Lowering(tokens_graph(), {axis: (piece,) for axis, piece in at.items()}, sources, rename=RENAME)
    load_operands(lowering, at)
    for name in ("B", "C"):
        pairs.store(lowering, f"{name}_turned", at, f"{name}_turned", turned_index(at), LOOP)
    lowering.store(LOOP, "own", at, "own", ("b", "head", span(tokens, mask=False)))
    return Kernel(
        "mamba3_turn",
        "One program turns B and C of some tokens, for some heads of a group one after the other; C . B of a token is "
        "the weight of its own input.",
        ("B_0_turned", "B_1_turned", "C_0_turned", "C_1_turned", "own"),
        (
            *(pairs_tensor(name, "ngroups") for name in ("B", "C")),
            *biases(),
            angles("turn_cs"),
            parts_tensor("angle_before", "nchunks"),
            vector("gamma"),
            Tensor("D_head", ("nheads",), "any", flag="HAS_D"),
            *(pairs_tensor(f"{name}_turned", out=True) for name in ("B", "C")),
            vector("own", out=True),
        ),
        ("batch", "seqlen", "nheads", "ngroups", "rates", "nchunks", "padded"),
        (),
        ("DSTATE", "CHUNK", "BLOCK_T", "BLOCK_R", "HEADS"),
        ("HAS_D",),
        ("padded // BLOCK_T", "nheads // HEADS", "batch"),
        (
            Scalar("t0", "program_id(0) * BLOCK_T", wide=True),
            Scalar("chunk", "t0 // CHUNK"),
            Scalar("first", "program_id(1) * HEADS", wide=True),
            Scalar("group", "first // (nheads // ngroups)"),
            Scalar("b", "program_id(2)", wide=True),
            Arange("t", "t", "BLOCK_T"),
            Mask("t_in", "t", "t", "seqlen - t0"),
            *pair_masks(),
            *merge(common.loads_first(lowering.scopes[OUTSIDE])),
            For(
                "turn",
                "HEADS",
                (Scalar("head", "first + turn"), *merge(common.loads_first(lowering.scopes[LOOP]))),
            ),
        ),
        given=("turn_cs", "angle_in", "gamma"),
        turns=True,
    )


def first_sources() -> dict[str, Source]:
    """The first token of a run, and the last of the run before."""
    return {
        "step_first": Source("step", lambda _: ("b", "0", "head")),
        "mix_first": Source("mix", lambda _: ("b", "0", "head")),
        "x_before": Source("x_before", lambda at: ("b", "head", common.on(at["p"], "p"))),
        "B_before": Source("B_before", lambda at: ("b", "head", common.on(at["n"], "n"))),
    }


def state_pieces(p_first: str) -> dict[str, tuple[Piece, ...]]:
    (columns,), (rows,) = common.spans("n", "n", ("BLOCK_N",), "0"), common.spans("p", "p", ("BLOCK_P",), p_first)
    return {"h": (HEAD,), "p": (rows,), "n": (columns,)}


def state_masks(pieces: dict[str, tuple[Piece, ...]]) -> list[Stmt]:
    found: list[Stmt] = []
    for axis, extent in (("p", "HEADDIM"), ("n", "DSTATE")):
        tile = pieces[axis][0].span
        assert tile is not None
        found += [Arange(tile.offsets, axis, tile.size), common.mask(tile, extent)]
    return found


def first_tensors() -> tuple[Tensor, ...]:
    return (
        *(Tensor(name, TOKENS, "any", "all") for name in ("step", "mix")),
        Tensor("x_before", ("batch", "nheads", "HEADDIM"), "any"),
        Tensor("B_before", ("batch", "nheads", "DSTATE"), "any"),
    )


def entering() -> Kernel:
    """The state that the first chunk takes."""
    pieces = state_pieces("p0")
    at = {axis: piece for axis, (piece,) in pieces.items()}
    where = ("b", "head", common.on(at["p"], "p"), common.on(at["n"], "n"))
    sources = first_sources() | {"state": Source("state", lambda _: where)}
    lowering = Lowering(entering_graph(), pieces, sources)
    lowering.store(1, "state_in", at, "state_in", where)
    state = ("batch", "nheads", "HEADDIM", "DSTATE")
    return Kernel(
        "mamba3_entering",
        "One program adds to the state of the run before what its last token gives in the first step of this one.",
        ("state_in",),
        (*first_tensors(), Tensor("state", state, "state"), Tensor("state_in", state, "float32", out=True)),
        ("batch", "seqlen", "nheads"),
        (),
        ("HEADDIM", "DSTATE", "BLOCK_P", "BLOCK_N"),
        (),
        ("cdiv(HEADDIM, BLOCK_P)", "nheads", "batch"),
        (
            Scalar("p0", "program_id(0) * BLOCK_P"),
            Scalar("head", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            *state_masks(pieces),
            *merge(common.loads_first(lowering.scopes[1])),
        ),
    )


__all__ = ["entering", "steps", "steps_graph", "turn"]
