"""What a statement reads, makes and moves.  plan.Stmt -> warps"""

from __future__ import annotations

import sympy

from ..plan import ir
from ..spec.dims import name_of


def is_plain_load(stmt: ir.Stmt) -> bool:
    """Scalars, masks and loads that the loading warp does not make: they are begun before a stage is waited for."""
    if isinstance(stmt, ir.When):
        return all(is_plain_load(inner) for inner in (*stmt.body, *stmt.otherwise))
    return isinstance(stmt, (ir.Scalar, ir.Mask)) or isinstance(stmt, ir.Load) and not (stmt.descriptor or stmt.near)


def touched(stmt: ir.Stmt) -> set[str]:
    """Values that a statement reads or writes."""
    found: set[str] = set()
    for inner in ir.walk((stmt,)):
        match inner:
            case ir.Let(out, formula):
                found |= {out.name, *(name_of(term) for term in formula.atoms(sympy.Indexed))}
            case ir.Store(_, _, value):
                found.add(value.name)
            case ir.Rest(out, of) | ir.Sum(out, of) | ir.Cumsum(out, of):
                found |= {out.name, of.name}
    return found


def moved_value(stmt: ir.Stmt) -> ir.Value | None:
    """What a load or a store moves."""
    match stmt:
        case ir.Load(out):
            return out
        case ir.Store(_, _, value):
            return value
    return None


def made_by(stmt: ir.Stmt) -> set[str]:
    """Values that a statement makes or changes."""
    makers = (ir.Let, ir.Rest, ir.Load, ir.Full, ir.Dot)
    return {inner.out.name for inner in ir.walk((stmt,)) if isinstance(inner, makers)}


def sides(stmt: ir.Dot) -> tuple[ir.Value, ir.Value]:
    """The operand with the rows of the result, and the one with its columns."""
    return (stmt.left, stmt.right) if stmt.out.axes[0] in stmt.left.axes else (stmt.right, stmt.left)
