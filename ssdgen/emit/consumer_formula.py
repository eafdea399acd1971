"""Formulas over a consumer's tiles, in Gluon.  sympy -> text -> warps"""

from __future__ import annotations

from typing import Protocol

from .formula import FormulaPrinter
from .shared import turned_name


class Consumer(Protocol):
    """What is asked of the printer of a consumer's statements.  tile_axes: of what is in shared memory, by name."""

    tile_axes: dict[str, tuple[str, ...]]

    def _spread(self, name: str, axis: str, over: tuple[str, ...]) -> str: ...


class ConsumerFormula(FormulaPrinter):
    """Formulas over a consumer's tiles."""

    language, sigmoid = "gl", "sigmoid"

    def __init__(self, printer: Consumer, over: tuple[str, ...], operands: frozenset[str], masks: frozenset[str]):
        super().__init__(over, operands, masks)
        self.printer = printer

    def variable(self, name: str, axes: tuple[str, ...]) -> str:
        if len(axes) == 1:
            return self.printer._spread(name, axes[0], self.over)
        if len(axes) == 2 and axes != self.over:
            if name not in self.printer.tile_axes:
                raise ValueError(f"{name} has axes {axes} and is read over {self.over}: only loaded tiles are turned")
            return turned_name(name)
        return name
