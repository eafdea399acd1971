"""Lists of statements: where one goes, and which become one.  lower -> schedules"""

from __future__ import annotations

from .ir import Load, Stmt, When


def after_loads(scope: list[Stmt], start: int) -> int:
    """First place from `start` on where a statement is not a load, which will stand at the top."""
    return next((k for k in range(start, len(scope)) if not isinstance(scope[k], Load)), len(scope))


def merge(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Join neighbouring statements under the same condition into one `When`."""
    joined: list[Stmt] = []
    for stmt in body:
        last = joined[-1] if joined else None
        if (
            isinstance(stmt, When)
            and isinstance(last, When)
            and stmt.condition == last.condition
            and not last.otherwise
        ):
            joined[-1] = When(last.condition, last.body + stmt.body, stmt.otherwise)
        else:
            joined.append(stmt)
    return tuple(joined)
