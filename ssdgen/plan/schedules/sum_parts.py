"""What programs have left of the gradients of channels, added up in one order.  -> Kernel

One launch instead of torch's sum, its turn and its casts: the parts are in the cache still, and few.  A second kernel
may be launched while the programs that leave the parts still run: the launch itself overlaps with them.
"""

from __future__ import annotations

from ...spec.dims import entry
from ..ir import Arange, For, Full, Index, Kernel, Let, Load, Mask, Scalar, Span, Store, Sum, Tensor, Value, Wait, When

NAME = "sum_parts"
EARLY = "sum_parts_early"


def kernel(early: bool = False) -> Kernel:
    """Column k of d_weight from the k-th row of every part, and d_bias from the row after the last column.

    early: it waits itself for what leaves the parts, on GPUs where it may be launched before that has ended.
    """
    total, part, summed = Value("total", ("t", "d")), Value("part", ("t", "d")), Value("summed", ("d",))
    channels, parts = Span("d", "d", "BLOCK_D", "d0", "d_in"), Span("t", "t", "BLOCK_T", "t0", "t_in")
    place: tuple[Index, ...] = (parts, "column", channels)
    return Kernel(
        EARLY if early else NAME,
        "One program adds up the parts of one gradient of a tile of channels, always in the same order.",
        (),
        (
            Tensor("parts", ("nparts", "sums", "dim"), "float32", "no"),
            Tensor("d_weight", ("dim", "width"), "any", "no", out=True),
            Tensor("d_bias", ("dim",), "any", "no", "HAS_BIAS", out=True),
        ),
        ("nparts", "sums", "dim", "width", "columns"),
        (),
        ("BLOCK_T", "BLOCK_D"),
        ("HAS_BIAS",),
        ("cdiv(dim, BLOCK_D)", "columns"),
        (
            Scalar("d0", "program_id(0) * BLOCK_D"),
            Scalar("column", "program_id(1)"),
            Arange("d", "d", "BLOCK_D"),
            Mask("d_in", "d", "d", "dim - d0"),
            Arange("t", "t", "BLOCK_T"),
            Full(total, ("BLOCK_T", "BLOCK_D")),
            Scalar("trips", "cdiv(nparts, BLOCK_T)", narrow=True),
            *((Wait(),) if early else ()),
            For(
                "trip",
                "trips",
                (
                    Scalar("t0", "trip * BLOCK_T", wide=True),
                    Mask("t_in", "t", "t", "nparts - t0"),
                    Load(part, "parts", place),
                    Let(total, entry("total", "t", "d") + entry("part", "t", "d"), (total, part)),
                ),
            ),
            Sum(summed, total, "t"),
            When("column < width", (Store("d_weight", (channels, "column"), summed),)),
            When("HAS_BIAS", (When("column == width", (Store("d_bias", (channels,), summed),)),)),
        ),
    )
