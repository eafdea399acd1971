"""One token of Mamba-3: a program has some rows of a head's state.  spec.mamba3.step_graph -> Kernel

The state's pairs are split into two tiles, number 0 of each and number 1: what turns is then pointwise.
"""

from __future__ import annotations

from ...spec.mamba3 import step_graph
from ..ir import Arange, Kernel, Mask, Scalar, Span, Stmt, Store, Tensor, When
from ..lower import Lowering, merge
from ..pieces import Piece, Pieces, Source
from . import common, pairs
from .mamba3 import HEAD, PAIRS, RATES, RENAME, biases, pair_masks

HEADS = ("batch", "nheads")
ROWS = Span("p", "p", "BLOCK_P", "p0", "p_in")


def kernel() -> Kernel:
    """y of a token and the state after it; angles and B as the next token needs them."""
    at: Pieces = {"h": HEAD, "p": Piece("", ROWS), "r": PAIRS}
    names = {"y_ssm": "y", "y_skip": "y", "angle_sum": "angle_out", **RENAME}
    lowering = Lowering(step_graph(), {axis: (piece,) for axis, piece in at.items()}, _sources(), rename=names)
    for name in ("B", "C"):
        pairs.load(lowering, name, at, name, ("b", "group"), dtype="operand")
        pairs.load(lowering, f"{name}_bias", at, f"{name}_bias", ("head",))
    pairs.load(lowering, "B_before", at, "B_before", ("b", "head"))
    pairs.load(lowering, "state", at, "state", ("b", "head", ROWS))
    pairs.store(lowering, "state_out", at, "state_out", ("b", "head", ROWS))
    lowering.store(1, "y", at, "y", ("b", "head", ROWS))
    # what all programs of a head make, one of them stores
    angle = lowering.need("angle_out", at)
    assert angle is not None
    once: tuple[Stmt, ...] = (
        Store("angle_out", ("b", "head", RATES), angle[0]),
        Store("B_out", ("b", "head", pairs.COLUMNS), pairs.join(lowering, "B_turned", at, ("b", "head"))),
    )
    return Kernel(
        "mamba3_step",
        "One program advances some rows of a head's state by one token, and writes y of these rows.",
        ("y", "state_0_out", "state_1_out", "angle_out", "B_0_turned", "B_1_turned"),
        _tensors(),
        ("batch", "nheads", "ngroups", "rates"),
        (),
        ("HEADDIM", "DSTATE", "BLOCK_P", "BLOCK_R"),
        ("HAS_D", "HAS_Z"),
        ("cdiv(HEADDIM, BLOCK_P)", "nheads", "batch"),
        (
            Scalar("p0", "program_id(0) * BLOCK_P"),
            Scalar("head", "program_id(1)", wide=True),
            Scalar("group", "head // (nheads // ngroups)"),
            Scalar("b", "program_id(2)", wide=True),
            Arange("p", "p", "BLOCK_P"),
            Mask("p_in", "p", "p", "HEADDIM - p0"),
            *pair_masks(),
            *merge(common.loads_first(lowering.scopes[1])),
            When("p0 == 0", once),
        ),
        turns=True,
    )


def _sources() -> dict[str, Source]:
    found = {name: Source(name, lambda _: ("b", "head")) for name in ("adt", "step", "mix")}
    found |= {name: Source(name, lambda _: ("b", "head", RATES)) for name in ("rate", "angle_in")}
    found |= {name: Source(name, lambda _: ("b", "head", ROWS), dtype="operand") for name in ("x", "x_before")}
    found["z"] = Source("z", lambda _: ("b", "head", ROWS), dtype="operand", flag="HAS_Z")
    found["D"] = Source("D", lambda _: ("head", ROWS), flag="HAS_D")
    return found


def _tensors() -> tuple[Tensor, ...]:
    rows = (*HEADS, "HEADDIM")
    return (
        *(Tensor(name, HEADS, "any", "all") for name in ("adt", "step", "mix")),
        Tensor("rate", (*HEADS, "rates"), "any", "unit"),
        Tensor("angle_in", (*HEADS, "rates"), "any"),
        *(Tensor(name, ("batch", "ngroups", "DSTATE"), "operand", "unit") for name in ("B", "C")),
        *biases(),
        Tensor("x", rows, "operand", "unit"),
        Tensor("x_before", rows, "operand"),
        Tensor("B_before", (*HEADS, "DSTATE"), "any"),
        Tensor("D", ("nheads", "HEADDIM"), "any", "all", "HAS_D"),
        Tensor("z", rows, "operand", "unit", "HAS_Z"),
        Tensor("state", (*rows, "DSTATE"), "state"),
        Tensor("y", rows, "operand", out=True),
        Tensor("state_out", (*rows, "DSTATE"), "state", out=True),
        Tensor("angle_out", (*HEADS, "rates"), "float32", out=True),
        Tensor("B_out", (*HEADS, "DSTATE"), "any", out=True),
    )


__all__ = ["kernel"]
