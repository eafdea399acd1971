"""The scan over segments: what each leaves behind becomes what the next one starts from.  chunk_graph -> Kernel

The centre factor of the block decomposition alone, on summaries (state, total decay) of segments or chunks.  It is
element-wise in the state, which is flattened.  Backwards it is the same scan over adjoints, from the last segment on.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...spec.decompose import chunk_graph, decay
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Span, Stmt, Store, Tensor, Value, When
from ..ir import Scalar as ScalarStmt
from ..lower import Lowering, Piece
from . import adjoint, common

SIZES = ("batch", "nheads", "nsegments", "state_size")
TOTAL = Tensor("total", ("batch", "nsegments", "nheads"), "float32")
AHEAD = 4  # summaries that are loaded together: each load waits for memory, and a store in between would order them


@dataclass(frozen=True)
class Way:
    """A direction: tensors of the summaries, of the state that it begins with and of the one that it ends with, and the
    flags under which these two are there."""

    reverse: bool
    summary: str = "summary"
    first: str = "initial_states"
    has_first: str = "HAS_ENTERING"
    last: str = "final_states"
    stores_last: str = "STORE_FINAL"


def kernel(layer: Layer, reverse: bool = False) -> Kernel:
    """Entering states, written over the summaries in place, and the final state.

    reverse: adjoints of the states that leave, from that of the final state, and the adjoint of the initial one.
    """
    about = (
        "One program carries a block of the state across all segments; each summary is replaced by the state that "
        "enters its segment."
    )
    if reverse:
        about = (
            "One program carries a block of the state's adjoint across all segments from the last to the first; each "
            "summary is replaced by the adjoint of the state that leaves its segment."
        )
    way = Way(reverse)
    return Kernel(
        "adjoint_passing" if reverse else "state_passing",
        about,
        ("d_state",) if reverse else ("state_out",),
        (_summary(way), TOTAL, *_ends(way)),
        SIZES,
        (),
        ("BLOCK",),
        (way.has_first, way.stores_last),
        ("cdiv(state_size, BLOCK)", "nheads", "batch"),
        (*_place("program_id(0) * BLOCK"), *_carry(layer, way)),
        given=("d_state_y_state", "centre_decay") if reverse else (),
    )


def both(layer: Layer) -> Kernel:
    """Both directions in one launch: half of the programs have states, the others their adjoints."""
    states = Way(False, stores_last="")
    adjoints = Way(True, "d_summary", "d_final_states", "HAS_LEAVING", "d_initial", "STORE_INITIAL")
    return Kernel(
        "both_passing",
        "One program carries a block of the state across all segments, or of its adjoint from the last to the first; "
        "each summary is replaced by what enters its segment, or by the adjoint of what leaves it.",
        ("state_out", "d_state"),
        (_summary(states), _summary(adjoints), TOTAL, _ends(states)[0], *_ends(adjoints)),
        SIZES,
        (),
        ("BLOCK",),
        ("HAS_ENTERING", "HAS_LEAVING", "STORE_INITIAL"),
        ("2 * cdiv(state_size, BLOCK)", "nheads", "batch"),
        (
            ScalarStmt("blocks", "cdiv(state_size, BLOCK)"),
            ScalarStmt("program", "program_id(0)"),
            *_place("program % blocks * BLOCK"),
            When("program < blocks", _carry(layer, states), _carry(layer, adjoints)),
        ),
        given=("local_state", "d_state_y_state", "centre_decay"),
    )


def _place(first: str) -> tuple[Stmt, ...]:
    """Which block of which head's state a program has."""
    return (
        ScalarStmt("n0", first),
        ScalarStmt("head", "program_id(1)", wide=True),
        ScalarStmt("b", "program_id(2)", wide=True),
        Arange("n", "n", "BLOCK"),
        Mask("n_in", "n", "n", "state_size - n0"),
    )


def _carry(layer: Layer, way: Way) -> tuple[Stmt, ...]:
    """The walk over the segments, AHEAD of them a trip."""
    span = Span("n", "n", "BLOCK", "n0", "n_in")
    state = Value("state", ("n",))
    body: list[Stmt] = [ScalarStmt("first", f"step * {AHEAD}", wide=True)]
    body += [stmt for k in range(AHEAD) for stmt in _loads(k, span, way)]
    for k in range(AHEAD):
        body.append(When(f"{_number(k)} < nsegments", _step(layer, k, span, way)))
    stores = (When(way.stores_last, (Store(way.last, ("b", "head", span), state),)),) if way.stores_last else ()
    return (
        When(way.has_first, (Load(state, way.first, ("b", "head", span)),), (Full(state, ("BLOCK",)),)),
        For("step", f"cdiv(nsegments, {AHEAD})", tuple(body)),
        *stores,
    )


def _number(k: int) -> str:
    """Number of a segment: 64 bits wide, as it is multiplied by a stride."""
    return f"first + {k}" if k else "first"


def _visited(k: int, reverse: bool) -> str:
    """The segment that is visited at number k of a trip, where there is one."""
    return f"nsegments - 1 - ({_number(k)})" if reverse else _number(k)


def _loads(k: int, span: Span, way: Way) -> tuple[Stmt, ...]:
    """Summary number k of a trip; past the end the last one is read again, and not used."""
    segment = f"minimum({_number(k)}, nsegments - 1)" if k else "first"
    if way.reverse:
        segment = f"maximum({_visited(k, True)}, 0)" if k else _visited(k, True)
    return (
        Load(Value(f"total_{k}", ()), "total", ("b", segment, "head")),
        Load(Value(f"local_state_{k}", ("n",)), way.summary, ("b", segment, "head", span)),
    )


def _step(layer: Layer, k: int, span: Span, way: Way) -> tuple[Stmt, ...]:
    """Summary number k becomes the state that enters its segment, and the state moves on."""
    reverse = way.reverse
    at = {"h": Piece("", scalar="head"), "p": Piece(""), "n": Piece("", span)}
    carried, local, made = ("state", "local_state", "state_out")
    if reverse:
        carried, local, made = ("d_state_out", "d_state_y_state", "d_state")
    axes: dict[str, tuple[str, ...]] = dict.fromkeys((carried, made, local), ("h", "n"))
    lowering = Lowering(
        adjoint.graph(layer) if reverse else chunk_graph(layer),
        {axis: (piece,) for axis, piece in at.items()},
        {},
        rename={**common.RENAME, "d_state": "state"} if reverse else common.RENAME,
        value_axes=axes,
    )
    state, total = Value("state", ("n",)), Value(f"total_{k}", ())
    lowering.emit(1, Store(way.summary, ("b", _visited(k, reverse), "head", span), state))
    centre = Value("centre_decay", ())
    # boundaries are in the total already: minus infinity
    lowering.emit(1, Let(centre, decay(sympy.Symbol(total.name, real=True)), (total,)))
    lowering.bind(carried, at, state, 1)
    lowering.bind("centre_decay", at, centre, 1)
    lowering.bind(local, at, Value(f"local_state_{k}", ("n",)), 1)
    lowering.need(made, at)
    return tuple(lowering.scopes[1])


def _summary(way: Way) -> Tensor:
    return Tensor(way.summary, ("batch", "nsegments", "nheads", "state_size"), "state", out=True)


def _ends(way: Way) -> tuple[Tensor, Tensor]:
    """The state that it begins with, and the one that it ends with."""
    state = ("batch", "nheads", "state_size")
    return (
        Tensor(way.first, state, "state", flag=way.has_first),
        Tensor(way.last, state, "state", flag=way.stores_last, out=True),
    )
