"""The scan over segments: what each leaves behind becomes what the next one starts from.  chunk_graph -> Kernel

The centre factor of the block decomposition alone, on summaries (state, total decay) of segments or chunks.  It is
element-wise in the state, which is flattened.  Backwards it is the same scan over adjoints, from the last segment on.
"""

from __future__ import annotations

import sympy

from ...spec.decompose import chunk_graph, decay
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Span, Stmt, Store, Tensor, Value, When
from ..ir import Scalar as ScalarStmt
from ..lower import Lowering, Piece
from . import adjoint, common

AHEAD = 4  # summaries that are loaded together: each load waits for memory, and a store in between would order them


def kernel(layer: Layer, reverse: bool = False) -> Kernel:
    """Entering states, written over the summaries in place, and the final state.

    reverse: adjoints of the states that leave, from that of the final state, and the adjoint of the initial one.
    """
    span = Span("n", "n", "BLOCK", "n0", "n_in")
    state = Value("state", ("n",))
    body: list[Stmt] = [ScalarStmt("first", f"step * {AHEAD}", wide=True)]
    body += [stmt for k in range(AHEAD) for stmt in _loads(k, span, reverse)]
    for k in range(AHEAD):
        body.append(When(f"{_number(k)} < nsegments", _step(layer, k, span, reverse)))
    about = (
        "One program carries a block of the state across all segments; each summary is replaced by the state that "
        "enters its segment."
    )
    if reverse:
        about = (
            "One program carries a block of the state's adjoint across all segments from the last to the first; each "
            "summary is replaced by the adjoint of the state that leaves its segment."
        )
    return Kernel(
        "adjoint_passing" if reverse else "state_passing",
        about,
        ("d_state",) if reverse else ("state_out",),
        _tensors(),
        ("batch", "nheads", "nsegments", "state_size"),
        (),
        ("BLOCK",),
        ("HAS_ENTERING", "STORE_FINAL"),
        ("cdiv(state_size, BLOCK)", "nheads", "batch"),
        (
            ScalarStmt("n0", "program_id(0) * BLOCK"),
            ScalarStmt("head", "program_id(1)", wide=True),
            ScalarStmt("b", "program_id(2)", wide=True),
            Arange("n", "n", "BLOCK"),
            Mask("n_in", "n", "n", "state_size - n0"),
            When(
                "HAS_ENTERING",
                (Load(state, "initial_states", ("b", "head", span)),),
                (Full(state, ("BLOCK",)),),
            ),
            For("step", f"cdiv(nsegments, {AHEAD})", tuple(body)),
            When("STORE_FINAL", (Store("final_states", ("b", "head", span), state),)),
        ),
        given=("d_state_y_state", "centre_decay") if reverse else (),
    )


def _number(k: int) -> str:
    """Number of a segment: 64 bits wide, as it is multiplied by a stride."""
    return f"first + {k}" if k else "first"


def _place(k: int, reverse: bool) -> str:
    """The segment that is visited at number k of a trip, where there is one."""
    return f"nsegments - 1 - ({_number(k)})" if reverse else _number(k)


def _loads(k: int, span: Span, reverse: bool) -> tuple[Stmt, ...]:
    """Summary number k of a trip; past the end the last one is read again, and not used."""
    segment = f"minimum({_number(k)}, nsegments - 1)" if k else "first"
    if reverse:
        segment = f"maximum({_place(k, reverse)}, 0)" if k else _place(k, reverse)
    return (
        Load(Value(f"total_{k}", ()), "total", ("b", segment, "head")),
        Load(Value(f"local_state_{k}", ("n",)), "summary", ("b", segment, "head", span)),
    )


def _step(layer: Layer, k: int, span: Span, reverse: bool) -> tuple[Stmt, ...]:
    """Summary number k becomes the state that enters its segment, and the state moves on."""
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
    lowering.emit(1, Store("summary", ("b", _place(k, reverse), "head", span), state))
    centre = Value("centre_decay", ())
    # boundaries are in the total already: minus infinity
    lowering.emit(1, Let(centre, decay(sympy.Symbol(total.name, real=True)), (total,)))
    lowering.bind(carried, at, state, 1)
    lowering.bind("centre_decay", at, centre, 1)
    lowering.bind(local, at, Value(f"local_state_{k}", ("n",)), 1)
    lowering.need(made, at)
    return tuple(lowering.scopes[1])


def _tensors() -> tuple[Tensor, ...]:
    return (
        Tensor("summary", ("batch", "nsegments", "nheads", "state_size"), "state", out=True),
        Tensor("total", ("batch", "nsegments", "nheads"), "float32"),
        Tensor("initial_states", ("batch", "nheads", "state_size"), "state", flag="HAS_ENTERING"),
        Tensor("final_states", ("batch", "nheads", "state_size"), "state", flag="STORE_FINAL", out=True),
    )
