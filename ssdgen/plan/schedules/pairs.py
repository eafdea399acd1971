"""What lies in memory pair after pair: moved in one piece, split and joined in registers.  -> mamba3

A tensor that holds pairs along its last dimension is read and written over n, positions of state dimensions, so that
a warp's accesses are contiguous; values of a graph are over r, the pairs, each number of a pair a value of its own.
"""

from __future__ import annotations

import re

from ..ir import Arange, Index, Join, Load, Mask, Span, Split, Stmt, Store, Value
from ..lower import Lowering
from ..pieces import Pieces

# both numbers of each pair, one pair after the other
COLUMNS = Span("n", "n", "2 * BLOCK_R", "0", "n_in")


def half(name: str, k: int) -> str:
    """Name of number k of each pair of a value: B_0_turned for B_turned."""
    found = re.fullmatch(r"((?:d_)?(?:B|C|state))(|_.*)", name)
    assert found is not None, f"{name} has no pairs"
    return f"{found[1]}_{k}{found[2]}"


def masks() -> tuple[Stmt, ...]:
    return Arange("n", "n", COLUMNS.size), Mask("n_in", "n", "n", "DSTATE")


def load(
    lowering: Lowering,
    name: str,
    at: Pieces,
    tensor: str,
    index: tuple[Index, ...],
    level: int = 1,
    dtype: str = "float32",
) -> None:
    """Load the pairs of a value at `level`; its halves then stand in variables of their own.

    index: of the dimensions before the last one.
    """
    axes, sizes = _rows(index)
    whole = Value(name, (*axes, COLUMNS.axis), dtype)
    first, second = (Value(half(name, k), (*axes, "r"), dtype) for k in (0, 1))
    lowering.emit(level, Load(whole, tensor, (*index, COLUMNS)))
    lowering.emit(level, Split(first, second, whole, (*sizes, "BLOCK_R")))
    for value in (first, second):
        lowering.bind(value.name, at, value, level)


def join(lowering: Lowering, name: str, at: Pieces, index: tuple[Index, ...], level: int = 1) -> Value:
    """Make both halves of a value, and its pairs of them.  index: of the dimensions before the last one."""
    axes, sizes = _rows(index)
    made = [lowering.need(half(name, k), at) for k in (0, 1)]
    assert made[0] is not None and made[1] is not None
    whole = Value(name, (*axes, COLUMNS.axis))
    lowering.emit(level, Join(whole, made[0][0], made[1][0], (*sizes, COLUMNS.size)))
    return whole


def store(lowering: Lowering, name: str, at: Pieces, tensor: str, index: tuple[Index, ...], level: int = 1) -> None:
    """Make the pairs of a value and store them.  index: of the dimensions before the last one."""
    whole = join(lowering, name, at, index, level)
    lowering.emit(level, Store(tensor, (*index, COLUMNS), whole))


def _rows(index: tuple[Index, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Axes and sizes of a tile along the dimensions before the last one."""
    spans = tuple(at for at in index if isinstance(at, Span))
    return tuple(at.axis for at in spans), tuple(at.size for at in spans)


__all__ = ["COLUMNS", "half", "join", "load", "masks", "store"]
