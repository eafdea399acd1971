"""What the cost model thinks best before anything is compiled: the order in which a search begins.  Pass -> configs

Registers and shared memory are only known of compiled code, and are guessed here: an estimate that is good enough to
begin with, and is never shown or stored.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from math import prod
from typing import Any

from ..gpus import Gpu
from ..mamba2_ops.errors import OptionError
from ..pack.records import Direction
from ..plan.problem import Problem
from . import model
from .compile import Compiled, Launch
from .counted import Work
from .passes import PASSES
from .resources import Resources
from .results import Config, key_of

# legal configs that are drawn of each schedule, suggestions for that at most, and configs of each that are kept
DRAWN, SUGGESTED, KEPT = 64, 1024, 3

# of a thread where nothing caps them: large tiles take nearly all
_REGISTERS = 224


def ranked(direction: Direction, problem: Problem, gpu: Gpu, seed: int, also: Iterable[Config] = ()) -> list[Config]:
    """The best few of each schedule, and those of `also` that are legal, by estimated time.

    The same seed gives the same.
    """
    it = PASSES[direction]
    given = it.draw(problem, "meta", 0, False)
    given_too = [config for config in also if it.space.legal(config, problem, gpu) is None]
    found = _estimates(direction, given_too, given, problem, gpu)
    for schedule in it.space.SCHEDULES:
        estimates = _estimates(direction, drawn(direction, schedule, problem, gpu, seed), given, problem, gpu)
        found |= dict(sorted(estimates.items(), key=lambda item: (item[1][0], item[0]))[:KEPT])
    return [config for _, (_, config) in sorted(found.items(), key=lambda item: (item[1][0], item[0]))]


def _estimates(
    direction: Direction, configs: Iterable[Config], given: Any, problem: Problem, gpu: Gpu
) -> dict[str, tuple[float, Config]]:
    """{key of a config: microseconds, itself}, of those that can be planned."""
    it, found = PASSES[direction], {}
    for config in configs:
        try:
            launches = it.plan(config, given, False).launches
        except OptionError:
            continue
        works = [(launch, it.work(launch, config, problem)) for launch in launches]
        found[key_of(config)] = sum(_estimate(launch, counted, problem, gpu) for launch, counted in works), config
    return found


def drawn(direction: Direction, schedule: str, problem: Problem, gpu: Gpu, seed: int) -> list[Config]:
    """Legal configs of a schedule, at random; the same seed gives the same."""
    space = PASSES[direction].space
    # a seed of its own: the sampler's draws do not depend on how many are drawn here
    numbers, axes = random.Random(f"{seed}/{schedule}"), space.axes(schedule, problem, gpu)
    found: list[Config] = []
    for _ in range(SUGGESTED):
        config = space.config(schedule, {axis.name: numbers.choice(axis.values) for axis in axes})
        if space.legal(config, problem, gpu) is None:
            found.append(config)
        if len(found) == DRAWN:
            break
    return found


def _estimate(launch: Launch, counted: Work, problem: Problem, gpu: Gpu) -> float:
    """Microseconds of a launch, with guessed resources."""
    code = Compiled(launch.kernel.__name__, "", _guessed(launch, counted, gpu))
    return model.launch_time(counted, code, gpu, problem.dtype, launch.num_stages).us


def _guessed(launch: Launch, counted: Work, gpu: Gpu) -> Resources:
    registers = launch.maxnreg or min(_REGISTERS, gpu.regs_per_sm // (launch.num_warps * gpu.warp_size))
    trip = counted.loaded_bytes / max(1, prod(launch.grid) * counted.steps)
    shared = min(gpu.smem_per_cta, int(trip * max(1, launch.num_stages)))
    return Resources(registers, 0, shared, launch.num_warps)
