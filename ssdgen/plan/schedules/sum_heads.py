"""What chunks have left of the gradients of A, the bias and D, added up in one order.  -> Kernel

One launch instead of torch's sums, each of which costs the host as much as two launches, and their casts.
"""

from __future__ import annotations

from ...spec.dims import entry
from ..ir import Arange, For, Full, Kernel, Let, Load, Mask, Scalar, Span, Stmt, Store, Sum, Tensor, Value, When

NAME = "sum_heads"
# of one number for a head in each chunk: what leaves it, and the flag under which it is there
NUMBERS = {"d_A": "NEEDS_A", "d_dt_bias": "NEEDS_DT_BIAS"}


def kernel() -> Kernel:
    """Sums of a head over chunks; that of D also over headdim, unless D has a number for each of its channels.

    nparts: chunks of all rows; nrows: of d_D, which a walk may leave for each segment.
    """
    return Kernel(
        NAME,
        "One program adds up what chunks have left for one head, always in the same order.",
        (),
        (
            *(Tensor(name, ("nparts", "nheads"), "float32", "no", flag) for name, flag in NUMBERS.items()),
            Tensor("d_D", ("nrows", "nheads", "HEADDIM"), "float32", "no", "NEEDS_D"),
            *(Tensor(f"{name}_sum", ("nheads",), "any", "no", flag, out=True) for name, flag in NUMBERS.items()),
            Tensor("d_D_sum", ("nheads",), "any", "no", "D_BY_HEAD", out=True),
            Tensor("d_D_rows", ("nheads", "HEADDIM"), "any", "no", "D_BY_CHANNEL", out=True),
        ),
        ("nheads", "nparts", "nrows"),
        (),
        ("HEADDIM", "BLOCK_T", "BLOCK_R", "BLOCK_P"),
        (*NUMBERS.values(), "NEEDS_D", "D_BY_HEAD", "D_BY_CHANNEL"),
        ("nheads", "1"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Arange("t", "t", "BLOCK_T"),
            Scalar("trips", "cdiv(nparts, BLOCK_T)", narrow=True),
            *(When(flag, _numbers(name)) for name, flag in NUMBERS.items()),
            When("NEEDS_D", _channels()),
        ),
    )


def _numbers(name: str) -> tuple[Stmt, ...]:
    """One number for each chunk."""
    total, part, summed = Value(f"{name}_total", ("t",)), Value(f"{name}_part", ("t",)), Value(f"{name}_all", ())
    span = Span("t", "t", "BLOCK_T", "t0", "t_in")
    return (
        Full(total, ("BLOCK_T",)),
        For(
            "trip",
            "trips",
            (
                Scalar("t0", "trip * BLOCK_T", wide=True),
                Mask("t_in", "t", "t", "nparts - t0"),
                Load(part, name, (span, "head")),
                Let(total, entry(total.name, "t") + entry(part.name, "t"), (total, part)),
            ),
        ),
        Sum(summed, total, "t"),
        Store(f"{name}_sum", ("head",), summed),
    )


def _channels() -> tuple[Stmt, ...]:
    """A row of headdim for each chunk."""
    total, part = Value("d_D_total", ("r", "p")), Value("d_D_part", ("r", "p"))
    row, one = Value("d_D_row", ("p",)), Value("d_D_all", ())
    rows, channels = Span("r", "r", "BLOCK_R", "r0", "r_in"), Span("p", "p", "BLOCK_P", "0", "p_in")
    return (
        Arange("r", "r", "BLOCK_R"),
        Arange("p", "p", "BLOCK_P"),
        Mask("p_in", "p", "p", "HEADDIM"),
        Full(total, ("BLOCK_R", "BLOCK_P")),
        Scalar("turns", "cdiv(nrows, BLOCK_R)", narrow=True),
        For(
            "turn",
            "turns",
            (
                Scalar("r0", "turn * BLOCK_R", wide=True),
                Mask("r_in", "r", "r", "nrows - r0"),
                Load(part, "d_D", (rows, "head", channels)),
                Let(total, entry(total.name, "r", "p") + entry(part.name, "r", "p"), (total, part)),
            ),
        ),
        Sum(row, total, "r"),
        When("D_BY_CHANNEL", (Store("d_D_rows", ("head", channels), row),)),
        When("D_BY_HEAD", (Sum(one, row, "p"), Store("d_D_sum", ("head",), one))),
    )
