"""Plans with one mistake each.  What the tests that look for unnoticed mistakes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ssdgen.plan import ir

Change = Callable[[ir.Stmt], Iterator[tuple[str, tuple[ir.Stmt, ...]]]]


def mutants(kernel: ir.Kernel, change: Change) -> Iterator[tuple[str, ir.Kernel]]:
    """What was changed and the kernel with it, for each change of each statement, inner ones included."""
    for what, body in _bodies(kernel.body, change):
        yield what, replace(kernel, body=body)


def _bodies(body: tuple[ir.Stmt, ...], change: Change) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    for at, stmt in enumerate(body):
        changes = list(change(stmt))
        if isinstance(stmt, ir.For):
            changes += [(what, (replace(stmt, body=inner),)) for what, inner in _bodies(stmt.body, change)]
        if isinstance(stmt, ir.When):
            changes += [(what, (replace(stmt, body=inner),)) for what, inner in _bodies(stmt.body, change)]
            changes += [(what, (replace(stmt, otherwise=inner),)) for what, inner in _bodies(stmt.otherwise, change)]
        for what, instead in changes:
            yield what, (*body[:at], *instead, *body[at + 1 :])


def without_a_mask(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """A load or store that lost the mask of one dimension."""
    if isinstance(stmt, (ir.Load, ir.Store)) and not stmt.descriptor:
        for axis, at in enumerate(stmt.index):
            if isinstance(at, ir.Span) and at.mask:
                index = (*stmt.index[:axis], replace(at, mask=None), *stmt.index[axis + 1 :])
                yield f"{type(stmt).__name__} {stmt.tensor} without {at.mask}", (replace(stmt, index=index),)


def another_mask(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """A mask that keeps one position less, or one more."""
    if isinstance(stmt, ir.Mask):
        for by in ("- 1", "+ 1"):
            yield f"{stmt.name} {by}", (replace(stmt, limit=f"{stmt.limit} {by}"),)


def another_formula(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """A value that is twice what it should be."""
    if isinstance(stmt, ir.Let):
        yield f"twice {stmt.out.name}", (replace(stmt, formula=2 * stmt.formula),)


def left_out(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """No statement at all."""
    if not isinstance(stmt, ir.Note):
        name = getattr(stmt, "out", None) or getattr(stmt, "tensor", None) or getattr(stmt, "name", "")
        yield f"no {type(stmt).__name__} {getattr(name, 'name', name)}", ()


def forgotten(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """A product that forgets what was there before."""
    if isinstance(stmt, ir.Dot) and stmt.acc:
        yield f"{stmt.out.name} = {stmt.left.name} . {stmt.right.name} alone", (replace(stmt, acc=False),)


def elsewhere(stmt: ir.Stmt) -> Iterator[tuple[str, tuple[ir.Stmt, ...]]]:
    """A load or store one position further along one dimension."""
    if isinstance(stmt, (ir.Load, ir.Store)):
        for axis, at in enumerate(stmt.index):
            moved = replace(at, origin=f"{at.origin} + 1") if isinstance(at, ir.Span) else f"{at} + 1"
            index = (*stmt.index[:axis], moved, *stmt.index[axis + 1 :])
            yield f"{type(stmt).__name__} {stmt.tensor} moved in dimension {axis}", (replace(stmt, index=index),)
