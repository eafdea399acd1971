"""Head layouts of the paper (multi-input, multi-head, multi-contract, multi-expand) as index maps.  -> layer, plan"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from .dims import HEAD, NGROUPS, NHEADS


@dataclass(frozen=True)
class HeadLayout:
    """Which index each operand uses for head h.  True: one per head; False: one per group of heads."""

    name: str
    x: bool
    b: bool
    c: bool
    about: str

    def per_head(self, operand: str) -> bool:
        """Whether `operand` ("x", "B" or "C") has an entry for every head."""
        return {"x": self.x, "B": self.b, "C": self.c}[operand]

    def index(self, operand: str, head: sympy.Expr = HEAD) -> sympy.Expr:
        """Index of `operand` that head `head` uses: h itself, or its group floor(h / (nheads / ngroups))."""
        return head if self.per_head(operand) else sympy.floor(head / (NHEADS / NGROUPS))

    def extent(self, operand: str) -> sympy.Expr:
        return NHEADS if self.per_head(operand) else NGROUPS


MULTI_INPUT = HeadLayout("multi-input", x=True, b=False, c=False, about="MIS, multi-value: Mamba-2's own")
MULTI_HEAD = HeadLayout("multi-head", x=True, b=True, c=True, about="MHS: every head its own x, B and C")
MULTI_CONTRACT = HeadLayout("multi-contract", x=False, b=False, c=True, about="MCS, multi-query")
MULTI_EXPAND = HeadLayout("multi-expand", x=False, b=True, c=False, about="MES, multi-key")

LAYOUTS = {layout.name: layout for layout in (MULTI_INPUT, MULTI_HEAD, MULTI_CONTRACT, MULTI_EXPAND)}
