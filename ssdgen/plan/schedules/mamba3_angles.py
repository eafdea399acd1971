"""The angles of Mamba-3 from part to part of a head's tokens, in both directions.  spec.mamba3 -> Kernel

Kernels of the tokens run for all parts at once: a part's angles, or their adjoints, go on from what this walk over
short sums has found for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.dims import entry
from ...spec.graph import Graph
from ...spec.mamba3 import angles_adjoint, angles_graph
from ..ir import Arange, For, Full, Index, Kernel, Let, Load, Mask, Scalar, Span, Store, Tensor, Value, When
from ..lower import Lowering, merge
from ..pieces import Piece, Pieces, Source
from . import common
from .mamba3 import HEAD, PAIRS, RATES, parts_tensor

RENAME = {"angle_before_sum": "angle_before", "angle_on_sum": "angle_on"}
RUN = ("batch", "nheads", "rates")
PARTS = Piece("", Span("c", "c", "BLOCK_C", "c0", "c_in"))


@dataclass(frozen=True)
class Walk:
    """A walk over tiles of parts, BLOCK_C of them a trip.

    sums, made: what it reads of each part and what it writes for it; count: how many parts there are.
    entering, on, leaving: what it starts from, what goes on to the next trip, and the tensor that takes what is left.
    flag: option without which it starts from zero.  first: a trip's first part.
    beside: the parts whose sums a trip adds up, one before or after those that it writes for.
    masks: of both, in this order.
    """

    graph: Graph
    sums: str
    made: str
    count: str
    entering: str
    on: str
    leaving: str
    flag: str
    first: str
    beside: Piece
    masks: tuple[Mask, Mask]


def passing() -> Kernel:
    """The angle before each chunk, and the one after the last token."""
    walk = Walk(
        angles_graph(),
        sums="turn_last",
        made="angle_before",
        count="nchunks",
        entering="angle_in",
        on="angle_on",
        leaving="angle_out",
        flag="HAS_STATES",
        first="trip * BLOCK_C",
        beside=Piece("_before", Span("c", "c", "BLOCK_C", "c0 - 1", "before_in"), order=-1),
        masks=(
            Mask("c_in", "c", "c", "nchunks - c0"),
            Mask("before_in", "c", "c", "nchunks - c0 + 1", ("c + c0 > 0",)),
        ),
    )
    about = "One program walks the chunks of a head: the angle before each, from what all before it have turned."
    return _kernel("mamba3_angles", about, walk)


def passing_back() -> Kernel:
    """What the angle after each part gets, and the one before the first token."""
    walk = Walk(
        angles_adjoint(),
        sums="d_angle_part",
        made="d_angle_after",
        count="nparts",
        entering="d_angle_out",
        on="d_angle_on",
        leaving="d_angle_in",
        flag="HAS_LEAVING",
        first="nparts - (trip + 1) * BLOCK_C",
        beside=Piece("_after", Span("c", "c", "BLOCK_C", "c0 + 1", "after_in"), order=1),
        masks=(
            Mask("c_in", "c", "c", "nparts - c0", ("c + c0 >= 0",)),
            Mask("after_in", "c", "c", "nparts - c0 - 1", ("c + c0 + 1 >= 0",)),
        ),
    )
    about = "One program walks the parts of a head from the last to the first: what the angle after each gets."
    return _kernel("mamba3_angle_gradients", about, walk)


def _place(at: Pieces) -> tuple[Index, ...]:
    return "b", "head", common.on(at["c"], "c"), RATES


def _kernel(name: str, about: str, walk: Walk) -> Kernel:
    """The walk as a kernel.  One trip more than the parts may need takes the last sum along."""
    at = {"h": HEAD, "c": PARTS, "r": PAIRS}
    pieces, sources = {axis: (piece,) for axis, piece in at.items()}, {walk.sums: Source(walk.sums, _place)}
    lowering = Lowering(walk.graph, pieces, sources, rename=RENAME, beside={"c": (walk.beside,)})
    carried, head = Value(walk.entering, ("r",)), ("b", "head", RATES)
    lowering.bind(walk.entering, at, carried, 1)
    lowering.store(1, walk.made, at, walk.made, _place(at))
    on = lowering.need(walk.on, at)
    assert on is not None
    lowering.emit(1, Let(carried, entry(on[0].name, "r"), (on[0],)))
    return Kernel(
        name,
        about,
        (walk.made, walk.on),
        (
            parts_tensor(walk.sums, walk.count),
            Tensor(walk.entering, RUN, "any", flag=walk.flag),
            parts_tensor(walk.made, walk.count, out=True),
            Tensor(walk.leaving, RUN, "float32", out=True),
        ),
        ("batch", "nheads", "rates", walk.count),
        (),
        ("BLOCK_C", "BLOCK_R"),
        (walk.flag,),
        ("nheads", "batch"),
        (
            Scalar("head", "program_id(0)", wide=True),
            Scalar("b", "program_id(1)", wide=True),
            Arange("c", "c", "BLOCK_C"),
            Arange("r", "r", "BLOCK_R"),
            Mask("rate_in", "r", "r", "rates"),
            When(walk.flag, (Load(carried, walk.entering, head),), (Full(carried, ("BLOCK_R",)),)),
            For(
                "trip",
                f"{walk.count} // BLOCK_C + 1",
                (
                    Scalar("c0", walk.first, wide=True),
                    *walk.masks,
                    *merge(common.loads_first(lowering.scopes[1])),
                ),
            ),
            Store(walk.leaving, head, carried),
        ),
        given=(walk.sums, walk.entering),
    )


__all__ = ["passing", "passing_back"]
