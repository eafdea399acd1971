"""What a launch has to do, counted from the config.  Launch, config, Problem -> Work -> model"""

from __future__ import annotations

from math import prod
from typing import Any

from ..plan import backward_space
from ..plan.problem import Problem
from ..plan.tiles import SMALLEST, cut, next_power_of_two
from . import backward_work
from .compile import Launch
from .counted import Work, memory_of

KERNELS = ("dt_cumsum", "single_pass", "segment_state", "state_passing", "chunk_scan", "state_step")


def kernel_of(function_name: str) -> str:
    """The config's name of an emitted kernel: "single_pass_2heads_tma" is a "single_pass".  Errors: ValueError."""
    known = dict.fromkeys((*KERNELS, *backward_work.KERNELS))
    for name in known:
        if function_name.startswith(name):
            return name
    raise ValueError(f"no kernel {function_name!r}; known: {', '.join(known)}")


def of_launch(launch: Launch, config: dict[str, Any], problem: Problem) -> Work:
    """Count the work of one launch."""
    kernel = kernel_of(launch.kernel.__name__)
    if config["schedule"] in backward_space.SCHEDULES and kernel in backward_work.KERNELS:
        return backward_work.of_launch(kernel, launch, config, problem)
    numbers = config["kernels"].get(kernel, {})
    ctas = prod(launch.grid)
    memory = memory_of(launch)
    if kernel == "state_step":
        # the state is written as well
        state = problem.batch * problem.nheads * problem.headdim * problem.dstate * problem.element_bytes
        return Work(ctas, 1, 0, memory + state, memory + state, 0.0, 0.0, SMALLEST)
    chunk = config["chunk"]
    # tokens from one state that is kept to the next
    length = {"single_pass": problem.seqlen, "split": chunk}.get(config["schedule"])
    length = length or config.get("segment") or problem.seqlen
    if kernel in ("dt_cumsum", "state_passing"):
        # the passing goes through the states of a head in order
        steps = -(-problem.seqlen // length) if kernel == "state_passing" else 1
        return Work(ctas, steps, 0, memory, memory, 0.0, 0.0, chunk)

    heads = int(numbers.get("heads", 1))
    p_tile = min(int(numbers.get("block_p", problem.headdim)), max(SMALLEST, next_power_of_two(problem.headdim)))
    n_tile = sum(cut(problem.dstate))
    # a program of one chunk has one trip; what it does in it is counted the same way
    steps = -(-min(length, problem.seqlen) // chunk) if kernel in ("single_pass", "segment_state") else 1
    trips = ctas * steps
    score, outer = chunk * chunk, chunk * n_tile * p_tile
    loaded = chunk * (heads * p_tile + n_tile) * problem.element_bytes
    if kernel == "segment_state":
        flops, exps, chain = 2.0 * heads * outer, float(heads * chunk), 1
    else:
        # C B^T is made once for the heads of a CTA; the scores are applied, the old state read and, in a walk, renewed
        states = 2 if kernel == "single_pass" else 1
        flops = 2.0 * score * n_tile + heads * (2.0 * score * p_tile + 2.0 * states * outer)
        exps, chain = float(heads * (score + 2 * chunk)), 2 + states
        loaded += chunk * n_tile * problem.element_bytes
    return Work(ctas, steps, chain, memory, float(trips * loaded), trips * flops, trips * exps, chunk)
