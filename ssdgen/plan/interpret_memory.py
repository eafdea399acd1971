"""Integer expressions of a plan, its tensors and where tiles meet them.  -> interpret"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np

from . import ir
from .broken import Misfit, Race, Undefined

Array = np.ndarray[Any, Any]


@lru_cache(maxsize=4096)
def _code(text: str) -> CodeType:
    return compile(text, text, "eval")


_CALLS = {
    "__builtins__": {},
    "cdiv": lambda extent, size: -(-extent // size),
    "minimum": np.minimum,
    "maximum": np.maximum,
    # what a compiler is not to see through is nothing to an interpreter
    "hidden": lambda value: value,
}


def scalar(text: str, names: Mapping[str, Any]) -> Any:
    """Value of an integer expression or condition: one number, or one per position of an arange."""
    try:
        return eval(_code(text), _CALLS, names)  # type: ignore[arg-type]
    except NameError as error:
        raise Undefined(f"{text}: {error}") from error


def integer(text: str, names: Mapping[str, Any]) -> int:
    value = scalar(text, names)
    if np.ndim(value) or int(value) != value:
        raise Misfit(f"{text} is {value}; it must be one integer")
    return int(value)


@dataclass
class Memory:
    """One tensor.

    owner: for an output, number of the program that touched each element first, -1 for nobody; block: extents of its
    descriptor's block.
    """

    tensor: ir.Tensor
    array: Array | None
    owner: Array | None
    block: tuple[int, ...] | None = None

    @classmethod
    def of(cls, kernel: ir.Kernel, tensor: ir.Tensor, array: Array | None, names: Mapping[str, Any]) -> Memory:
        if array is None:
            if tensor.flag is None or names.get(tensor.flag, False):
                raise ValueError(f"{kernel.name} needs the tensor {tensor.name}; give it or unset {tensor.flag}")
            return cls(tensor, None, None)
        extents = tuple(integer(dim, names) for dim in tensor.dims)
        if array.shape != extents:
            stated = f"({', '.join(tensor.dims)}) = {extents}"
            raise ValueError(f"{tensor.name} has shape {array.shape}; {kernel.name} has it as {stated}")
        return cls(tensor, array, np.full(array.shape, -1) if tensor.out else None)

    def touch(self, where: tuple[Array, ...], program: int) -> None:
        if self.owner is None:
            return
        if others := {int(by) for by in np.unique(self.owner[where])} - {-1, program}:
            raise Race(f"programs {program} and {min(others)} both touch an element of {self.tensor.name}")
        self.owner[where] = program


@dataclass
class Place:
    """Where a tile meets a tensor.

    where: positions in the tensor; slots: the same in a tile over all dimensions of the tensor; extents: of that tile,
    one where the index is a scalar; axes: names of the other dimensions, in order.
    """

    where: tuple[Array, ...]
    slots: tuple[Array, ...]
    extents: tuple[int, ...]
    axes: tuple[str, ...]

    def tile(self, index: tuple[ir.Index, ...]) -> tuple[int, ...]:
        """Extents without the dimensions where the index is a scalar."""
        return tuple(extent for extent, at in zip(self.extents, index, strict=True) if isinstance(at, ir.Span))
