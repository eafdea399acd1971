"""The search space of a schedule: axes with the reason for every bound, and what is legal.  Problem, Gpu -> tune

A config is nested, {"schedule", "chunk", ..., "kernels": {kernel: {axis: value}}}; a kernel's axis is "kernel.axis".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..gpus import Gpu, find
from .legal import ACCUMULATORS, WALKS, Config, has_consumers, has_descriptors, legal
from .problem import Problem
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, cut, next_power_of_two

SCHEDULES = ("single_pass", "segments", "split")

Value = int | bool | str

# what a GPU without opt-in shared memory gives a CTA, less what the compiler keeps for reductions
SMALL_SHARED = 44 * 1024

# registers of a thread with which two programs of one consumer share a multiprocessor
HALF_OF_THE_REGISTERS = 128

# in which the scores go into their product, if a config says nothing
TERMS = 2
# in one, but for the diagonal, which reaches y in float32
APART = "apart"

# axes that came after records were made, of which the first value is what these mean: records stay as new as they were
LATER: dict[str, tuple[Value, ...]] = {
    "single_pass.terms": (TERMS, 1, APART),
    "single_pass.ahead": (False, True),
    "aside": (False, True),
}

# what the kernels that are specialised by warps have fixed
CONSUMERS_HAVE = {"heads": 1, "block_p": CONSUMER_ROWS, "state_major": "p", "descriptors": True, "num_warps": 4}


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
        found.append(
            Axis(
                "segment",
                _segments(problem, gpu),
                "shorter: more programs side by side; longer: fewer states to write and read; "
                "lengths that are no power of two fill the multiprocessors a whole number of times",
            )
        )
        if has_consumers(problem, gpu):
            why = "True: walks go through the few summaries before theirs themselves, which saves a launch"
            found.append(Axis("joined", (False, True), why))
    if schedule != "split" and has_consumers(problem, gpu):
        why = "True: walks whose warps are specialised make the step sizes in one of them, which saves a launch"
        found.append(Axis("aside", (False, True), why))
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
    for numbers in kernels.values():
        _keep_what_matters(numbers)
    if "joined" in found and not kernels["single_pass"].get("consumers"):
        del found["joined"]
    walks = [kernels[walk] for walk in WALKS if walk in kernels]
    if not (found.get("aside") and found.get("prepared", True) and all(walk.get("consumers") for walk in walks)):
        found.pop("aside", None)  # else dt_cumsum's numbers stay: calls that the walks cannot take are prepared by it
    return found


def _keep_what_matters(numbers: dict[str, Value]) -> None:
    """Leave out what a kernel does not ask for, so that one config has one form."""
    consumers = numbers.pop("consumers", 0)
    if consumers:
        for name in CONSUMERS_HAVE:
            numbers.pop(name, None)
        numbers["consumers"] = consumers
    if consumers != 1 or not numbers.get("maxnreg"):
        numbers.pop("maxnreg", None)
    if not consumers or numbers.get("terms") == TERMS:
        numbers.pop("terms", None)
    if not consumers or not numbers.get("ahead"):
        numbers.pop("ahead", None)


def flatten(config: Config) -> dict[str, Value]:
    """{axis name: value} of a config, the schedule included."""
    flat: dict[str, Value] = {"joined": False} if config["schedule"] == "segments" else {}
    flat |= {"aside": False} if config["schedule"] != "split" else {}
    flat |= {name: value for name, value in config.items() if name != "kernels"}
    for kernel, numbers in config["kernels"].items():
        implied = CONSUMERS_HAVE if numbers.get("consumers") else {}
        whole = {"consumers": 0, "maxnreg": 0, **implied} if kernel in WALKS else {}
        whole |= {"terms": TERMS, "ahead": False} if kernel == "single_pass" else {}
        flat |= {f"{kernel}.{axis}": value for axis, value in {**whole, **numbers}.items()}
    return flat


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
    specialised = has_consumers(problem, gpu)
    found += _starts_of_consumers(problem, gpu) if specialised else []
    for chunk in (64,) if specialised else (64, 32):
        for stages in (3,) if specialised else (3, 2, 4):
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


def _starts_of_consumers(problem: Problem, gpu: Gpu) -> list[Config]:
    """Programs of two consumers, or two programs of one on a multiprocessor; segments that fill it once to thrice."""
    found = []
    fill = [length for length in _segments(problem, gpu) if length & (length - 1)][-2:]
    for consumers, stages, registers in ((1, 2, HALF_OF_THE_REGISTERS), (2, 3, 0), (2, 2, 0)):
        wanted: dict[str, Value] = {"chunk": CONSUMER_ROWS, "joined": True, "dt_cumsum.block_h": 8}
        wanted |= {"dt_cumsum.num_warps": 4, "state_passing.block": 512, "state_passing.num_warps": 4}
        for kernel in WALKS:
            wanted |= {f"{kernel}.consumers": consumers, f"{kernel}.num_stages": stages}
            wanted |= {f"{kernel}.maxnreg": registers}
        for terms, ahead, aside in product((TERMS, APART, 1), (True, False), (True, False)):
            chosen = {**wanted, "single_pass.terms": terms, "single_pass.ahead": ahead, "aside": aside}
            found.append(_nearest("single_pass", problem, gpu, chosen))
            if problem.batch * problem.nheads < 2 * gpu.sms:
                found += [_nearest("segments", problem, gpu, {**chosen, "segment": length}) for length in fill]
    return found


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
    """What the space offers, as a short text: it changes when an axis, a value or a bound does, LATER aside."""
    return digest(axes, SCHEDULES, SMALL_SHARED, ACCUMULATORS, SMALLEST, LARGEST, later=LATER)


def digest(
    offer: Callable[[Any, Problem, Gpu], Iterable[Axis]],
    schedules: Sequence[str],
    *bounds: Any,
    later: Mapping[str, tuple[Value, ...]] | None = None,
) -> str:
    """The fingerprint of a space: of the axes that it offers for a few problems and GPUs, and of its bounds.

    later: values of axes that do not count; nor does an axis that has no others.
    """

    def counted(axis: Axis) -> tuple[Value, ...]:
        return tuple(value for value in axis.values if value not in (later or {}).get(axis.name, ()))

    gpus = [find(name) for name in ("h200", "a100")]
    problems = [Problem(8, 2048, 80, 64, 128), Problem(1, 16384, 24, 80, 96, dtype="float32")]
    offered = [
        [(axis.name, counted(axis)) for axis in offer(schedule, problem, gpu) if counted(axis)]
        for schedule in schedules
        for problem in problems
        for gpu in gpus
    ]
    return hashlib.sha256(json.dumps([offered, *bounds], sort_keys=True).encode()).hexdigest()[:16]


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
    # other layouts than Mamba-2's have kernels of one head, with pointers and states by rows of dstate
    described = has_descriptors(gpu) and not problem.layout
    heads = tuple(count for count in offered if heads_per_group % count == 0 and (count == 1 or described))
    whole = next_power_of_two(max(SMALLEST, problem.headdim))
    blocks = tuple(block for block in (16, 32, 64, 128, 256) if whole // 8 <= block <= whole)
    descriptors = (False, True) if described else (False,)
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
    if has_consumers(problem, gpu):
        why = "groups of warps that multiply, with a warp that loads; 0: all warps do both"
        found.insert(0, Axis(f"{kernel}.consumers", (0, 1, 2), why))
        why = "a cap on the registers lets two programs of one consumer share a multiprocessor"
        found.append(Axis(f"{kernel}.maxnreg", (0, HALF_OF_THE_REGISTERS), why))
        if kernel == "single_pass":
            why = (
                "scores go into their product in two terms of 16 bits, or in one: less accurate, and less to do; "
                "apart: in one without their diagonal, half of the error, which reaches y in float32"
            )
            found.append(Axis(f"{kernel}.terms", (TERMS, 1, APART), why))
            why = "True: C B^T of the next chunk is made while this one ends, which takes one consumer and two stages"
            found.append(Axis(f"{kernel}.ahead", (False, True), why))
    if problem.headdim >= 32 and not problem.layout:
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


def _segments(problem: Problem, gpu: Gpu) -> tuple[int, ...]:
    """Powers of two, and lengths with which programs of two consumers fill the multiprocessors 1, 2, ... times."""
    lengths = {128, 256, 512, 1024, 2048, 4096, 8192, 16384}
    programs = -(-problem.batch * problem.nheads * -(-problem.headdim // CONSUMER_ROWS) // 2)
    for times in (1, 2, 3, 4, 8):
        if (count := times * gpu.sms // programs) > 1:
            lengths.add(-(-problem.seqlen // (count * CONSUMER_ROWS)) * CONSUMER_ROWS)
    return tuple(sorted(length for length in lengths if length < problem.seqlen)) or (128,)


def _smallest_shared(schedule: str, chunk: int, problem: Problem) -> int:
    """Bytes of shared memory of the largest kernel of a schedule with the smallest tiles: all operands of a product."""
    n = sum(cut(min(problem.dstate, 2 * LARGEST)))
    element, p = problem.element_bytes, 16
    state = chunk * (n + 2 * p) + n * p
    output = (2 * chunk * n + n * p + chunk * chunk + 2 * chunk * p) if schedule != "split" else state
    return max(state, output) * element
