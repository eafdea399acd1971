"""What is moved ahead in a kernel that is specialised by warps, and what its place depends on.  plan.Kernel -> warps"""

from __future__ import annotations

import re
from dataclasses import replace

from ..plan import ir
from .reads import made_by, touched


def roles(kernel: ir.Kernel) -> tuple[ir.Kernel, ...]:
    """The kernel as each of its consumers has it, where they do not all do the same; else the kernel itself."""

    def own(number: int) -> tuple[ir.Stmt, ...]:
        chosen = {f"consumer == {other}": other == number for other in range(len(kernel.roles))}
        body: list[ir.Stmt] = []
        for stmt in kernel.body:
            if isinstance(stmt, ir.When) and stmt.condition in chosen:
                body += stmt.body if chosen[stmt.condition] else ()
            else:
                body.append(stmt)
        return tuple(body)

    return tuple(replace(kernel, body=own(number)) for number in range(len(kernel.roles))) or (kernel,)


def moved_loads(kernel: ir.Kernel) -> tuple[ir.Load, ...]:
    """Loads by descriptor inside a loop, which the loading warp makes stages ahead."""
    loops = [stmt for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.For)]
    loads = (s for loop in loops for s in ir.walk(loop.body) if isinstance(s, ir.Load) and s.descriptor)
    return tuple(dict.fromkeys(loads))


def fixed_loads(kernel: ir.Kernel) -> tuple[ir.Load, ...]:
    """Loads by descriptor before the loop, which the loading warp makes once."""
    inside = moved_loads(kernel)
    loads = (s for s in ir.walk(kernel.body) if isinstance(s, ir.Load) and s.descriptor and s not in inside)
    return tuple(dict.fromkeys(loads))


def stage_loop(kernel: ir.Kernel) -> ir.For:
    """The loop whose tiles are moved ahead."""
    loops = [stmt for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.For)]
    return next(loop for loop in loops if any(load in ir.walk(loop.body) for load in moved_loads(kernel)))


def aside_of(kernel: ir.Kernel) -> ir.Aside | None:
    """What a warp of its own makes for the consumers in every trip of the loop over stages."""
    return next((stmt for stmt in stage_loop(kernel).body if isinstance(stmt, ir.Aside)), None)


def of_consumers(kernel: ir.Kernel) -> ir.Kernel:
    """The kernel as consumers have it, who do not know how what they find is made."""
    made, loop = aside_of(kernel), stage_loop(kernel)
    if made is None:
        return kernel
    found = replace(loop, body=tuple(replace(made, body=()) if stmt is made else stmt for stmt in loop.body))
    return replace(kernel, body=tuple(found if stmt is loop else stmt for stmt in kernel.body))


def first_product(kernel: ir.Kernel) -> str:
    """The first result of a stage, if a later product multiplies what is made of it."""
    body = list(ir.walk(stage_loop(kernel).body))
    first = next((at for at, stmt in enumerate(body) if isinstance(stmt, ir.Dot)), None)
    if first is None:
        return ""
    result = body[first]
    assert isinstance(result, ir.Dot)
    made = {result.out.name}
    for stmt in body[first + 1 :]:
        if isinstance(stmt, ir.Dot):
            if {stmt.left.name, stmt.right.name} & made:
                return result.out.name
        elif touched(stmt) & made:
            made |= made_by(stmt)
    return ""


def products_ahead(kernel: ir.Kernel) -> tuple[ir.Dot, ...]:
    """Products that are issued a stage ahead: those whose result is of nothing but tiles of a stage."""
    if not kernel.ahead:
        return ()
    tiles = {load.out.name for load in moved_loads(kernel)}
    products = [stmt for stmt in stage_loop(kernel).body if isinstance(stmt, ir.Dot)]
    others = {product.out.name for product in products if not {product.left.name, product.right.name} <= tiles}
    return tuple(product for product in products if product.out.name not in others)


def depends(kernel: ir.Kernel, load: ir.Load, on: str) -> bool:
    """Whether the place of a tile depends on a name."""
    return on in closure(kernel, names_in(load.index))


def closure(kernel: ir.Kernel, names: set[str]) -> set[str]:
    """The names and all that they are made of."""
    made = {stmt.name: stmt.expr for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.Scalar)}
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += re.findall(r"[A-Za-z_]\w*", made.get(name, ""))
    return found


def names_in(index: tuple[ir.Index, ...]) -> set[str]:
    texts = [at.origin if isinstance(at, ir.Span) else at for at in index]
    return {name for text in texts for name in re.findall(r"[A-Za-z_]\w*", text)}
