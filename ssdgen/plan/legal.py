"""What is legal on a GPU: registers, shared memory, and what shapes of code go together.  Config -> reason -> space"""

from __future__ import annotations

from typing import Any

from ..gpus import Gpu
from .problem import Problem
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, consumer_tiles, cut, next_power_of_two

Config = dict[str, Any]

WALKS = ("single_pass", "segment_state")

# schedules that have kernels in every head layout, of either pass
OF_EVERY_LAYOUT = ("single_pass", "segments", "walk")

# a thread has 255 registers; addresses, operands in flight and masks take the rest of them
ACCUMULATORS = 224


def legal(config: Config, problem: Problem, gpu: Gpu) -> str | None:
    """Why a config cannot run, or would certainly be slow, on a GPU; None if neither is known."""
    chunk, segment = config["chunk"], config.get("segment")
    if chunk < SMALLEST or chunk != next_power_of_two(chunk):
        return f"chunk {chunk} is not a power of two of at least {SMALLEST}"
    if config["schedule"] == "segments" and segment is not None:
        if segment % chunk:
            return f"segment {segment} is not a multiple of chunk {chunk}"
        if segment >= problem.seqlen:
            return f"one segment of {segment} covers the sequence: that is the single pass"
    if problem.layout and config["schedule"] not in OF_EVERY_LAYOUT:
        return f"{config['schedule']} is a schedule of Mamba-2's own layout"
    if problem.dstate > 2 * LARGEST:
        return f"dstate {problem.dstate} is over {2 * LARGEST}, the most that a program keeps in registers"
    for kernel, numbers in config["kernels"].items():
        if kernel in WALKS and numbers.get("consumers"):
            reason = _consumers_reason(kernel, config, numbers, problem, gpu)
        elif kernel in WALKS:
            reason = _walk_reason(kernel, config, numbers, problem, gpu)
        elif kernel == "chunk_scan":
            reason = _scan_reason(config, numbers, problem, gpu)
        else:
            reason = None
        if reason:
            return f"{kernel}: {reason}"
    return None


def has_descriptors(gpu: Gpu) -> bool:
    return gpu.backend == "cuda" and isinstance(gpu.capability, int) and gpu.capability >= 90


def has_consumers(problem: Problem, gpu: Gpu) -> bool:
    """Whether kernels can be specialised by warps: Hopper's products, of 16-bit operands in tiles of 64 rows."""
    wide = problem.headdim >= CONSUMER_ROWS and problem.dstate <= LARGEST
    half = problem.dtype in ("bfloat16", "float16")
    return gpu.backend == "cuda" and gpu.capability == 90 and half and wide and not problem.layout


def _tiles(problem: Problem, numbers: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tiles of dstate and of headdim, as the launchers choose them."""
    block = numbers.get("block_p") or problem.headdim
    p_tiles = (max(SMALLEST, min(block, LARGEST)),) if block < problem.headdim else cut(problem.headdim)
    return cut(problem.dstate), p_tiles


def _walk_reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    heads, warps, major = numbers.get("heads", 1), numbers.get("num_warps", 4), numbers.get("state_major", "n")
    described, outputs, chunk = numbers.get("descriptors", False), kernel == "single_pass", config["chunk"]
    if problem.layout and (heads > 1 or described or major == "p"):
        return f"{problem.layout} goes with one head, states by rows of dstate, and pointers"
    if (problem.nheads // problem.ngroups) % heads:
        return f"{heads} heads of a program are not of one group of {problem.nheads // problem.ngroups}"
    n_tiles, p_tiles = _tiles(problem, numbers)
    tiled = len(n_tiles) > 1 or len(p_tiles) > 1
    if not config.get("prepared", True) and (heads > 1 or described or major == "p"):
        return "step sizes inside the walk go with one head, states by rows of dstate, and pointers"
    if tiled and (heads > 1 or described or major == "p"):
        return "two tiles of dstate or headdim go with one head, states by rows of dstate, and pointers"
    if major == "p" and (heads > 1 or sum(p_tiles) < 64):
        return "states by rows of headdim go with one head and 64 rows, which one matrix instruction takes"
    if heads > 1 and not described:
        return f"{heads} heads of a program go with tensor descriptors"
    if described and not has_descriptors(gpu):
        return f"{gpu.name} has no tensor descriptors; they came with sm90"
    if outputs and gpu.arch == "sm90" and min(p_tiles) < 64 and warps >= 4 and numbers.get("num_stages", 1) == 1:
        return "Triton reads outside shared memory with one stage, 4 warps and a tile of headdim under 64 on sm90"
    n, p = sum(n_tiles), sum(p_tiles)
    accumulators = heads * n * p + (chunk * p + 2 * chunk * chunk if outputs else chunk * p)
    if accumulators > ACCUMULATORS * warps * gpu.warp_size:
        return f"{accumulators} accumulators do not fit the registers of {warps} warps"
    loaded = chunk * (n * (1 + outputs) + heads * p) * problem.element_bytes
    # the state and the scores pass through shared memory on their way to the matrix unit
    passing = (n * p + chunk * chunk) * problem.element_bytes if outputs else chunk * p * problem.element_bytes
    return _shared_reason(_in_flight(numbers, loaded, passing), gpu)


def _consumers_reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    if not has_consumers(problem, gpu):
        return f"{gpu.name} or the problem has no consumers: Hopper's products, 16-bit operands, headdim of 64 or more"
    if config["chunk"] != CONSUMER_ROWS or not config.get("prepared", True):
        return f"consumers go with chunks of {CONSUMER_ROWS} and prepared step sizes"
    block, tiles = consumer_tiles(problem.dstate)
    consumers, outputs = numbers["consumers"], kernel == "single_pass"
    square = CONSUMER_ROWS * CONSUMER_ROWS * problem.element_bytes
    stage = CONSUMER_ROWS * block * tiles * (1 + outputs) * problem.element_bytes + consumers * square
    # scores in two terms and y go out through shared memory
    needed = stage * numbers.get("num_stages", 2) + (3 * consumers * square if outputs else 0)
    share = 2 if numbers.get("maxnreg") else 1
    if needed > gpu.smem_per_cta // share:
        return f"{needed} bytes of shared memory for each of {share} programs, and {gpu.name} has {gpu.smem_per_cta}"
    if config.get("aside") and (tiles > 1 or consumers > 1 or outputs and not numbers.get("ahead")):
        return "step sizes are made aside for one consumer and one tile of dstate, and where C B^T is made ahead"
    if numbers.get("ahead") and numbers.get("num_stages", 2) < 2:
        return "C B^T of the next chunk is made while this one is held: that takes two stages"
    if numbers.get("ahead") and (tiles > 1 or numbers["consumers"] > 1):
        return "C B^T of the next chunk goes with one consumer and one tile of dstate: the registers of two are full"
    if share > 1 and tiles > 1:
        return "two programs on a multiprocessor go with one tile of dstate: their registers spill"
    return None


def _scan_reason(config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    rows, columns = (min(config["chunk"], numbers.get(name, 64)) for name in ("block_m", "block_k"))
    n_tiles, p_tiles = _tiles(problem, numbers)
    n, p, warps = sum(n_tiles), sum(p_tiles), numbers.get("num_warps", 4)
    accumulators = rows * p + 2 * rows * columns
    if accumulators > ACCUMULATORS * warps * gpu.warp_size:
        return f"{accumulators} accumulators do not fit the registers of {warps} warps"
    loaded = columns * (n + p) * problem.element_bytes
    return _shared_reason(_in_flight(numbers, loaded, rows * n * problem.element_bytes), gpu)


def _in_flight(numbers: dict[str, Any], loaded: int, passing: int) -> int:
    """Bytes of shared memory at least: stages that are loaded ahead or, without any, what a product reads."""
    ahead = numbers.get("num_stages", 1) - 1
    return loaded * ahead + passing // 2 if ahead else max(loaded, passing) // 2


def _shared_reason(needed: int, gpu: Gpu) -> str | None:
    if needed <= gpu.smem_per_cta:
        return None
    return f"at least {needed} bytes of shared memory, and {gpu.name} has {gpu.smem_per_cta}"
