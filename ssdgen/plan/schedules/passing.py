"""The scan over segments (or chunks): what each leaves behind becomes what the next one starts from.  chunk_graph -> Kernel

The centre factor of the block decomposition alone, on summaries (state, total decay); element-wise in the state, so it is flattened.
"""

from __future__ import annotations

import sympy

from ...spec.decompose import chunk_graph, decay
from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Span, Store, Tensor, Value, When
from ..ir import Scalar as ScalarStmt
from ..lower import Lowering, Piece, Source
from . import common


def kernel(layer: Layer) -> Kernel:
    """Entering states, written over the summaries in place, and the final state."""
    span = Span("n", "n", "BLOCK", "n0", "n_in")
    state, at = Value("state", ("n",)), {"h": Piece("", scalar="head"), "p": Piece(""), "n": Piece("", span)}
    summary = ("b", "segment", "head", span)
    lowering = Lowering(
        chunk_graph(layer),
        {axis: (piece,) for axis, piece in at.items()},
        {
            "local_state": Source("summary", lambda _: summary),
        },
        rename=common.RENAME,
        value_axes={name: ("h", "n") for name in ("state", "state_out", "local_state")},
    )
    lowering.bind("state", at, state, 1)
    total, centre = Value("total", ()), Value("centre_decay", ())
    lowering.emit(1, Load(total, "total", ("b", "segment", "head")))
    # boundaries are in the total already: minus infinity
    lowering.emit(1, Let(centre, decay(sympy.Symbol("total", real=True)), (total,)))
    lowering.bind("centre_decay", at, centre, 1)
    lowering.need("local_state", at)
    lowering.emit(1, Store("summary", summary, state))
    lowering.need("state_out", at)
    body = tuple(lowering.scopes[1])
    return Kernel(
        "state_passing",
        "One program carries a block of the state across all segments; each summary is replaced by the state that enters its segment.",
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
            For("segment", "nsegments", body),
            When("STORE_FINAL", (Store("final_states", ("b", "head", span), state),)),
        ),
    )


def _tensors() -> tuple[Tensor, ...]:
    return (
        Tensor("summary", ("batch", "nsegments", "nheads", "state_size"), "state", out=True),
        Tensor("total", ("batch", "nsegments", "nheads"), "float32"),
        Tensor("initial_states", ("batch", "nheads", "state_size"), "state", flag="HAS_ENTERING"),
        Tensor("final_states", ("batch", "nheads", "state_size"), "state", flag="STORE_FINAL", out=True),
    )
