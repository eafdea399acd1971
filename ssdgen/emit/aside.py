"""What the warp does that makes a consumer's vectors, in a kernel specialised by warps.  plan.Kernel -> text"""

from __future__ import annotations

import re

from ..plan import ir
from .environment import macros
from .formula import FormulaPrinter
from .layout import fit
from .stages import aside_of, closure, names_in, stage_loop
from .statements import StatementPrinter

# along the lanes of the one warp
LAYOUT = "LANES"


def aside(kernel: ir.Kernel) -> list[str]:
    """Statements of that warp, at the indentation of a function body; none where no statement is made aside."""
    made, loop = aside_of(kernel), stage_loop(kernel)
    if made is None:
        return []
    printer = AsidePrinter(kernel)
    spans = [at for load in _loads(made) for at in load.index if isinstance(at, ir.Span)]
    vectors = {name for span in spans for name in (span.offsets, span.mask) if name}
    masks = [stmt for stmt in loop.body if isinstance(stmt, ir.Mask) and stmt.name in vectors]
    limits = {name for mask in masks for name in re.findall(r"[A-Za-z_]\w*", mask.limit)}
    needed = closure(kernel, names_in(tuple(at for load in _loads(made) for at in load.index)) | limits)
    needed |= closure(kernel, set(re.findall(r"\w+", loop.trips)))
    scalars = [s for s in kernel.body if isinstance(s, ir.Scalar) and s.name in needed]
    offsets = [s for s in kernel.body if isinstance(s, ir.Arange) and s.name in vectors]
    inside = [s for s in loop.body if isinstance(s, ir.Scalar) and s.name in needed]
    lines = [f"    {LAYOUT}: gl.constexpr = gl.BlockedLayout([CHUNK // 32], [32], [1], [0])"]
    lines += printer.lines((*scalars, *offsets), 4)
    lines.append(f"    for {loop.var} in range({printer.scalar(loop.trips)}):")
    # what it makes may wait for a place, and no place for what it makes
    lines += printer.lines((*inside, *masks, *made.body), 8)
    lines += [
        f"        stage = {loop.var} % STAGES",
        f"        slot = stage * {kernel.consumers} + consumer",
        f"        mbarrier.wait(empty.index(stage), ({loop.var} // STAGES & 1) ^ 1)",
    ]
    for value in made.values:
        text = value.name if value.axes else f"gl.full([1], {value.name}, gl.float32, {LAYOUT})"
        lines += fit(printer.idiom.to_tile(f"{value.name}_tiles.index(slot)", text), 8)
    return [*lines, "        mbarrier.arrive(full.index(stage))"]


def _loads(made: ir.Aside) -> list[ir.Load]:
    return [stmt for stmt in ir.walk(made.body) if isinstance(stmt, ir.Load)]


class AsidePrinter(StatementPrinter):
    """Statements over vectors, which all lie along the lanes of one warp."""

    language = "gl"

    def __init__(self, kernel: ir.Kernel):
        super().__init__(kernel)
        self.idiom = macros("macros/warpgroups.jinja")

    def _statement(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Arange(name, _, size):
                return self.idiom.arange(name, size, LAYOUT)
            case ir.Let(out, formula):
                return f"{out.name} = {_Formula(out.axes, frozenset(self.operands), self.masks).print(formula)}"
            case ir.Cumsum(out, of):
                return f"{out.name} = running_sum({of.name})"
            case ir.Sum(out, of):
                return self.idiom.sum(out.name, of.name, 0)
        return super()._statement(stmt)


class _Formula(FormulaPrinter):
    language, sigmoid = "gl", "sigmoid"
