"""The config of a decode step that nobody tuned: a rule, not a list.  Problem -> config -> launchers

The numbers are those that were fastest on an H200 at 80 heads of 64 by 128, by how many numbers of the state a program
has; other sizes get as many.
"""

from __future__ import annotations

from typing import Any

from .problem import Problem

# tiles of 16 by 128 on every multiprocessor: with fewer, a launch and its latency are what a step takes
_PROGRAMS = 4
_TILE, _SMALL_TILE = 2048, 1024
# numbers of the state that a thread has of a tile; of fp32 in a program that has one
_EACH, _EACH_ALONE = 32, 64
_MOST_ROWS = 64
_LEAST_ROWS, _LEAST_DSTATE = 4, 16
# architectures whose kernels may be launched before the one in front of them has ended
_EARLY = ("sm90", "sm100", "sm103", "sm120")
# tiles of a program that loads them all before it computes one; those of a replay that are on their way at once
_TILES, _AHEAD = 4, 2


def default_decode(problem: Problem, sms: int, arch: str = "", replay: bool = False) -> dict[str, Any]:
    """A config that runs everywhere, for a step on a GPU of so many multiprocessors.

    sms: streaming multiprocessors (compute units), >= 1.  arch: "sm90"; "": whatever there is.  replay: of a step that
    keeps its inputs.
    Returns: {"schedule", "kernels": {"state_step": {"block_p", "num_warps", and "tiles", "ahead" and "early" where they
    are not 0 and False}}}.  A program has block_p rows of headdim; the launcher takes the largest power of two below
    that divides it, and one program a tile where tiles do not fit.
    """
    narrow, early = problem.dtype == "int8", arch in _EARLY
    few = problem.batch * problem.nheads * problem.headdim * problem.dstate < _PROGRAMS * sms * _TILE
    if few and replay:
        return _config(problem, _TILE, _EACH)
    if few:
        return _config(problem, _SMALL_TILE, _EACH if narrow else _EACH // 2, tiles=1, early=early and not narrow)
    if replay:
        return _config(problem, _SMALL_TILE, _EACH, tiles=_TILES, ahead=_AHEAD, early=early)
    if narrow:
        return _config(problem, 2 * _TILE, 2 * _EACH, tiles=_TILES // 2)
    if problem.dtype == "float32":
        return _config(problem, _MOST_ROWS * problem.dstate, _EACH_ALONE)
    return _config(problem, _TILE, _EACH)


def _config(problem: Problem, numbers: int, each: int, **more: Any) -> dict[str, Any]:
    """Tiles of at most so many numbers, of which a thread has `each`."""
    rows = min(_MOST_ROWS, problem.headdim & -problem.headdim)
    while rows > 1 and (rows * problem.dstate > numbers or rows * more.get("tiles", 1) > problem.headdim):
        rows //= 2
    warps = 8
    while warps > 1 and 32 * warps * each > rows * problem.dstate:
        warps //= 2
    # smaller ones are no operands of a product on a matrix unit
    tiled = rows >= _LEAST_ROWS and problem.dstate >= _LEAST_DSTATE
    given = {name: value for name, value in more.items() if value and tiled}
    return {"schedule": "step", "kernels": {"state_step": {"block_p": rows, "num_warps": warps, **given}}}
