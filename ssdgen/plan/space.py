"""The search space of a schedule: axes with the reason for every bound, and what is legal.  Problem, Gpu -> tune

A config is nested, {"schedule", "chunk", ..., "kernels": {kernel: {axis: value}}}; a kernel's axis is "kernel.axis".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..gpus import Gpu, find
from .problem import Problem
from .tiles import LARGEST, SMALLEST, cut, next_power_of_two

SCHEDULES = ("single_pass", "segments", "split")

Config = dict[str, Any]
Value = int | bool | str

# what a GPU without opt-in shared memory gives a CTA, less what the compiler keeps for reductions
SMALL_SHARED = 44 * 1024

# a thread has 255 registers; addresses, operands in flight and masks take the rest of them
ACCUMULATORS = 224


@dataclass(frozen=True)
class Axis:
    """One choice of a search.  why: the reason for its bounds."""

    name: str
    values: tuple[Value, ...]
    why: str


def axes(schedule: str, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]:
    """The axes of a schedule for a problem on a GPU, in the order in which a search asks for them.

    Raises ValueError for an unknown schedule.
    """
    _check(schedule)
    found = [_chunk(schedule)]
    if schedule == "single_pass":
        found.append(
            Axis("prepared", (True, False), "False saves a launch: step sizes and running sums in the walk itself")
        )
    if schedule == "segments":
        lengths = tuple(length for length in (128, 256, 512, 1024, 2048, 4096, 8192, 16384) if length < problem.seqlen)
        found.append(
            Axis(
                "segment",
                lengths or (128,),
                "shorter: more programs side by side; longer: fewer states to write and read",
            )
        )
    if schedule != "single_pass":
        found.append(_state_dtype(problem))
        found += _walk_axes("segment_state", problem, gpu)
        found += [
            Axis("state_passing.block", (256, 512, 1024, 2048), "state entries of a program: it moves memory and adds"),
            Axis("state_passing.num_warps", (2, 4, 8), "enough loads in flight; more warps only wait"),
        ]
    found += _scan_axes(problem) if schedule == "split" else _walk_axes("single_pass", problem, gpu)
    found += [
        Axis("dt_cumsum.block_h", (1, 2, 4, 8, 16, 32), "heads side by side in memory: few make many programs"),
        Axis("dt_cumsum.num_warps", (1, 4), "a running sum along the chunk crosses warps"),
    ]
    return tuple(found)


def config(schedule: str, assignment: dict[str, Value]) -> Config:
    """The config with these values of a schedule's axes."""
    _check(schedule)
    kernels: dict[str, dict[str, Value]] = {kernel: {} for kernel in _kernels(schedule)}
    found: Config = {"schedule": schedule, "kernels": kernels}
    for name, value in assignment.items():
        kernel, dot, axis = name.partition(".")
        if dot:
            kernels.setdefault(kernel, {})[axis] = value
        else:
            found[name] = value
    if found.get("prepared") is False:
        kernels.pop("dt_cumsum", None)
    return found


def flatten(config: Config) -> dict[str, Value]:
    """{axis name: value} of a config, the schedule included."""
    flat = {name: value for name, value in config.items() if name != "kernels"}
    for kernel, numbers in config["kernels"].items():
        flat |= {f"{kernel}.{axis}": value for axis, value in numbers.items()}
    return flat


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
    if problem.dstate > 2 * LARGEST:
        return f"dstate {problem.dstate} is over {2 * LARGEST}, the most that a program keeps in registers"
    for kernel, numbers in config["kernels"].items():
        if kernel in ("single_pass", "segment_state"):
            reason = _walk_reason(kernel, config, numbers, problem, gpu)
        elif kernel == "chunk_scan":
            reason = _scan_reason(config, numbers, problem, gpu)
        else:
            reason = None
        if reason:
            return f"{kernel}: {reason}"
    return None


def minimal(schedule: str, problem: Problem) -> Config:
    """A config that fits 48 KB of shared memory on every GPU."""
    _check(schedule)
    chunk = next(
        size for size in (64, 32, 16) if size == 16 or _smallest_shared(schedule, size, problem) <= SMALL_SHARED
    )
    found: Config = {"schedule": schedule, "chunk": chunk, "kernels": {kernel: {} for kernel in _kernels(schedule)}}
    if schedule == "single_pass":
        found["prepared"] = True
    else:
        found["state_dtype"] = "float32"
    if schedule == "segments":
        found["segment"] = 256
    for kernel in ("single_pass", "segment_state", "chunk_scan"):
        if kernel in found["kernels"]:
            found["kernels"][kernel] = {"block_p": 16, "num_warps": 2, "num_stages": 1}
    if schedule == "split":
        found["kernels"]["chunk_scan"] |= {"block_m": 16, "block_k": 16}
    return found


def starts(problem: Problem, gpu: Gpu) -> tuple[Config, ...]:
    """Legal configs that are often near the best, for a search to try before it guesses.

    One program per head walks in tiles of 64; where that leaves multiprocessors idle, segments give each two programs.
    """
    per_head = problem.batch * problem.nheads
    length = max(256, next_power_of_two(problem.seqlen * per_head // (2 * gpu.sms)))
    found = []
    for chunk in (64, 32):
        for stages in (3, 2, 4):
            walk = {"state_major": "p", "block_p": 64, "descriptors": True, "num_warps": 4, "num_stages": stages}
            wanted: dict[str, Value] = {
                "chunk": chunk,
                "segment": length,
                "dt_cumsum.block_h": 8,
                "dt_cumsum.num_warps": 4,
            }
            wanted |= {f"single_pass.{axis}": value for axis, value in walk.items()}
            wanted |= {f"segment_state.{axis}": value for axis, value in walk.items()} | {
                "segment_state.state_major": "n"
            }
            wanted |= {"state_passing.block": 512, "state_passing.num_warps": 4}
            schedules = ("single_pass", "segments") if per_head < 4 * gpu.sms else ("single_pass",)
            found += [_nearest(schedule, problem, gpu, wanted) for schedule in schedules]
    return tuple(config for config in found if legal(config, problem, gpu) is None)


def _nearest(schedule: str, problem: Problem, gpu: Gpu, wanted: dict[str, Value]) -> Config:
    """The config with the wanted values where an axis has them, and an axis's first value elsewhere."""
    chosen = {}
    for axis in axes(schedule, problem, gpu):
        value = wanted.get(axis.name)
        chosen[axis.name] = value if value in axis.values else axis.values[0]
    return config(schedule, chosen)


def smallest() -> Config:
    """The config that a launcher falls back to: what fits 48 KB at every size that the kernels take."""
    return minimal("single_pass", Problem(1, 1, 1, SMALLEST, 2 * LARGEST, dtype="float32"))


def fingerprint() -> str:
    """What the space offers, as a short text: it changes when an axis, a value or a bound does."""
    gpus = [find(name) for name in ("h200", "a100")]
    problems = [Problem(8, 2048, 80, 64, 128), Problem(1, 16384, 24, 80, 96, dtype="float32")]
    offered = [
        [(axis.name, axis.values) for axis in axes(schedule, problem, gpu)]
        for schedule in SCHEDULES
        for problem in problems
        for gpu in gpus
    ]
    text = json.dumps([offered, SMALL_SHARED, ACCUMULATORS, SMALLEST, LARGEST], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- axes


def _check(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")


def _kernels(schedule: str) -> tuple[str, ...]:
    return {
        "single_pass": ("dt_cumsum", "single_pass"),
        "segments": ("dt_cumsum", "segment_state", "state_passing", "single_pass"),
        "split": ("dt_cumsum", "segment_state", "state_passing", "chunk_scan"),
    }[schedule]


def _chunk(schedule: str) -> Axis:
    if schedule == "split":
        return Axis(
            "chunk", (64, 128, 256), "one state per chunk is written and read: below 64 that is most of the time"
        )
    return Axis(
        "chunk",
        (32, 64, 128),
        "scores grow with its square and the state's work per token shrinks with it; over 128 it spills",
    )


def _state_dtype(problem: Problem) -> Axis:
    values = ("float32",) if problem.dtype == "float32" else ("float32", "bfloat16")
    return Axis("state_dtype", values, "states between kernels; bf16 halves their bytes and rounds them once more")


def _walk_axes(kernel: str, problem: Problem, gpu: Gpu) -> list[Axis]:
    heads_per_group = problem.nheads // problem.ngroups
    offered = (1, 2) if kernel == "single_pass" else (1, 2, 4)
    heads = tuple(count for count in offered if heads_per_group % count == 0 and (count == 1 or _has_descriptors(gpu)))
    whole = next_power_of_two(max(SMALLEST, problem.headdim))
    blocks = tuple(block for block in (16, 32, 64, 128, 256) if whole // 8 <= block <= whole)
    descriptors = (False, True) if _has_descriptors(gpu) else (False,)
    found = [
        Axis(f"{kernel}.heads", heads, "heads of a program share B, C and C B^T; they must be of one group"),
        Axis(
            f"{kernel}.block_p",
            blocks,
            "tile of headdim: smaller makes more programs, each of which reads B and C again",
        ),
        Axis(f"{kernel}.descriptors", descriptors, "the copy engine moves tiles without registers; it came with sm90"),
        Axis(
            f"{kernel}.num_warps",
            (2, 4, 8),
            "4 warps are one matrix unit's group; 8 halve the registers of each thread",
        ),
        Axis(f"{kernel}.num_stages", (1, 2, 3, 4), "chunks in flight; each costs the shared memory of its tiles"),
    ]
    if problem.headdim >= 32:
        why = "p: state and weighted input stay in registers, for tiles of headdim of at least 64; n: any tile"
        found.insert(2, Axis(f"{kernel}.state_major", ("n", "p"), why))
    return found


def _scan_axes(problem: Problem) -> list[Axis]:
    whole = next_power_of_two(max(SMALLEST, problem.headdim))
    blocks = tuple(block for block in (16, 32, 64, 128, 256) if whole // 8 <= block <= whole)
    return [
        Axis("chunk_scan.block_m", (32, 64, 128), "rows of a program; one matrix instruction takes 64"),
        Axis(
            "chunk_scan.block_k",
            (32, 64, 128),
            "columns of the diagonal block at a time; the loop stops at the diagonal",
        ),
        Axis(
            "chunk_scan.block_p",
            blocks,
            "tile of headdim: smaller makes more programs, each of which makes C B^T again",
        ),
        Axis(
            "chunk_scan.num_warps",
            (2, 4, 8),
            "4 warps are one matrix unit's group; 8 halve the registers of each thread",
        ),
        Axis("chunk_scan.num_stages", (1, 2, 3, 4), "column tiles in flight; each costs shared memory"),
    ]


def _has_descriptors(gpu: Gpu) -> bool:
    return gpu.backend == "cuda" and isinstance(gpu.capability, int) and gpu.capability >= 90


# ---- what fits


def _tiles(problem: Problem, numbers: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tiles of dstate and of headdim, as the launchers choose them."""
    block = numbers.get("block_p") or problem.headdim
    p_tiles = (max(SMALLEST, min(block, LARGEST)),) if block < problem.headdim else cut(problem.headdim)
    return cut(problem.dstate), p_tiles


def _walk_reason(kernel: str, config: Config, numbers: dict[str, Any], problem: Problem, gpu: Gpu) -> str | None:
    heads, warps, major = numbers.get("heads", 1), numbers.get("num_warps", 4), numbers.get("state_major", "n")
    described, outputs, chunk = numbers.get("descriptors", False), kernel == "single_pass", config["chunk"]
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
    if described and not _has_descriptors(gpu):
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


def _smallest_shared(schedule: str, chunk: int, problem: Problem) -> int:
    """Bytes of shared memory of the largest kernel of a schedule with the smallest tiles: all operands of a product."""
    n = sum(cut(min(problem.dstate, 2 * LARGEST)))
    element, p = problem.element_bytes, 16
    state = chunk * (n + 2 * p) + n * p
    output = (2 * chunk * n + n * p + chunk * chunk + 2 * chunk * p) if schedule != "split" else state
    return max(state, output) * element
