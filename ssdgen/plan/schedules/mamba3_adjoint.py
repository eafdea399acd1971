"""The backward pass of what comes before the chunks of Mamba-3.  adjoints of spec.mamba3 -> Kernel

In the order in which they run: what the weights of the steps and the log-decays get from the chunks; the gradients of B
and C, turned back, and the adjoints of the angles, with their sums of each part of the tokens; the steps and rates,
chunk by chunk, once a short walk has found what comes from the parts after each (mamba3_angles); and what the entering
state was made of.
"""

from __future__ import annotations

import sympy

from ...spec.dims import entry
from ...spec.graph import Map
from ...spec.mamba3 import LAYER, entering_adjoint, tokens_adjoint
from ..ir import Arange, For, Full, Index, Kernel, Let, Mask, Note, Scalar, Span, Stmt, Store, Sum, Tensor, Value
from ..lower import Lowering, merge
from ..pieces import Piece, Pieces, Source
from . import adjoint, common, pairs
from .mamba3 import (
    HEAD,
    LOOP,
    OUTSIDE,
    PAIRS,
    RATES,
    RENAME,
    TOKENS,
    angle_sources,
    angles,
    biases,
    first_sources,
    first_tensors,
    load_operands,
    pair_masks,
    pairs_tensor,
    parts_tensor,
    span,
    state_masks,
    state_pieces,
    step_sources,
    step_tensors,
    turned_index,
    vector,
    vector_source,
)

HEADS = ("batch", "nheads", "seqlen")
# values that only repeat another along an axis
SPREAD = frozenset(
    node.name
    for graph in (tokens_adjoint(), entering_adjoint())
    for node in graph.nodes
    if isinstance(node, Map) and isinstance(node.formula, sympy.Indexed)
)


def weights() -> Kernel:
    """What the weights and the log-decays of a chunk get."""
    row = Piece("", Span("i", "row", "CHUNK", "row0", "row_in"))
    at = {"h": HEAD, "i": row, "j": row}
    vectors = adjoint.there(LAYER, "d_dA_cs_scores_rows", "d_dt_scores", "d_right_decay", "d_left_decay")
    numbers = adjoint.there(LAYER, *adjoint.NUMBERS)
    sources = {name: Source(name, adjoint.vector_index) for name in vectors}
    sources |= {name: Source(name, adjoint.number_index) for name in numbers}
    sources |= common.prepared_sources(LAYER, "b", last="row0 + CHUNK - 1")
    sources |= common.seq_sources("b", first="row0", last="minimum(row0 + CHUNK, seqlen) - 1")
    lowering = Lowering(
        adjoint.graph(LAYER),
        {axis: (piece,) for axis, piece in at.items()},
        sources,
        rename={name: new for name, new in adjoint.RENAME.items() if not name.startswith("d_dt")},
        kept=adjoint.KEPT,
    )
    for name in ("d_dt", "d_log_decay"):
        lowering.store(1, name, at, name, adjoint.vector_index({"h": HEAD, "j": row}))
    return Kernel(
        "mamba3_weight_gradients",
        "One program makes what the weights and log-decays of a chunk get, for one head.",
        ("d_dt", "d_log_decay"),
        (
            *(tensor for tensor in adjoint.vector_tensors(LAYER, vectors, numbers)),
            *common.prepared_tensors(LAYER),
            common.seq_tensor(),
            *(vector(name, out=True) for name in ("d_dt", "d_log_decay")),
        ),
        ("batch", "seqlen", "nheads", "nchunks", "padded"),
        (),
        ("CHUNK",),
        ("HAS_SEQ_IDX",),
        ("nheads", "nchunks", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("chunk", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("row0", "chunk * CHUNK"),
            Arange("row", "i", "CHUNK"),
            Mask("row_in", "i", "row", "seqlen - row0"),
            *merge(common.loads_first(lowering.scopes[1])),
        ),
        given=(*vectors, *numbers, "dt", "dA_cs", "dA_last"),
    )


def turn_back() -> Kernel:
    """Gradients of B, C and their biases, and the adjoints of the angles and of the tokens' own weights."""
    tokens = Piece("", Span("t", "t", "BLOCK_T", "t0", "t_in"))
    at = {"h": HEAD, "t": tokens, "r": PAIRS}
    sources = angle_sources() | {name: vector_source(name) for name in ("gamma", "d_dt", "d_own")}
    lowering = Lowering(
        tokens_adjoint(),
        {axis: (piece,) for axis, piece in at.items()},
        sources,
        rename={**RENAME, "d_angle_in_angle_sum": "d_angle_part"},
        spread=SPREAD,
    )
    load_operands(lowering, at)
    for name in ("d_B_turned", "d_C_turned"):
        pairs.load(lowering, name, at, name, turned_index(at), LOOP, "operand")
    lowering.store(LOOP, "d_angle", at, "d_angle", ("b", span(tokens), "head", RATES))
    lowering.store(LOOP, "d_angle_in_angle_sum", at, "d_angle_part", ("b", "head", "part", RATES))
    lowering.store(LOOP, "d_gamma", at, "d_gamma", ("b", "head", span(tokens, mask=False)))
    zeros: list[Stmt] = []
    stores: list[Stmt] = []
    for name in ("d_B", "d_C"):
        # of pairs: one sum over the tokens, and one over the heads
        made = pairs.join(lowering, f"{name}_biased", at, (span(tokens),), LOOP)
        summed, total = Value(f"{name}_bias", ("n",)), Value(name, made.axes)
        lowering.emit(LOOP, Sum(summed, made, "t"))
        lowering.emit(LOOP, Store(summed.name, ("b", "part", "head", pairs.COLUMNS), summed))
        zeros.append(Full(total, ("BLOCK_T", pairs.COLUMNS.size)))
        lowering.emit(LOOP, Let(total, entry(name, *made.axes) + entry(made.name, *made.axes), (total, made)))
        stores.append(Store(name, ("b", span(tokens), "group", pairs.COLUMNS), total))
    parts = ("batch", "nparts", "nheads", "DSTATE")
    return Kernel(
        "mamba3_turn_gradients",
        "One program turns back the gradients of B and C of some tokens, for the heads of a group one after the other.",
        (
            *(pairs.half(f"d_{name}", k) for name in ("B", "C", "B_bias", "C_bias") for k in (0, 1)),
            "d_angle_in_angle_sum",
            "d_gamma",
        ),
        (
            *(pairs_tensor(name, "ngroups") for name in ("B", "C")),
            *biases(),
            angles("turn_cs"),
            parts_tensor("angle_before", "nchunks"),
            *(pairs_tensor(f"d_{name}_turned") for name in ("B", "C")),
            *(vector(name) for name in ("gamma", "d_dt", "d_own")),
            *(pairs_tensor(f"d_{name}", "ngroups", out=True) for name in ("B", "C")),
            *(Tensor(f"d_{name}_bias", parts, "float32", out=True) for name in ("B", "C")),
            angles("d_angle", out=True),
            parts_tensor("d_angle_part", "nparts", out=True),
            vector("d_gamma", out=True),
        ),
        ("batch", "seqlen", "nheads", "ngroups", "rates", "nchunks", "padded", "nparts"),
        (),
        ("DSTATE", "CHUNK", "BLOCK_T", "BLOCK_R"),
        (),
        ("nparts", "ngroups", "batch"),
        (
            Scalar("part", "program_id(0)", wide=True),
            Scalar("t0", "part * BLOCK_T"),
            Scalar("chunk", "t0 // CHUNK"),
            Scalar("group", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Arange("t", "t", "BLOCK_T"),
            Mask("t_in", "t", "t", "seqlen - t0"),
            *pair_masks(),
            *merge(common.loads_first(lowering.scopes[OUTSIDE])),
            *zeros,
            For(
                "turn",
                "nheads // ngroups",
                (
                    Scalar("head", "group * (nheads // ngroups) + turn"),
                    *merge(common.loads_first(lowering.scopes[LOOP])),
                ),
            ),
            *stores,
        ),
        given=("gamma", "turn_cs", "angle_in", "d_dt"),
        turns=True,
    )


def steps_back() -> Kernel:
    """Gradients of the log-decays, steps, mixing and rates of a chunk."""
    row = Piece("", Span("t", "row", "CHUNK", "row0", "row_in"))
    # the weight of a token is the step's after it
    before = Piece("_before", Span("t", "row", "CHUNK", "row0 - 1", "before_in"), order=-1)
    at = {"h": HEAD, "t": row, "r": PAIRS}
    sources = step_sources() | {name: vector_source(name) for name in ("d_gamma", "d_log_decay")}
    sources["d_dt"] = Source("d_dt", lambda at: ("b", "head", span(at["t"])))
    sources["d_angle"] = Source("d_angle", lambda at: ("b", span(at["t"]), "head", RATES))
    sources["d_angle_out"] = Source("d_angle_after", lambda _: ("b", "head", "part", RATES))
    pieces = {axis: (piece,) for axis, piece in at.items()}
    lowering = Lowering(tokens_adjoint(), pieces, sources, spread=SPREAD, beside={"t": (before,)})
    for name in ("adt", "step", "mix"):
        lowering.store(1, f"d_{name}", at, f"d_{name}", ("b", "head", span(row)))
    lowering.store(1, "d_rate", at, "d_rate", ("b", span(row), "head", RATES))
    return Kernel(
        "mamba3_step_gradients",
        "One program makes the gradients of log-decays, steps, mixing and rates of a chunk, for one head.",
        ("d_adt", "d_step", "d_mix", "d_rate"),
        (
            *(tensor for tensor in step_tensors() if tensor.name != "adt"),
            *(vector(name) for name in ("d_gamma", "d_dt", "d_log_decay")),
            angles("d_angle"),
            parts_tensor("d_angle_after", "nparts"),
            # heads before tokens, as the public call has them
            *(Tensor(f"d_{name}", HEADS, "any", out=True) for name in ("adt", "step", "mix")),
            Tensor("d_rate", (*TOKENS, "rates"), "any", out=True),
        ),
        ("batch", "seqlen", "nheads", "rates", "nchunks", "padded", "nparts"),
        (),
        ("CHUNK", "BLOCK_T", "BLOCK_R"),
        (),
        ("nheads", "nchunks", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("chunk", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("row0", "chunk * CHUNK"),
            Note("the last part of the chunk"),
            Scalar("part", "(chunk + 1) * (CHUNK // BLOCK_T) - 1"),
            Arange("row", "t", "CHUNK"),
            Mask("row_in", "t", "row", "seqlen - row0"),
            Mask("before_in", "t", "row", "seqlen - row0 + 1", ("row + row0 > 0",)),
            Arange("r", "r", "BLOCK_R"),
            Mask("rate_in", "r", "r", "rates"),
            *merge(common.loads_first(lowering.scopes[1])),
        ),
        given=("d_gamma", "d_dt", "d_log_decay", "d_angle", "d_angle_out"),
    )


def entering_back() -> Kernel:
    """What the last token of the run before and the first step get from the entering state."""
    pieces = state_pieces("0")
    at: Pieces = {axis: piece for axis, (piece,) in pieces.items()}
    rows, columns = common.on(at["p"], "p"), common.on(at["n"], "n")
    sources = first_sources() | {"d_state_in": Source("d_state_in", lambda _: ("b", "head", rows, columns))}
    lowering = Lowering(entering_adjoint(), pieces, sources, spread=SPREAD)
    places: dict[str, tuple[Index, ...]] = {
        "d_step_first": ("b", "head"),
        "d_mix_first": ("b", "head"),
        "d_x_before": ("b", "head", rows),
        "d_B_before": ("b", "head", columns),
    }
    for name, index in places.items():
        lowering.store(1, name, at, name, index)
    head = ("batch", "nheads")
    shapes = {"d_step_first": head, "d_mix_first": head, "d_x_before": (*head, "HEADDIM")}
    shapes["d_B_before"] = (*head, "DSTATE")
    return Kernel(
        "mamba3_entering_gradients",
        "One program makes what the last token of the run before and the first step of this one get, for one head.",
        tuple(places),
        (
            *first_tensors(),
            Tensor("d_state_in", (*head, "HEADDIM", "DSTATE"), "float32"),
            *(Tensor(name, dims, "float32", out=True) for name, dims in shapes.items()),
        ),
        ("batch", "seqlen", "nheads"),
        (),
        ("HEADDIM", "DSTATE", "BLOCK_P", "BLOCK_N"),
        (),
        ("nheads", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("b", "program_id(1)", wide=True),
            *state_masks(pieces),
            *merge(common.loads_first(lowering.scopes[1])),
        ),
        given=("d_state_in",),
    )


__all__ = ["entering_back", "steps_back", "turn_back", "weights"]
