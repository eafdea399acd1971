"""Tiles of an axis, and where inputs come from: what a schedule tells the lowering.  schedules -> lower"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .ir import Index, Span


@dataclass(frozen=True)
class Piece:
    """One tile of an axis: a span of tile positions or, for heads, one scalar index.

    position: variable with the position inside the chunk of each row; order: where the piece stands on its axis;
    alias: suffix of a value over columns that is read here on rows, where the two are different tiles.
    """

    suffix: str
    span: Span | None = None
    scalar: str = ""
    position: str = ""
    order: int = 0
    alias: str = ""


Pieces = dict[str, Piece]


@dataclass(frozen=True)
class Source:
    """Where an input value comes from: a tensor and, per pieces, the index into it."""

    tensor: str = ""
    index: Callable[[Pieces], tuple[Index, ...]] = lambda pieces: ()
    level: int | Callable[[Pieces], int] = 1
    dtype: str = "float32"
    flag: str | None = None
    descriptor: bool = False
    near: bool = False
    axes: tuple[str, ...] | None = None
