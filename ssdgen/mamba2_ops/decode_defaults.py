"""The config of a decode step that nobody tuned: a rule, not a list.  Problem -> config -> launchers"""

from __future__ import annotations

from typing import Any

from .problem import Problem

# programs on every multiprocessor: with fewer, not enough of the state is on its way from memory
_PROGRAMS = 4
# numbers of the state that a thread has in registers
_EACH = 64
_MOST_ROWS = 64


def default_decode(problem: Problem, sms: int) -> dict[str, Any]:
    """A config that runs everywhere, for a step on a GPU of so many multiprocessors.

    sms: streaming multiprocessors (compute units), >= 1.
    Returns: {"schedule", "kernels": {"state_step": {"block_p", "num_warps"}}}.  A program has block_p rows of headdim;
    the launcher takes the largest power of two below that divides it.
    """
    heads = max(1, problem.batch * problem.nheads)
    rows = min(_MOST_ROWS, problem.headdim & -problem.headdim)
    while rows > 1 and heads * (problem.headdim // rows) < _PROGRAMS * sms and rows * problem.dstate > 32 * _EACH:
        rows //= 2
    warps = 8
    while warps > 1 and 32 * warps * _EACH > rows * problem.dstate:
        warps //= 2
    return {"schedule": "step", "kernels": {"state_step": {"block_p": rows, "num_warps": warps}}}
