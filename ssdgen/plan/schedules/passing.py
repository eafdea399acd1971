"""The scan over segments: what each leaves behind becomes what the next one starts from.  chunk_graph -> Kernel

The centre factor of the block decomposition alone, on summaries (state, total decay) of segments or chunks.  It is
element-wise in the state, which is flattened.
"""

from __future__ import annotations

import sympy

from ...spec.decompose import chunk_graph, decay
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Span, Stmt, Store, Tensor, Value, When
from ..ir import Scalar as ScalarStmt
from ..lower import Lowering, Piece
from . import common

AHEAD = 4  # summaries that are loaded together: each load waits for memory, and a store in between would order them


def kernel(layer: Layer) -> Kernel:
    """Entering states, written over the summaries in place, and the final state."""
    span = Span("n", "n", "BLOCK", "n0", "n_in")
    state = Value("state", ("n",))
    body: list[Stmt] = [ScalarStmt("first", f"step * {AHEAD}", wide=True)]
    body += [stmt for k in range(AHEAD) for stmt in _loads(k, span)]
    for k in range(AHEAD):
        body.append(When(f"{_number(k)} < nsegments", _step(layer, k, span)))
    return Kernel(
        "state_passing",
        "One program carries a block of the state across all segments; each summary is replaced by the state that "
        "enters its segment.",
        ("state_out",),
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
    )


def _number(k: int) -> str:
    """Number of a segment: 64 bits wide, as it is multiplied by a stride."""
    return f"first + {k}" if k else "first"


def _loads(k: int, span: Span) -> tuple[Stmt, ...]:
    """Summary number k of a trip; past the end the last one is read again, and not used."""
    segment = f"minimum({_number(k)}, nsegments - 1)" if k else "first"
    return (
        Load(Value(f"total_{k}", ()), "total", ("b", segment, "head")),
        Load(Value(f"local_state_{k}", ("n",)), "summary", ("b", segment, "head", span)),
    )


def _step(layer: Layer, k: int, span: Span) -> tuple[Stmt, ...]:
    """Summary number k becomes the state that enters its segment, and the state moves on."""
    at = {"h": Piece("", scalar="head"), "p": Piece(""), "n": Piece("", span)}
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(("state", "state_out", "local_state"), ("h", "n"))
    lowering = Lowering(
        chunk_graph(layer),
        {axis: (piece,) for axis, piece in at.items()},
        {},
        rename=common.RENAME,
        value_axes=axes,
    )
    state, total = Value("state", ("n",)), Value(f"total_{k}", ())
    lowering.emit(1, Store("summary", ("b", _number(k), "head", span), state))
    centre = Value("centre_decay", ())
    # boundaries are in the total already: minus infinity
    lowering.emit(1, Let(centre, decay(sympy.Symbol(total.name, real=True)), (total,)))
    lowering.bind("state", at, state, 1)
    lowering.bind("centre_decay", at, centre, 1)
    lowering.bind("local_state", at, Value(f"local_state_{k}", ("n",)), 1)
    lowering.need("state_out", at)
    return tuple(lowering.scopes[1])


def _tensors() -> tuple[Tensor, ...]:
    return (
        Tensor("summary", ("batch", "nsegments", "nheads", "state_size"), "state", out=True),
        Tensor("total", ("batch", "nsegments", "nheads"), "float32"),
        Tensor("initial_states", ("batch", "nheads", "state_size"), "state", flag="HAS_ENTERING"),
        Tensor("final_states", ("batch", "nheads", "state_size"), "state", flag="STORE_FINAL", out=True),
    )
