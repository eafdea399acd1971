"""What a launch of the backward pass has to do, counted from the config.  Launch, config, Problem -> Work -> work"""

from __future__ import annotations

import re
from math import prod
from typing import Any

from ..plan.backward_legal import tiles_of
from ..plan.problem import Problem
from ..plan.tiles import CONSUMER_ROWS, SMALLEST, next_power_of_two
from .compile import Launch
from .counted import Work, bytes_of, memory_of, moving

# kernels that only move memory and add
MOVING = ("dt_gradients", "adjoint_passing", "both_passing", "sum_heads", "sum_parts")
# their arguments that hold states which stay between launches of a slice
KEPT = ("states_ptr", "states_desc", "d_states_ptr", "d_states_desc")
WALKS = ("segment_adjoint", "chunk_states", "chunk_adjoints", "segment_state")
KERNELS = (*MOVING, *WALKS, "reverse_walk", "group_gradients", "chunk_gradients")


def of_launch(kernel: str, launch: Launch, config: dict[str, Any], problem: Problem) -> Work:
    """Count the work of one launch of a kernel of `KERNELS`."""
    ctas, memory, chunk = prod(launch.grid), memory_of(launch), config["chunk"]
    numbers = config["kernels"].get(kernel, {})
    # of a slice, and of what a limit of memory makes of a config, the launch alone says it
    length = min(problem.seqlen, launch.args.get("segment_len") or config.get("segment") or problem.seqlen)
    if kernel in MOVING:
        segments = launch.args.get("nsegments") or -(-problem.seqlen // length)
        return moving(ctas, segments if kernel.endswith("_passing") else 1, memory, chunk)
    consumers = _consumers(launch) or int(numbers.get("consumers", 0))
    teams = max(1, consumers)
    n, p = tiles_of(kernel, numbers, problem)
    outer, score, size = float(chunk * n * p), float(chunk * chunk), problem.element_bytes
    # of one team in one trip; loaded: of all of them
    if kernel in WALKS:
        tile = CONSUMER_ROWS if consumers else int(numbers.get("block_p", CONSUMER_ROWS))
        rows = min(tile, max(SMALLEST, next_power_of_two(problem.headdim)))
        steps, chain = -(-length // chunk), 1
        # a state that is kept is made into an operand and stored; else it is but scaled
        state = n * rows if kernel.startswith("chunk") else n * rows // 4
        flops, exps, entries = 2.0 * chunk * n * rows, float(chunk), float(state + chunk * rows)
        loaded = chunk * (n + teams * rows) * size
    elif kernel == "reverse_walk":
        steps, chain = -(-length // chunk), 4
        # scores and their adjoint, what both give d_x, what the state gives d_x, and the adjoint of the state
        flops, exps = 2.0 * (score * n + 2 * score * p + 2 * outer), score + 2 * chunk
        entries = 3 * score + 2.0 * n * p + 3 * chunk * p
        loaded = chunk * 2 * (n + teams * p) * size
    else:
        # a program goes through the heads of a group, or of its part of one
        heads = problem.nheads // launch.args.get("ngroups", problem.ngroups)
        parts = launch.args.get("parts", config.get("parts", 1) if kernel == "chunk_gradients" else 1)
        steps, chain = max(1, heads // parts), 4
        # states, and what they and the scores give d_B, d_C and, chunk by chunk, d_x: two roles have half of it each
        products = 4 * outer + 2 * score * p if kernel == "chunk_gradients" else 3 * outer + score * p
        flops, exps = 2.0 * products / teams, (score + 2 * chunk) / teams
        entries = (4 * score + 4.0 * chunk * n + 3 * chunk * p) / teams
        state = 2 if config.get("state_dtype") == "bfloat16" else 4
        loaded = 2 * chunk * p * size + 2 * n * p * state
    trips = ctas * steps
    mine = trips * teams
    kept = [bytes_of(launch.args[name]) for name in KEPT if name in launch.args]
    return Work(
        ctas,
        steps,
        chain,
        memory,
        float(trips * loaded),
        mine * flops,
        mine * exps,
        mine * entries,
        chunk,
        consumers,
        float(sum(kept)),
        2.0 * max(kept, default=0),
    )


def _consumers(launch: Launch) -> int:
    """Of the kernel that is launched, by its name: slices take some that the config does not ask for."""
    found = re.search(r"_(\d)consumers?$", launch.kernel.__name__)
    return int(found[1]) if found else 0
