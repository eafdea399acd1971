"""What is legal of the backward pass on a GPU: where warps can be specialised, registers, shared memory.

Config -> reason -> backward_space
"""

from __future__ import annotations

from typing import Any

from ..gpus import Gpu
from .legal import ACCUMULATORS, OF_EVERY_LAYOUT, Config, has_consumers
from .problem import Problem
from .slices import Slice, cut_into, pieces_of, slices
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, consumer_tiles, cut, next_power_of_two

# walks that make the states which enter chunks or segments, and the adjoints of those which leave them
STATES = ("segment_state", "chunk_states")
ADJOINTS = ("segment_adjoint", "chunk_adjoints")
# kernels whose programs have all of headdim and dstate, and of which of the two they may have a tile each
WHOLE = ("reverse_walk", "group_gradients", "chunk_gradients")
SHARE = {"reverse_walk": "headdim", "group_gradients": "dstate"}
# of dstate, what a program that adds up heads has where its warps are specialised
SHARED_DSTATE = 128


def legal(config: Config, problem: Problem, gpu: Gpu) -> str | None:
    """Why a config cannot run, or would certainly be slow, on a GPU; None if neither is known."""
    chunk, segment = config["chunk"], config.get("segment")
    if chunk < SMALLEST or chunk != next_power_of_two(chunk):
        return f"chunk {chunk} is not a power of two of at least {SMALLEST}"
    if segment is not None:
        if segment < 1 or segment % chunk:
            return f"segment {segment} is not a multiple of chunk {chunk}"
        if segment >= problem.seqlen:
            return f"one segment of {segment} covers the sequence: leave it out"
    if problem.layout and config["schedule"] not in OF_EVERY_LAYOUT:
        return f"{config['schedule']} is a schedule of Mamba-2's own layout"
    for name in ("dstate", "headdim"):
        if (extent := getattr(problem, name)) > 2 * LARGEST:
            return f"{name} {extent} is over {2 * LARGEST}, the most that a program keeps in registers"
    heads = problem.nheads // problem.ngroups
    if heads % config.get("parts", 1):
        return f"{config['parts']} parts do not share out the {heads} heads of a group evenly"
    if config.get("slices", 1) != 1 and (reason := _slices_reason(config, problem, gpu)):
        return reason
    for kernel, numbers in config["kernels"].items():
        if problem.layout and numbers.get("share"):
            return f"{kernel}: programs of {problem.layout} have all of headdim and dstate"
        if reason := _reason(kernel, config, numbers, problem, gpu):
            return f"{kernel}: {reason}"
    return None


def first_slice(problem: Problem, wanted: int) -> Slice:
    """The first of so many slices, or of a few more; the others have no more rows and as many heads."""
    cut = cut_into(wanted, problem.batch, pieces_of(problem.nheads, problem.ngroups))
    return slices(cut, problem.batch, problem.nheads, problem.ngroups)[0]


def _slices_reason(config: Config, problem: Problem, gpu: Gpu) -> str | None:
    count, segment = config["slices"], config.get("segment")
    if not isinstance(count, int) or count < 1:
        return f"slices is {count!r}, not a number of at least 1"
    if segment == config["chunk"]:
        return f"{count} slices, and where a segment is a chunk nothing is kept that they could share"
    part = first_slice(problem, count)
    heads = problem.nheads // problem.ngroups // part.shares
    if heads % config.get("parts", 1):
        return f"{config['parts']} parts do not share out the {heads} heads of a group's slice evenly"
    tiles, segments = -(-problem.headdim // CONSUMER_ROWS), -(-problem.seqlen // (segment or problem.seqlen))
    programs = part.rows[1] * part.heads[1] * tiles * segments
    if programs < gpu.sms // 2:
        return f"{count} slices leave walks of {programs} programs, and {gpu.name} has {gpu.sms} multiprocessors"
    return None


def walks_have_consumers(problem: Problem, gpu: Gpu) -> bool:
    """Whether the walks can be specialised by warps.

    What they keep goes through shared memory in the operands' dtype, and fp16 states could overflow: bf16 only.
    """
    return has_consumers(problem, gpu) and problem.dtype == "bfloat16"


def least_registers(problem: Problem) -> int:
    """Of a thread of a walk that is specialised by warps: its share of the state, and what a product asks beside it.

    With fewer the assembler refuses (it names 94 for 128 states).
    """
    return CONSUMER_ROWS * consumer_tiles(problem.dstate)[0] // 128 + 30


def gradients_have_consumers(problem: Problem, gpu: Gpu) -> bool:
    """Whether the kernel that makes all gradients of a chunk can be: one tile of headdim, and of dstate."""
    one_tile = problem.headdim == CONSUMER_ROWS and consumer_tiles(problem.dstate)[1] == 1
    return walks_have_consumers(problem, gpu) and one_tile


def walk_back_has_consumers(problem: Problem, gpu: Gpu) -> bool:
    """Whether the walk back of the schedule "walk" can be: two walks, of heads or of tiles of headdim, in a program."""
    walks = problem.nheads // problem.ngroups * -(-problem.headdim // CONSUMER_ROWS)
    return walks_have_consumers(problem, gpu) and walks % 2 == 0


def groups_have_consumers(problem: Problem, gpu: Gpu) -> bool:
    """Whether the kernel that adds up the heads of a group can be: at most two tiles of headdim."""
    return walks_have_consumers(problem, gpu) and problem.headdim <= 2 * CONSUMER_ROWS


HAVE_CONSUMERS = {
    **dict.fromkeys((*STATES, *ADJOINTS), walks_have_consumers),
    "chunk_gradients": gradients_have_consumers,
    "reverse_walk": walk_back_has_consumers,
    "group_gradients": groups_have_consumers,
}


def _reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    if numbers.get("consumers"):
        return _consumers_reason(kernel, config, numbers, problem, gpu)
    if kernel in (*STATES, *ADJOINTS):
        return _walk_reason(config, numbers, problem, gpu)
    return _whole_reason(kernel, config, numbers, problem, gpu) if kernel in WHOLE else None


def _consumers_reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    if not HAVE_CONSUMERS[kernel](problem, gpu):
        return f"{gpu.name} or the problem has no consumers: Hopper's products, bf16 and tiles of {CONSUMER_ROWS} rows"
    if config["chunk"] != CONSUMER_ROWS:
        return f"consumers go with chunks of {CONSUMER_ROWS}"
    if config.get("state_dtype") != problem.dtype:
        return f"consumers go with states in the operands' {problem.dtype}"
    block, tiles = consumer_tiles(problem.dstate)
    rows, size = CONSUMER_ROWS, problem.element_bytes
    if kernel == "chunk_gradients":
        # x, d_y and both states of a head a stage; B and C, and d_C and d_B until they are written
        stage, fixed = 2 * rows * rows + 2 * rows * block, 2 * rows * block
        share = 1
    elif kernel == "reverse_walk":
        # B, C, and x and d_y of each consumer a stage; each has a tile through which the adjoint goes out
        n, consumers = max(2 * rows, block * tiles), numbers["consumers"]
        stage, fixed, share = 2 * rows * (n + consumers * rows), consumers * rows * rows, 1
    elif kernel == "group_gradients":
        # the same as chunk_gradients, with all of headdim and a tile of dstate
        n, p = min(block, SHARED_DSTATE), -(-problem.headdim // rows) * rows
        stage, fixed, share = 2 * p * (rows + n), 2 * rows * n, 1
    else:
        consumers = numbers["consumers"]
        # B or C a stage, and x or d_y of each consumer; the state goes out through shared memory
        stage, fixed = rows * (block * tiles + consumers * rows), 0
        share = 2 if numbers.get("maxnreg") else 1
        if 0 < numbers.get("maxnreg", 0) < (least := least_registers(problem)):
            return f"{numbers['maxnreg']} registers, and a product takes {least}"
        if share > 1 and tiles > 1:
            return "programs that share a multiprocessor go with one tile of dstate: their registers spill"
    needed = (stage * numbers.get("num_stages", 2) + fixed) * size
    if needed > gpu.smem_per_cta // share:
        return f"{needed} bytes of shared memory for each of {share} programs, and {gpu.name} has {gpu.smem_per_cta}"
    return None


def _walk_reason(config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    n, chunk = sum(cut(problem.dstate)), config["chunk"]
    p = max(SMALLEST, min(numbers.get("block_p", CONSUMER_ROWS), next_power_of_two(problem.headdim)))
    registers = _registers_reason(n * p + chunk * p, numbers, gpu)
    return registers or _stages_reason(chunk * (n + p) * problem.element_bytes, numbers, gpu)


def _whole_reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    chunk, size = config["chunk"], problem.element_bytes
    n, p = tiles_of(kernel, numbers, problem)
    scores = 2 * chunk * chunk
    if kernel == "reverse_walk":
        # the adjoint of the state stays in registers
        held, loaded = n * p + scores + chunk * p, 2 * chunk * (n + p) * size
    else:
        # d_B and d_C stay in registers; the states of every head are read
        state = 2 if config.get("state_dtype") == "bfloat16" else 4
        held, loaded = 2 * chunk * n + scores + chunk * p, 2 * chunk * p * size + 2 * n * p * state
    return _registers_reason(held, numbers, gpu) or _stages_reason(loaded, numbers, gpu)


def tiles_of(kernel: str, numbers: dict[str, Any], problem: Problem) -> tuple[int, int]:
    """dstate and headdim as a program has them: all of both, or a tile of the one that programs share out.

    A consumer of the walk back has a tile of headdim.
    """
    extents = {"dstate": sum(cut(problem.dstate)), "headdim": sum(cut(problem.headdim))}
    block = numbers.get("share", 0)
    if numbers.get("consumers"):
        block = CONSUMER_ROWS if kernel == "reverse_walk" else SHARED_DSTATE
    if block and kernel in SHARE:
        extents[SHARE[kernel]] = min(block, extents[SHARE[kernel]])
    return extents["dstate"], extents["headdim"]


def _registers_reason(accumulators: int, numbers: dict[str, Any], gpu: Gpu) -> str | None:
    warps = numbers.get("num_warps", 4)
    if accumulators <= ACCUMULATORS * warps * gpu.warp_size:
        return None
    return f"{accumulators} accumulators do not fit the registers of {warps} warps"


def _stages_reason(loaded: int, numbers: dict[str, Any], gpu: Gpu) -> str | None:
    needed = loaded * (numbers.get("num_stages", 1) - 1)
    if needed <= gpu.smem_per_cta:
        return None
    return f"at least {needed} bytes of shared memory, and {gpu.name} has {gpu.smem_per_cta}"
