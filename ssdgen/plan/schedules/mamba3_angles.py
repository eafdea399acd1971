"""The angles of Mamba-3 from part to part of a head's tokens, in both directions.  spec.mamba3 -> Kernel

Kernels of the tokens run for all parts at once: a part's angles, or their adjoints, go on from what this walk over
short sums has found for it.
"""

from __future__ import annotations

from ...spec.dims import entry
from ...spec.graph import Graph
from ...spec.mamba3 import angles_adjoint, angles_graph
from ..ir import Arange, For, Full, Index, Kernel, Let, Load, Mask, Scalar, Span, Store, Tensor, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece, Source
from . import common
from .mamba3 import HEAD, PAIRS, RATES, parts_tensor

RENAME = {"angle_before_sum": "angle_before", "angle_on_sum": "angle_on"}
RUN = ("batch", "nheads", "rates")


def passing() -> Kernel:
    """The angle before each chunk, and the one after the last token."""
    beside = Piece("_before", Span("c", "c", "BLOCK_C", "c0 - 1", "before_in"), order=-1)
    return _walk(
        angles_graph(),
        ("turn_last", "angle_before", "nchunks"),
        ("angle_in", "angle_on", "angle_out"),
        "HAS_STATES",
        beside,
        "trip * BLOCK_C",
        Mask("before_in", "c", "c", "nchunks - c0 + 1", ("c + c0 > 0",)),
        "One program walks the chunks of a head: the angle before each, from what all before it have turned.",
    )


def passing_back() -> Kernel:
    """What the angle after each part gets, and the one before the first token."""
    beside = Piece("_after", Span("c", "c", "BLOCK_C", "c0 + 1", "after_in"), order=1)
    return _walk(
        angles_adjoint(),
        ("d_angle_part", "d_angle_after", "nparts"),
        ("d_angle_out", "d_angle_on", "d_angle_in"),
        "HAS_LEAVING",
        beside,
        "nparts - (trip + 1) * BLOCK_C",
        Mask("after_in", "c", "c", "nparts - c0 - 1", ("c + c0 + 1 >= 0",)),
        "One program walks the parts of a head from the last to the first: what the angle after each gets.",
    )


def _walk(
    graph: Graph,
    of_parts: tuple[str, str, str],
    of_run: tuple[str, str, str],
    flag: str,
    beside: Piece,
    first: str,
    beside_in: Mask,
    about: str,
) -> Kernel:
    """A walk over tiles of parts, with what is carried from tile to tile.

    of_parts: the sums that it reads, what it writes and how many there are; of_run: what it starts from, what goes on
    to the next tile, and the tensor that what is left after the last goes to.  One trip more than the parts may need
    takes the last sum along.
    """
    (sums, made, count), (entering, carried_on, leaving) = of_parts, of_run
    parts = Piece("", Span("c", "c", "BLOCK_C", "c0", "c_in"))
    at = {"h": HEAD, "c": parts, "r": PAIRS}

    def place(part: Piece) -> tuple[Index, ...]:
        assert part.span is not None
        return "b", "head", part.span, RATES

    lowering = Lowering(
        graph,
        {axis: (piece,) for axis, piece in at.items()},
        {sums: Source(sums, lambda at: place(at["c"]))},
        rename=RENAME,
        beside={"c": (beside,)},
    )
    carried, head = Value(entering, ("r",)), ("b", "head", RATES)
    lowering.bind(entering, at, carried, 1)
    lowering.store(1, made, at, made, place(parts))
    found = lowering.need(carried_on, at)
    assert found is not None
    lowering.emit(1, Let(carried, entry(found[0].name, "r"), (found[0],)))
    return Kernel(
        "mamba3_angles" if graph is angles_graph() else "mamba3_angle_gradients",
        about,
        (made, carried_on),
        (
            parts_tensor(sums, count),
            Tensor(entering, RUN, "any", flag=flag),
            parts_tensor(made, count, out=True),
            Tensor(leaving, RUN, "float32", out=True),
        ),
        ("batch", "nheads", "rates", count),
        (),
        ("BLOCK_C", "BLOCK_R"),
        (flag,),
        ("nheads", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("b", "program_id(1)", wide=True),
            Arange("c", "c", "BLOCK_C"),
            Arange("r", "r", "BLOCK_R"),
            Mask("rate_in", "r", "r", "rates"),
            When(flag, (Load(carried, entering, head),), (Full(carried, ("BLOCK_R",)),)),
            For(
                "trip",
                f"{count} // BLOCK_C + 1",
                (
                    Scalar("c0", first, wide=True),
                    Mask("c_in", "c", "c", f"{count} - c0", ("c + c0 >= 0",) if "nparts" in first else ()),
                    beside_in,
                    *merge(common.loads_first(lowering.scopes[1])),
                ),
            ),
            Store(leaving, head, carried),
        ),
        given=(sums, entering),
    )


__all__ = ["passing", "passing_back"]
