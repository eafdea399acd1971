"""What a launch of the backward pass has to do, counted from the config.  Launch, config, Problem -> Work -> work"""

from __future__ import annotations

from math import prod
from typing import Any

from ..plan.backward_legal import tiles_of
from ..plan.problem import Problem
from ..plan.tiles import CONSUMER_ROWS, SMALLEST, next_power_of_two
from .compile import Launch
from .counted import Work, memory_of

# kernels that only move memory and add
MOVING = ("dt_gradients", "adjoint_passing")
WALKS = ("segment_adjoint", "chunk_states", "chunk_adjoints", "segment_state")
KERNELS = (*MOVING, *WALKS, "reverse_walk", "group_gradients", "chunk_gradients")


def of_launch(kernel: str, launch: Launch, config: dict[str, Any], problem: Problem) -> Work:
    """Count the work of one launch of a kernel of `KERNELS`."""
    ctas, memory, chunk = prod(launch.grid), memory_of(launch), config["chunk"]
    numbers = config["kernels"].get(kernel, {})
    length = min(problem.seqlen, config.get("segment") or problem.seqlen)
    if kernel in MOVING:
        steps = -(-problem.seqlen // length) if kernel == "adjoint_passing" else 1
        return Work(ctas, steps, 0, memory, memory, 0.0, 0.0, chunk)
    n, p = tiles_of(kernel, numbers, problem)
    outer, score, size = float(chunk * n * p), float(chunk * chunk), problem.element_bytes
    if kernel in WALKS:
        consumers = int(numbers.get("consumers", 0))
        tile = CONSUMER_ROWS if consumers else int(numbers.get("block_p", CONSUMER_ROWS))
        # a program of two consumers walks twice
        rows = min(tile, max(SMALLEST, next_power_of_two(problem.headdim))) * max(1, consumers)
        steps, chain = -(-length // chunk), 1
        flops, exps = 2.0 * chunk * n * rows, float(max(1, consumers) * chunk)
        loaded = chunk * (n + rows) * size
    elif kernel == "reverse_walk":
        steps, chain = -(-length // chunk), 4
        # scores and their adjoint, what both give d_x, what the state gives d_x, and the adjoint of the state
        flops, exps = 2.0 * (score * n + 2 * score * p + 2 * outer), score + 2 * chunk
        loaded = chunk * 2 * (n + p) * size
        walks = max(1, int(numbers.get("consumers", 0)))
        flops, exps, loaded = walks * flops, walks * exps, walks * loaded
    else:
        # a program goes through the heads of a group, or of its part of one
        heads = problem.nheads // problem.ngroups
        parts = config.get("parts", 1) if kernel == "chunk_gradients" else 1
        steps, chain = max(1, heads // parts), 4
        # states, and what they and the scores give d_B, d_C and, chunk by chunk, d_x
        products = 4 * outer + 2 * score * p if kernel == "chunk_gradients" else 3 * outer + score * p
        flops, exps = 2.0 * products, score + 2 * chunk
        state = 2 if config.get("state_dtype") == "bfloat16" else 4
        loaded = 2 * chunk * p * size + 2 * n * p * state
    trips = ctas * steps
    return Work(ctas, steps, chain, memory, float(trips * loaded), trips * flops, trips * exps, chunk)
