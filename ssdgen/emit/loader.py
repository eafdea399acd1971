"""What the loading warp does in a kernel that is specialised by warps.  plan.Kernel -> text"""

from __future__ import annotations

import re

from ..plan import ir
from .layout import fit
from .stages import closure, depends, fixed_loads, moved_loads, names_in, roles, stage_loop
from .warps import ConsumerPrinter


def loader(kernel: ir.Kernel) -> list[str]:
    """Statements of the loading warp, at the indentation of a function body."""
    printer = ConsumerPrinter(roles(kernel)[0])
    loads, fixed, loop = moved_loads(kernel), fixed_loads(kernel), stage_loop(kernel)
    places = names_in(tuple(at for load in (*loads, *fixed) for at in load.index))
    needed = closure(kernel, {*places, *re.findall(r"\w+", loop.trips)})
    inside = [stmt for stmt in loop.body if isinstance(stmt, ir.Scalar) and stmt.name in needed]
    outside = [s for s in kernel.body if isinstance(s, ir.Scalar) and s.name in needed]
    own = [s for s in outside if "consumer" in closure(kernel, {s.name})]
    shared = [load for load in loads if not depends(kernel, load, "consumer")]
    per_consumer = [load for load in loads if load not in shared]
    lines = printer.lines(tuple(stmt for stmt in outside if stmt not in own), 4)
    if fixed:
        amount = " + ".join(f"{load.tensor}_desc.block_type.nbytes" for load in fixed)
        lines.append(f"    mbarrier.expect(fixed.index(0), {amount})")
        lines += [line for load in fixed for line in _copy_in(printer, load, "0", 4, "fixed.index(0)")]
    lines += [f"    for {loop.var} in range({printer.scalar(loop.trips)}):", *printer.lines(tuple(inside), 8)]
    lines += [
        f"        stage = {loop.var} % STAGES",
        "        ready = full.index(stage)",
        f"        mbarrier.wait(empty.index(stage), ({loop.var} // STAGES & 1) ^ 1)",
    ]
    for name, group in (("shared", shared), ("own", per_consumer)):
        amount = " + ".join(f"{load.tensor}_desc.block_type.nbytes" for load in group) or "0"
        lines += fit(f"{name}: gl.constexpr = {amount}", 8) if group or name == "shared" else []
    own_bytes = f" + {kernel.consumers} * own" if per_consumer else ""
    lines.append(f"        mbarrier.expect(ready, shared{own_bytes})")
    for load in shared:
        lines += _copy_in(printer, load, "stage", 8)
    if not per_consumer:
        return lines
    lines.append(f"        for consumer in gl.static_range({kernel.consumers}):")
    lines += [f"            slot = stage * {kernel.consumers} + consumer", *printer.lines(tuple(own), 12)]
    for load in per_consumer:
        lines += _copy_in(printer, load, "slot", 12)
    return lines


def _copy_in(printer: ConsumerPrinter, load: ir.Load, slot: str, indent: int, barrier: str = "ready") -> list[str]:
    corner = printer._corner(load.index)
    return fit(printer.idiom.copy_in(load.tensor, corner, barrier, f"{load.out.name}_tiles", slot), indent)
