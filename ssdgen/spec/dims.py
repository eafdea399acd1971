"""Named dimensions and axes: the letters of the whole project, chosen once.  -> everything in spec and plan"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy

BATCH, SEQLEN, NHEADS, HEADDIM, DSTATE, NGROUPS, CHUNK = sympy.symbols(
    "batch seqlen nheads headdim dstate ngroups chunk", integer=True, positive=True
)

# axes of a block: head, row and column inside the chunk, head dimension, state dimension
HEAD, ROW, COL, P, N = sympy.symbols("h i j p n", integer=True, nonnegative=True)

# axes of the convolution and the norms: token, channel
TOKEN, CHANNEL = sympy.symbols("t d", integer=True, nonnegative=True)

# pairs of state dimensions, parts of a sequence
PAIR, PART = sympy.symbols("r c", integer=True, nonnegative=True)

AXES = {symbol.name: symbol for symbol in (HEAD, ROW, COL, P, N, TOKEN, CHANNEL, PAIR, PART)}
EXTENT = {"h": NHEADS, "i": CHUNK, "j": CHUNK, "p": HEADDIM, "n": DSTATE}


@lru_cache(maxsize=4096)
def entry(name: str, *axes: str) -> sympy.Indexed:
    """Entry of the named array at the given axes, e.g. `entry("x", "h", "j", "p")` is x[h, j, p]."""
    if not axes:
        raise ValueError(f"{name}: an entry needs at least one axis; use sympy.Symbol for a scalar")
    indexed: Any = sympy.Indexed(sympy.IndexedBase(name, real=True), *(AXES[axis] for axis in axes))
    return indexed


def axes_of(indexed: sympy.Indexed) -> tuple[str, ...]:
    """Axis names of an entry, in order."""
    return tuple(_text(index) for index in indexed.indices)


def name_of(indexed: Any) -> str:
    """Array name of an entry."""
    return _text(indexed.base.label)


def _text(expr: Any) -> str:
    # sympy's printer would say the same, and is slow
    return expr.name if isinstance(expr, sympy.Symbol) else str(expr)
