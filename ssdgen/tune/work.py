"""What a launch has to do, counted from the config.  Launch, config, Problem -> Work -> model"""

from __future__ import annotations

from math import prod
from typing import Any

from ..plan import backward_space
from ..plan.problem import Problem
from ..plan.tiles import CONSUMER_ROWS, SMALLEST, cut, next_power_of_two
from . import backward_work
from .compile import Launch
from .counted import Work, memory_of, moving

KERNELS = (
    "dt_cumsum",
    "diagonal_products",
    "single_pass",
    "segment_state",
    "state_passing",
    "chunk_scan",
    "state_step",
)


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
    ctas, memory = prod(launch.grid), memory_of(launch)
    if kernel == "state_step":
        # the state is written as well
        state = problem.batch * problem.nheads * problem.headdim * problem.dstate * problem.element_bytes
        return moving(ctas, 1, memory + state, SMALLEST)
    chunk = config["chunk"]
    # tokens from one state that is kept to the next
    length = {"single_pass": problem.seqlen, "split": chunk}.get(config["schedule"])
    length = min(problem.seqlen, length or config.get("segment") or problem.seqlen)
    if kernel == "state_passing":
        # it goes through the states of a head in order
        return moving(ctas, -(-problem.seqlen // length), memory, chunk)
    if kernel in ("dt_cumsum", "diagonal_products"):
        return moving(ctas, 1, memory, chunk)
    if kernel == "chunk_scan":
        return _of_scan(ctas, memory, numbers, chunk, problem)
    return _of_walk(kernel, ctas, memory, numbers, chunk, -(-length // chunk), problem)


def _of_walk(
    kernel: str, ctas: int, memory: float, numbers: dict[str, Any], chunk: int, steps: int, problem: Problem
) -> Work:
    """A walk through `steps` chunks, with outputs or without; each consumer walks for a tile of its own."""
    consumers, heads = int(numbers.get("consumers", 0)), int(numbers.get("heads", 1))
    p, n = _p_tile(numbers, problem), sum(cut(problem.dstate))
    score, outer, size = chunk * chunk, chunk * n * p, problem.element_bytes
    trips = ctas * steps
    if kernel == "segment_state":
        # the operand that the decays weight; the state itself is but scaled, which takes a quarter of what others take
        flops, exps, entries, chain = 2.0 * heads * outer, heads * chunk, heads * (n * p // 4 + chunk * p), 1
        loaded = chunk * n
    else:
        # C B^T is made once for the heads of a CTA; the scores are applied, the old state is read and renewed
        flops, chain = 2.0 * score * n + heads * (2.0 * score * p + 4.0 * outer), 4
        exps, loaded = heads * (score + 2 * chunk), 2 * chunk * n
        # with states by rows of headdim they stay where they are; else they go through shared memory to be multiplied
        states = 1 if consumers or numbers.get("state_major") == "p" else 2
        entries = heads * (2 * score + states * n * p + 2 * chunk * p)
    teams = max(1, consumers)
    # consumers have one copy of B and C
    loaded_bytes = float(trips * (loaded + teams * heads * chunk * p) * size)
    mine = trips * teams
    return Work(
        ctas,
        steps,
        chain,
        memory,
        loaded_bytes,
        mine * flops,
        float(mine * exps),
        float(mine * entries),
        chunk,
        consumers,
    )


def _of_scan(ctas: int, memory: float, numbers: dict[str, Any], chunk: int, problem: Problem) -> Work:
    """The output of a tile of rows of a chunk: what the state gives, then the columns up to the diagonal."""
    rows, columns = (min(chunk, int(numbers.get(name, CONSUMER_ROWS))) for name in ("block_m", "block_k"))
    p, n, size = _p_tile(numbers, problem), sum(cut(problem.dstate)), problem.element_bytes
    # of all rows of a chunk, on average
    steps = max(1, round((chunk + rows) / (2 * columns)))
    score = rows * columns
    once, trip = 2.0 * rows * n * p, 2.0 * score * (n + p)
    trips = ctas * steps
    loaded = ctas * (rows * n + n * p + steps * columns * (n + p)) * size
    entries = trips * 2 * score + ctas * 2 * rows * p
    return Work(
        ctas, steps, 2, memory, float(loaded), ctas * once + trips * trip, float(trips * score), float(entries), rows
    )


def _p_tile(numbers: dict[str, Any], problem: Problem) -> int:
    whole = max(SMALLEST, next_power_of_two(problem.headdim))
    tile = CONSUMER_ROWS if numbers.get("consumers") else int(numbers.get("block_p", problem.headdim))
    return min(max(SMALLEST, tile), whole)
