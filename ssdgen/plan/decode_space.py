"""The search space of a decode step: axes with the reason for every bound.  Problem, Gpu -> tune

A config is nested, {"schedule", "kernels": {kernel: {axis: value}}}; a kernel's axis is "kernel.axis".  A problem's
dtype is that of the state here, by the bytes of a number, and its seqlen is 1.  A step with a replay streams the state
in the same way and takes the same numbers.
"""

from __future__ import annotations

from ..gpus import Gpu
from .legal import Config
from .problem import Problem
from .space import Axis, Value, digest
from .tiles import power_tiles

SCHEDULES = ("step",)

# numbers of the state that a thread has in registers: with fewer loads it waits, with more they spill
LEAST_EACH, MOST_EACH = 4, 128
MOST_ROWS = 128
WARPS = (1, 2, 4, 8)


def axes(schedule: str, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
    """The axes of a step for a problem on a GPU.  Raises ValueError for an unknown schedule."""
    _check(schedule)
    return (
        Axis(
            "state_step.block_p",
            _rows(problem),
            "rows of headdim of a program, which divide it so that none is masked; few make many programs for a small "
            "batch, many read B, C and the step size less often",
        ),
        Axis("state_step.num_warps", WARPS, "enough loads in flight of each multiprocessor; more warps only wait"),
    )


def config(schedule: str, assignment: dict[str, Value]) -> Config:
    """The config with these values of the axes."""
    _check(schedule)
    return {
        "schedule": schedule,
        "kernels": {"state_step": {name.partition(".")[2]: value for name, value in assignment.items()}},
    }


def flatten(config: Config) -> dict[str, Value]:
    """{axis name: value} of a config, the schedule included."""
    numbers = {f"state_step.{axis}": value for axis, value in config["kernels"]["state_step"].items()}
    return {"schedule": config["schedule"], **numbers}


def minimal(schedule: str, problem: Problem) -> Config:
    """A config that runs on every GPU: one row and one warp."""
    _check(schedule)
    return {"schedule": schedule, "kernels": {"state_step": {"block_p": 1, "num_warps": 1}}}


def starts(problem: Problem, gpu: Gpu) -> tuple[Config, ...]:
    """Legal configs that are often near the best: programs of a few hundred loads, whole heads or parts of them."""
    pairs = ((64, 4), (32, 4), (16, 4), (16, 2), (8, 2), (4, 1))
    found = (
        config("step", {"state_step.block_p": rows, "state_step.num_warps": warps})
        for rows, warps in pairs
        if rows in _rows(problem)
    )
    return tuple(each for each in found if legal(each, problem, gpu) is None)


def legal(config: Config, problem: Problem, gpu: Gpu) -> str | None:
    """Why a config is not worth compiling, or None."""
    numbers = config["kernels"]["state_step"]
    rows, warps = int(numbers["block_p"]), int(numbers["num_warps"])
    if rows not in _rows(problem):
        return f"a tile of {rows} rows does not divide headdim {problem.headdim}"
    if config == minimal("step", problem):
        return None
    each = rows * sum(power_tiles(problem.dstate)) / (32 * warps)
    if each > MOST_EACH:
        return f"a thread would have {each:g} numbers of the state, more than the {MOST_EACH} that registers hold"
    if each < LEAST_EACH:
        return f"a thread would have {each:g} numbers of the state, fewer than the {LEAST_EACH} of one load"
    return None


def fingerprint() -> str:
    """What the space offers, as a short text: it changes when an axis, a value or a bound does."""
    return digest(axes, SCHEDULES, LEAST_EACH, MOST_EACH, MOST_ROWS)


def _check(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")


def _rows(problem: Problem) -> tuple[int, ...]:
    """Powers of two that divide headdim."""
    most = min(MOST_ROWS, problem.headdim & -problem.headdim)
    return tuple(1 << k for k in range(most.bit_length()))
