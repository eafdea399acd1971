"""What the kernels share: tensors, spans and sources of the operands.  -> walk, scan, passing, prepare"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sympy

from ...spec.layer import Layer
from ..ir import Arange, Index, Load, Mask, Scalar, Span, Stmt, Tensor, When
from ..lower import Lowering, Piece, Pieces, Source
from ..scalars import integer_text

OPERANDS = ("x", "B", "C")

# scope of a load: a number, or one for each choice of pieces
Level = int | Callable[[Pieces], int]

# names under which values of the graph appear in the kernels: an option updates its value in place
RENAME = {
    "dt_raw": "dt",
    "dt_biased": "dt",
    "dt_positive": "dt",
    "scores_whole": "scores",
    "left_decay_whole": "left_decay",
    "right_decay_whole": "right_decay",
    "centre_decay_whole": "centre_decay",
    "total_whole": "total",
    "total_out": "total",
    "y_ssm": "y",
    "y_skip": "y",
    "y_later": "y",
    "own_skip": "own",
    "y_state": "y",
    "state_out": "state",
}


NOTES = {
    "y_state": "left factor: what the entering state gives to every row",
    "CB": "diagonal block: what the rows before give, inside the chunk",
    "centre_decay_whole": "centre and right factor: the state that leaves the chunk",
}


def heads_dim(layer: Layer, operand: str) -> str:
    return "nheads" if layer.layout.per_head(operand) else "ngroups"


def operand(layer: Layer, name: str, last: str) -> Tensor:
    """x, B or C: [batch, seqlen, nheads or ngroups, last], any strides but a unit last one."""
    return Tensor(name, ("batch", "seqlen", heads_dim(layer, name), last), "operand", strided="unit")


def skip_tensor() -> Tensor:
    return Tensor("D", ("nheads", "HEADDIM"), "any", strided="all", flag="HAS_D")


def gate_tensor() -> Tensor:
    return Tensor("z", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", strided="unit", flag="HAS_Z")


def seq_tensor() -> Tensor:
    return Tensor("seq_idx", ("batch", "seqlen"), "int", flag="HAS_SEQ_IDX")


def prepared_tensors(layer: Layer, out: bool = False, outputs: bool = False) -> tuple[Tensor, ...]:
    """Step sizes and running sums, [batch, nheads, seqlen rounded up to whole chunks], fp32.

    outputs: of a kernel that has to do with outputs, which may need a weight of a token's own input.
    """
    names = ("dt", "dA_cs") if layer.family.decays else ("dt",)
    names += ("own",) if outputs and layer.discretisation.own else ()
    return tuple(Tensor(name, ("batch", "nheads", "padded"), "float32", out=out) for name in names)


def headdim_first(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Axes where headdim runs along the rows, outputs and scores transposed with it.

    The state and the weighted input are then left operands, which a matrix unit takes from registers: neither passes
    through shared memory, and the scores, which must, are half as large as the state.
    """
    per_head = ("h",) if layer.layout.per_head("B") or layer.layout.per_head("C") else ()
    names = ("y_state", "y_diag", "y_later", "y_ssm", "y_skip", "y", "z")
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("h", "p", "i"))
    found.update(dict.fromkeys(("scores", "scores_whole"), ("h", "j", "i")))
    return found | {"CB": (*per_head, "j", "i"), "x_weighted": ("h", "p", "j")}


def diagonal_owner(layer: Layer) -> tuple[str, str]:
    """Whose C B^T it is, and how many there are: a head's, unless it shares both B and C with its group."""
    per_head = layer.layout.per_head("B") or layer.layout.per_head("C")
    return ("head", "nheads") if per_head else ("group", "ngroups")


def diagonal_tensor(layer: Layer, out: bool = False) -> Tensor:
    """C B^T of each token with itself, fp32."""
    return Tensor("CB_diagonal", ("batch", diagonal_owner(layer)[1], "padded"), "float32", out=out)


def diagonal_sources(layer: Layer, batch: str, level: Level = 1, descriptor: bool = False) -> dict[str, Source]:
    """The diagonal of C B^T from `diagonal_products`, which needs no mask, and the D of a head."""

    def index(at: Pieces) -> tuple[Index, ...]:
        span = on(at["j"], "j")
        assert isinstance(span, Span)
        return batch, diagonal_owner(layer)[0], replace(span, mask=None)

    return {
        "CB_diagonal": Source("CB_diagonal", index, level=level, descriptor=descriptor),
        "D_head": Source("D_head", lambda at: (on(at["h"], "h"),), level=0, flag="D_BY_HEAD"),
    }


def raw_tensors(layer: Layer) -> tuple[Tensor, ...]:
    """The step size as the caller passes it, and what its transform and the decay need."""
    found = [
        Tensor("dt", ("batch", "seqlen", "nheads"), "any", strided="all"),
        Tensor("dt_bias", ("nheads",), "any", flag="HAS_DT_BIAS"),
    ]
    if layer.family.uses_a:
        per_token = Tensor("A", ("batch", "seqlen", "nheads"), "any", strided="all")
        found.append(per_token if layer.family.per_token else Tensor("A", ("nheads",), "any"))
    return tuple(found)


def on(piece: Piece, axis: str) -> Index:
    """Index of a piece in a tensor: its scalar, or its span under the name of the axis that the tile has."""
    return replace(piece.span, axis=axis) if piece.span is not None else piece.scalar


def group(layer: Layer, name: str, pieces: Pieces) -> str:
    """Head index of an operand: the head itself or its group."""
    return pieces["h"].scalar if layer.layout.per_head(name) else "group"


def operand_source(
    layer: Layer, name: str, batch: str, row: str, col: str, descriptor: bool, level: Level = 1
) -> Source:
    """Source of x, B or C, tile axes (row, col), under the names that the graph declares."""

    def index(pieces: Pieces) -> tuple[Index, ...]:
        return batch, on(pieces[row], row), group(layer, name, pieces), on(pieces[col], col)

    return Source(name, index, level=level, dtype="operand", descriptor=descriptor)


def option_sources(batch: str, level: int) -> dict[str, Source]:
    """Skip weight and gate."""
    return {
        "D": Source("D", lambda at: (at["h"].scalar, on(at["p"], "p")), level=0, flag="HAS_D"),
        "z": Source(
            "z",
            lambda at: (batch, on(at["i"], "i"), at["h"].scalar, on(at["p"], "p")),
            level=level,
            dtype="operand",
            flag="HAS_Z",
        ),
    }


def raw_sources(layer: Layer, batch: str, dt: str = "dt") -> dict[str, Source]:
    def token(at: Pieces) -> tuple[Index, ...]:
        return batch, on(at["j"], "j"), on(at["h"], "h")

    per_head = Source("A", lambda at: (on(at["h"], "h"),), level=0)
    return {
        "dt_raw": Source(dt, token),
        "dt_bias": Source("dt_bias", lambda at: (on(at["h"], "h"),), level=0, flag="HAS_DT_BIAS"),
        "A": Source("A", token) if layer.family.per_token else per_head,
    }


def spans(axis: str, stem: str, sizes: tuple[str, ...], first: str) -> tuple[Piece, ...]:
    """Pieces that follow each other along an axis; one starts at `first`, several at the sum of the sizes before."""
    pieces = []
    for order, size in enumerate(sizes):
        name = stem if len(sizes) == 1 else f"{stem}_{order}"
        origin = first if len(sizes) == 1 else (" + ".join(sizes[:order]) or "0")
        pieces.append(Piece(f"_{order}", Span(axis, name, size, origin, f"{name}_in"), order=order))
    return tuple(pieces)


def loads_first(body: list[Stmt]) -> tuple[Stmt, ...]:
    """Scalars and loads before arithmetic, each group in its own order, so that a reader sees what a trip needs."""

    def rank(stmt: Stmt) -> int:
        if isinstance(stmt, (Scalar, Arange, Mask)):
            return 0
        loads = isinstance(stmt, Load) or (
            isinstance(stmt, When) and all(isinstance(inner, Load) for inner in stmt.body)
        )
        return 1 if loads else 2

    return tuple(sorted(body, key=rank))


def made(lowering: Lowering, *names: str) -> None:
    """Values of the loop, of all pieces, one after the other."""
    for name in names:
        for at in lowering.combinations(lowering.node_axes(name)):
            lowering.need(name, at)


def group_expr(layer: Layer, head: str) -> str:
    """The layout's index map for an operand shared by a group of heads, over the kernel's own scalars."""
    shared = next((name for name in OPERANDS if not layer.layout.per_head(name)), None)
    if shared is None:
        return head
    mapped = layer.layout.index(shared, sympy.Symbol("head", integer=True, nonnegative=True))
    return integer_text(mapped).replace("head ", f"{head} ", 1)


def has_groups(layer: Layer, outputs: bool = True) -> bool:
    """Whether an operand that a kernel reads is shared by a group of heads; without outputs it reads no C."""
    return any(not layer.layout.per_head(name) for name in (OPERANDS if outputs else OPERANDS[:2]))


def renamed(tensor: Tensor, **names: str) -> Tensor:
    """The tensor under another parameter name."""
    return replace(tensor, name=names.get(tensor.name, tensor.name))


def seq_sources(batch: str, first: str, last: str, level: Level = 1, scalar_level: int = 1) -> dict[str, Source]:
    """Sequence numbers per token, and those of the token before the chunk and of its last token."""
    return {
        "seq": Source("seq_idx", lambda at: (batch, on(at["j"], "j")), dtype="int", flag="HAS_SEQ_IDX", level=level),
        "seq_before": Source(
            "seq_idx", lambda _: (batch, f"maximum({first} - 1, 0)"), scalar_level, "int", "HAS_SEQ_IDX"
        ),
        "seq_last": Source("seq_idx", lambda _: (batch, last), scalar_level, "int", "HAS_SEQ_IDX"),
    }


def prepared_sources(
    layer: Layer, batch: str, last: str, level: Level = 1, descriptor: bool = False, near: bool = False
) -> dict[str, Source]:
    """Step sizes and running sums from `dt_cumsum`; the buffers are padded to whole chunks, so no mask is needed.

    near: the last sum is read from the tile that has them all, where registers are too few to keep it and its place.
    """

    def index(at: Pieces) -> tuple[Index, ...]:
        span = on(at["j"], "j")
        assert isinstance(span, Span)
        return batch, at["h"].scalar, replace(span, mask=None)

    found = {"dt": Source("dt", index, level=level, descriptor=descriptor)}
    if layer.discretisation.own:
        found["own"] = Source("own", index, level=level, descriptor=descriptor)
    if layer.family.decays:
        found["dA_cs"] = Source("dA_cs", index, level=level, descriptor=descriptor)
        found["dA_last"] = Source("dA_cs", lambda at: (batch, at["h"].scalar, last), near=near)
    return found


def mask(span: Span, limit: str) -> Mask:
    """Mask of a span: its offsets below what is left of the extent from its origin on."""
    origin = f"({span.origin})" if " " in span.origin else span.origin
    assert span.mask is not None
    return Mask(span.mask, span.axis, span.offsets, limit if span.origin == "0" else f"{limit} - {origin}")
