"""The axes of the backward pass's search space, with the reason for every bound.  Problem, Gpu -> backward_space"""

from __future__ import annotations

from ..gpus import Gpu
from .backward_legal import (
    HAVE_CONSUMERS,
    SHARE,
    first_slice,
    gradients_have_consumers,
    least_registers,
    walks_have_consumers,
)
from .problem import Problem
from .space import HALF_OF_THE_REGISTERS, Axis, Value
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, next_power_of_two

SCHEDULES = ("walk", "chunks")

THIRD_ROLE = "a third adds up what is a sum over states, for which the others would wait"

# registers of a thread with which programs of one consumer share a multiprocessor: two, and more; 0 for no cap
REGISTERS = (0, HALF_OF_THE_REGISTERS, 96, 80)

# tiles of an extent that programs share out: what they hold fits the registers of four or eight warps
SHARES = {"headdim": (64, 32), "dstate": (128, 64)}

# slices of rows and heads, and the share of the L2 cache that what a slice keeps must fill at least
SLICES, LEAST_KEPT = (1, 2, 4, 8, 16), 4

# programs of one kernel on a multiprocessor, above which more of them bring nothing
MOST_PROGRAMS = 8


def axes(schedule: str, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
    """The axes of a schedule for a problem on a GPU, in the order in which a search asks for them.

    Raises ValueError for an unknown schedule.
    """
    check(schedule)
    specialised = schedule == "chunks" and gradients_have_consumers(problem, gpu)
    found = [_chunk(schedule, specialised), _segment(problem, gpu), _state_dtype(problem, specialised)]
    if schedule == "chunks":
        found.append(parts_axis(problem, gpu))
    found.append(slices_axis(problem, gpu))
    if walks_have_consumers(problem, gpu):
        why = "True: walks of adjoints start while those of the states before them, which they do not read, still run"
        found.append(Axis("beside", (False, True), why))
    found += _walk_axes("states", problem, gpu)
    found += _walk_axes("adjoints", problem, gpu)
    found += [
        Axis("passing.block", (256, 512, 1024, 2048), "state entries of a program: it moves memory and adds"),
        Axis("passing.num_warps", (2, 4, 8), "enough loads in flight; more warps only wait"),
    ]
    if specialised:
        found += [
            Axis(
                "chunk_gradients.consumers",
                (2, 3),
                f"rows of a chunk's scores and columns have a group of warps each; {THIRD_ROLE}",
            ),
            Axis("chunk_gradients.num_stages", (3, 2), "heads in flight; shared memory ends at three"),
        ]
    else:
        for kernel in ("chunk_gradients",) if schedule == "chunks" else ("reverse_walk", "group_gradients"):
            found += _whole_axes(kernel, problem, gpu)
    found += [
        Axis("dt_cumsum.block_h", (1, 2, 4, 8, 16, 32), "heads side by side in memory: few make many programs"),
        Axis("dt_cumsum.num_warps", (1, 4), "a running sum along the chunk crosses warps"),
        Axis("dt_gradients.num_warps", (1, 4), "the same sums from the other end"),
    ]
    return tuple(found)


def check(schedule: str) -> None:
    """Raises ValueError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")


def _chunk(schedule: str, specialised: bool) -> Axis:
    if specialised:
        return Axis("chunk", (CONSUMER_ROWS,), "rows that a group of four warps multiplies")
    if schedule == "chunks":
        return Axis("chunk", (64, 32, 16), "all that its gradients need is in registers at once: over 64 it spills")
    return Axis("chunk", (64, 32, 16, 128), "scores grow with its square, and each keeps a state; fp32 wants few rows")


def _segment(problem: Problem, gpu: Gpu) -> Axis:
    why = "0: a program walks the whole sequence; shorter: more programs side by side, and more states to pass on"
    return Axis("segment", (0, *lengths(problem, gpu)), why)


def lengths(problem: Problem, gpu: Gpu) -> tuple[int, ...]:
    """Powers of two, and lengths with which walks for one tile each fill the multiprocessors 1, 2, ... times."""
    found = {64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
    programs = problem.batch * problem.nheads * -(-problem.headdim // CONSUMER_ROWS)
    for times in (1, 2, 3, 4):
        if (count := times * gpu.sms // programs) > 1:
            found.add(-(-problem.seqlen // (count * CONSUMER_ROWS)) * CONSUMER_ROWS)
    return tuple(sorted(length for length in found if length < problem.seqlen))


def _state_dtype(problem: Problem, specialised: bool) -> Axis:
    if specialised:
        return Axis("state_dtype", ("bfloat16",), "states go through shared memory in the dtype of the operands")
    values = ("float32",) if problem.dtype == "float32" else ("bfloat16", "float32")
    return Axis(
        "state_dtype", values, "states and adjoints between kernels; bf16 halves their bytes, fp16 could overflow"
    )


def parts_axis(problem: Problem, gpu: Gpu) -> Axis:
    heads = problem.nheads // problem.ngroups
    most = max(1, MOST_PROGRAMS * gpu.sms // _programs(problem))
    values = tuple(parts for parts in range(1, heads + 1) if heads % parts == 0 and parts <= most)
    return Axis("parts", values, "programs for the heads of a group; each leaves a part of d_B and d_C in fp32")


def slices_axis(problem: Problem, gpu: Gpu) -> Axis:
    kept = 2 * problem.batch * -(-problem.seqlen // CONSUMER_ROWS) * problem.nheads * problem.headdim * problem.dstate
    kept *= problem.element_bytes
    sizes: dict[tuple[int, int], int] = {}
    for count in SLICES:
        part = first_slice(problem, count)
        if count == 1 or kept // count * LEAST_KEPT >= gpu.l2_bytes:
            # of those that come out the same, the first
            sizes.setdefault((part.rows[1], part.heads[1]), count)
    why = "rows, then heads, one slice after the other: states stay in the L2 cache and less is kept; launches are more"
    return Axis("slices", tuple(sizes.values()), why)


def parts_that_fill(problem: Problem, gpu: Gpu) -> tuple[int, ...]:
    """Those with which chunks give every multiprocessor at most one, two and four programs; the fewest first."""
    values = parts_axis(problem, gpu).values
    wanted = [times * gpu.sms // _programs(problem) for times in (1, 2, 4)]
    found = [max((value for value in values if int(value) <= most), default=1) for most in wanted]
    return tuple(dict.fromkeys(int(value) for value in found))


def _programs(problem: Problem) -> int:
    return problem.batch * problem.ngroups * -(-problem.seqlen // CONSUMER_ROWS)


def _walk_axes(walk: str, problem: Problem, gpu: Gpu) -> list[Axis]:
    whole = max(CONSUMER_ROWS, next_power_of_two(problem.headdim))
    blocks = tuple(block for block in (16, 32, 64, 128) if block <= whole)
    found = [
        Axis(f"{walk}.block_p", blocks, "tile of headdim: smaller makes more programs, each of which reads B or C"),
        Axis(f"{walk}.num_warps", (2, 4, 8), "4 warps are one matrix unit's group; 8 halve the registers of each"),
        Axis(f"{walk}.num_stages", (1, 2, 3), "chunks in flight; each costs the shared memory of its tiles"),
    ]
    if walks_have_consumers(problem, gpu):
        fewest = least_registers(problem)
        why = "groups of warps that multiply, with a warp that loads; 0: all warps do both"
        found.insert(0, Axis(f"{walk}.consumers", (0, 1, 2), why))
        why = "a cap on the registers lets programs of one consumer share a multiprocessor; a product takes some"
        values = tuple(count for count in REGISTERS if count in (0, HALF_OF_THE_REGISTERS) or count >= fewest)
        found.append(Axis(f"{walk}.maxnreg", values, why))
    return found


def _whole_axes(kernel: str, problem: Problem, gpu: Gpu) -> list[Axis]:
    def tiles(extent: int) -> tuple[int, ...]:
        half = next_power_of_two(-(-extent // 2))
        return (LARGEST, half) if SMALLEST <= half < min(extent, LARGEST) else (LARGEST,)

    found = [
        Axis(f"{kernel}.num_warps", (8, 4), "8 warps halve the registers of each thread; 4 wait for each other less"),
        Axis(f"{kernel}.num_stages", (1, 2, 3), "heads or chunks in flight; each costs the shared memory of its tiles"),
        Axis(f"{kernel}.block_n", tiles(problem.dstate), "wider states are cut in two: products of half the width"),
        Axis(f"{kernel}.block_p", tiles(problem.headdim), "the same for headdim"),
    ]
    if kernel in SHARE and not problem.layout:
        extent = SHARE[kernel]
        values = (0, *(block for block in SHARES[extent] if block < getattr(problem, extent)))
        why = f"tile of {extent} of each program; 0: all of it. What it holds fits registers; other operands are reread"
        found.append(Axis(f"{kernel}.share", values, why))
        if HAVE_CONSUMERS[kernel](problem, gpu):
            why = "groups of warps that multiply, with a warp that loads and a tile each; 0: all warps do all"
            values: tuple[Value, ...] = (0, 2)
            if kernel == "group_gradients":
                why += f"; {THIRD_ROLE}"
                values = (0, 2, 3)
            found.append(Axis(f"{kernel}.consumers", values, why))
            if kernel == "reverse_walk":
                why = "1: consumers multiply their state from registers, and its tiles leave for memory in between"
                found.append(Axis(f"{kernel}.left", (0, 1), why))
    return found
