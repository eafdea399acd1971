"""The search space of the backward pass: configs, where a search begins, a fingerprint.  axes -> tune

A config is nested, {"schedule", "chunk", ..., "kernels": {kernel: {axis: value}}}; a kernel's axis is "kernel.axis".
Kernels that do the same work in one direction or at one level take the same numbers, and their axes the name of the
work: "states", "adjoints" and "passing".
"""

from __future__ import annotations

from itertools import product

from ..gpus import Gpu
from .backward_axes import (
    MOST_PROGRAMS,
    SCHEDULES,
    SHARES,
    SLICES,
    axes,
    check,
    lengths,
    parts_that_fill,
    slices_axis,
)
from .backward_legal import (
    ADJOINTS,
    HAVE_CONSUMERS,
    SHARE,
    STATES,
    WHOLE,
    first_slice,
    gradients_have_consumers,
    legal,
    walks_have_consumers,
)
from .legal import ACCUMULATORS, Config
from .problem import Problem
from .slices import parts_of_slice, segments_of_slice
from .space import HALF_OF_THE_REGISTERS, Value, digest
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, consumer_tiles

# kernels that share their numbers, by the name of their axes
SHARED = {"states": STATES, "adjoints": ADJOINTS, "passing": ("both_passing",)}

# what walks that are specialised by warps have fixed
CONSUMERS_HAVE = {"block_p": CONSUMER_ROWS, "num_warps": 4}

# the same of what programs of the schedule "walk" share out
SHARED_OUT_HAVE = {"block_n": LARGEST, "block_p": LARGEST, "share": 0, "num_warps": 8}


# what a config says of shared numbers where it launches none of their kernels
UNUSED: dict[str, dict[str, Value]] = {
    **dict.fromkeys(("states", "adjoints"), {"consumers": 0, "num_stages": 1, "maxnreg": 0, **CONSUMERS_HAVE}),
    "passing": {"block": 512, "num_warps": 4},
}


# what a config does not say
LEFT_OUT: dict[str, Value] = {"segment": 0, "slices": 1, "beside": False}


# axes that came after records were made, of which the first value is what these mean, and values that came to others:
# records stay as new as they were
LATER: dict[str, tuple[Value, ...]] = {
    "slices": SLICES,
    "beside": (False, True),
    "reverse_walk.left": (0, 1),
    "group_gradients.consumers": (3,),
    "chunk_gradients.consumers": (3,),
}


def config(schedule: str, assignment: dict[str, Value]) -> Config:
    """The config with these values of a schedule's axes; it has the kernels that are launched and no others."""
    check(schedule)
    found: Config = {"schedule": schedule}
    numbers: dict[str, dict[str, Value]] = {}
    for name, value in assignment.items():
        kernel, dot, axis = name.partition(".")
        if dot:
            numbers.setdefault(kernel, {})[axis] = value
        elif value != LEFT_OUT.get(name):
            found[name] = value
    found["kernels"] = {}
    for kernel in launched(found):
        shared = next((name for name, kernels in SHARED.items() if kernel in kernels), kernel)
        found["kernels"][kernel] = _what_matters(kernel, numbers.get(shared, {}))
    if not any(found["kernels"].get(walk, {}).get("consumers") for walk in (*ADJOINTS, "reverse_walk")):
        found.pop("beside", None)
    return found


def launched(config: Config) -> tuple[str, ...]:
    """The kernels of a config, by their names in it: without segments nothing passes between them."""
    chunk, segment = config.get("chunk"), config.get("segment")
    several = ("segment_state", "segment_adjoint", "both_passing") if segment else ()
    # where a segment is a chunk, what enters and leaves chunks is there already
    kept = not segment or segment != chunk
    if config["schedule"] == "chunks":
        main = (*(("chunk_states", "chunk_adjoints") if kept else ()), "chunk_gradients")
    else:
        main = (*(("chunk_states",) if kept else ()), "reverse_walk", "group_gradients")
    return ("dt_cumsum", *several, *main, "dt_gradients")


def flatten(config: Config) -> dict[str, Value]:
    """{axis name: value} of a config, the schedule included.

    Kernels that share their axes and have other numbers each are left out: such a config is in no search space.
    """
    flat: dict[str, Value] = {**LEFT_OUT, **({"parts": 1} if config["schedule"] == "chunks" else {})}
    flat |= {name: value for name, value in config.items() if name != "kernels"}
    kernels: dict[str, dict[str, Value]] = dict(config["kernels"])
    for shared, names in SHARED.items():
        given = [kernels.pop(name) for name in names if name in kernels]
        if all(numbers == given[0] for numbers in given):
            kernels[shared] = given[0] if given else UNUSED[shared]
    for kernel, numbers in kernels.items():
        whole: dict[str, Value] = {}
        if kernel in ("states", "adjoints"):
            whole = {"consumers": 0, "maxnreg": 0}
            whole |= CONSUMERS_HAVE if numbers.get("consumers") else {"block_p": 64}
        elif kernel in SHARE:
            whole = {"consumers": 0, **(SHARED_OUT_HAVE if numbers.get("consumers") else {"block_n": LARGEST})}
            whole |= {"block_p": LARGEST, "share": 0, **({"left": 0} if kernel == "reverse_walk" else {})}
        elif kernel in WHOLE and not numbers.get("consumers"):
            whole = {"block_n": LARGEST, "block_p": LARGEST}
        flat |= {f"{kernel}.{axis}": value for axis, value in {**whole, **numbers}.items()}
    return flat


def minimal(schedule: str, problem: Problem) -> Config:
    """A config that fits 48 KB of shared memory on every GPU, up to a headdim * dstate of 32768."""
    check(schedule)
    found: Config = {"schedule": schedule, "chunk": SMALLEST, "state_dtype": "float32"}
    found |= {"parts": 1} if schedule == "chunks" else {}
    least: dict[str, Value] = {"block_p": SMALLEST, "num_warps": 4, "num_stages": 1}
    found["kernels"] = {
        kernel: {**least, "block_n": SMALLEST} if kernel in WHOLE else dict(least) if "dt_" not in kernel else {}
        for kernel in launched(found)
    }
    return found


def starts(problem: Problem, gpu: Gpu) -> tuple[Config, ...]:
    """Legal configs that are often near the best, for a search to try before it guesses.

    Where warps can be specialised: programs of one consumer, two or three to a multiprocessor, or of two.  Elsewhere
    walks in tiles of 64 or 32 rows.  Where heads are few, segments that give each multiprocessor a program or two.
    """
    found = []
    cuts = [0]
    if problem.batch * problem.nheads < 2 * gpu.sms:
        cuts += [length for length in lengths(problem, gpu) if length & (length - 1)][-2:]
    if gradients_have_consumers(problem, gpu):
        parts = parts_that_fill(problem, gpu)
        # of three roles fewer heads are in flight: with three on their way they are the slower ones
        for length, count, (roles, heads) in product(cuts, parts, ((2, 3), (3, 2))):
            found.append(_of_chunks(problem, gpu, length, count, roles, 1, 2, HALF_OF_THE_REGISTERS, heads))
        others = ((1, 3, HALF_OF_THE_REGISTERS, 2), (1, 2, 96, 2), (2, 3, 0, 2), (2, 2, 0, 2), (1, 2, 80, 2))
        walks = [_of_chunks(problem, gpu, cuts[-1], parts[0], 3, *numbers) for numbers in others]
        found += [*walks, *({**config, "beside": True} for config in (found[0], walks[0], walks[1], walks[4]))]
        found += [in_slices(found[0], int(count), problem, gpu) for count in slices_axis(problem, gpu).values[1:3]]
    else:
        for chunk, warps in ((64, 8), (32, 4), (32, 8)):
            for length in cuts:
                found += [_of_walk(problem, gpu, chunk, length, warps, stages) for stages in (1, 2)]
        if max(problem.headdim // 64, problem.dstate // 128) > 1:
            found += [_shared_out(config) for config in found]
        if any(HAVE_CONSUMERS[kernel](problem, gpu) for kernel in SHARE):
            ways = product(cuts, (1, 0), (2, 1), (2, 3))
            specialised = [_of_consumers(problem, gpu, *numbers) for numbers in ways]
            found = [*specialised, *({**config, "beside": True} for config in specialised[:2]), *found]
    return tuple(config for config in found if legal(config, problem, gpu) is None)


def in_slices(whole: Config, count: int, problem: Problem, gpu: Gpu) -> Config:
    """The same in so many slices or a few more, with segments and parts that suit one of them.

    `whole` is in this space.  Where heads are cut its walks are specialised by warps, if they can be: only those
    keep less then.
    """
    part = first_slice(problem, count)
    (_, rows), (_, nheads), (_, ngroups) = part.rows, part.heads, part.groups
    flat = {**flatten(whole), "slices": count}
    chunks, walks = -(-problem.seqlen // whole["chunk"]), rows * nheads * -(-problem.headdim // CONSUMER_ROWS)
    own = -(-problem.seqlen // (whole.get("segment") or problem.seqlen))
    wanted = segments_of_slice(walks, chunks, own, gpu.sms)
    if wanted > own:
        flat["segment"] = min(lengths(problem, gpu), key=lambda length: abs(wanted * length - problem.seqlen))
    if "parts" in whole:
        heads = problem.nheads // problem.ngroups // part.shares
        flat["parts"] = parts_of_slice(heads, part.shares, rows * ngroups * chunks, gpu.sms)
    if nheads < problem.nheads and whole["chunk"] == CONSUMER_ROWS and walks_have_consumers(problem, gpu):
        tiles = consumer_tiles(problem.dstate)[1]
        numbers = {"consumers": 1, "maxnreg": HALF_OF_THE_REGISTERS} if tiles == 1 else {"consumers": 2}
        for walk in ("states", "adjoints"):
            if not flat.get(f"{walk}.consumers"):
                flat |= {f"{walk}.{axis}": value for axis, value in {**numbers, "num_stages": 2}.items()}
    return config(str(flat.pop("schedule")), flat)


def fingerprint() -> str:
    """What the space offers, as a short text: it changes when an axis, a value or a bound does, LATER aside."""
    return digest(axes, SCHEDULES, ACCUMULATORS, SMALLEST, LARGEST, MOST_PROGRAMS, later=LATER)


# ---- configs


def _what_matters(kernel: str, numbers: dict[str, Value]) -> dict[str, Value]:
    """What a kernel asks for, so that one config has one form."""
    found = dict(numbers)
    consumers = found.pop("consumers", 0)
    if consumers:
        for name in SHARED_OUT_HAVE if kernel in SHARE else CONSUMERS_HAVE:
            found.pop(name, None)
        found["consumers"] = consumers
    if consumers != 1 or not found.get("maxnreg"):
        found.pop("maxnreg", None)
    if not consumers or not found.get("left"):
        found.pop("left", None)
    if kernel in WHOLE:
        # tiles that nothing is wider than
        usual = {"block_n": LARGEST, "block_p": LARGEST, "share": 0}
        found = {name: value for name, value in found.items() if usual.get(name) != value}
    return found


def _of_chunks(
    problem: Problem,
    gpu: Gpu,
    length: int,
    parts: int,
    roles: int,
    consumers: int,
    stages: int,
    registers: int,
    heads: int,
) -> Config:
    """Chunk by chunk, all kernels specialised by warps.  consumers, stages: of the walks.

    roles, heads: of chunk_gradients, and in flight there.
    """
    wanted: dict[str, Value] = {"parts": parts, "segment": length, "chunk_gradients.num_stages": heads}
    wanted |= {"chunk_gradients.consumers": roles}
    for walk in ("states", "adjoints"):
        wanted |= {f"{walk}.consumers": consumers, f"{walk}.num_stages": stages, f"{walk}.maxnreg": registers}
    return _nearest("chunks", problem, gpu, wanted)


def _of_walk(problem: Problem, gpu: Gpu, chunk: int, length: int, warps: int, stages: int) -> Config:
    wanted: dict[str, Value] = {"chunk": chunk, "segment": -(-length // chunk) * chunk}
    for kernel in ("reverse_walk", "group_gradients"):
        wanted |= {f"{kernel}.num_warps": warps, f"{kernel}.num_stages": stages}
    for walk in ("states", "adjoints"):
        wanted |= {f"{walk}.num_stages": stages}
        if chunk == CONSUMER_ROWS and walks_have_consumers(problem, gpu):
            wanted |= {f"{walk}.consumers": 1, f"{walk}.num_stages": 2}
    return _nearest("walk", problem, gpu, wanted)


def _shared_out(config: Config) -> Config:
    """The same where programs share out headdim in the walk back and dstate where heads are added up."""
    shares = {kernel: {**config["kernels"][kernel], "share": SHARES[extent][0]} for kernel, extent in SHARE.items()}
    return {**config, "kernels": {**config["kernels"], **shares}}


def _of_consumers(problem: Problem, gpu: Gpu, length: int, left: int, consumers: int, stages: int) -> Config:
    """A walk back, with all kernels that can be specialised by warps.  consumers, stages: of the walks forwards.

    left: the walk back multiplies its state from registers, and heads are added up in three roles; 0: in the other
    shapes.
    """
    wanted: dict[str, Value] = {"chunk": CONSUMER_ROWS, "segment": length, "reverse_walk.left": left}
    for kernel, extent in SHARE.items():
        wanted |= {f"{kernel}.consumers": 2 + (left if kernel == "group_gradients" else 0), f"{kernel}.num_stages": 2}
        if not HAVE_CONSUMERS[kernel](problem, gpu):
            wanted |= {f"{kernel}.num_stages": 1, f"{kernel}.share": SHARES[extent][0]}
    for walk in ("states", "adjoints"):
        wanted |= {f"{walk}.consumers": consumers, f"{walk}.num_stages": stages}
    return _nearest("walk", problem, gpu, wanted)


def _nearest(schedule: str, problem: Problem, gpu: Gpu, wanted: dict[str, Value]) -> Config:
    """The config with the wanted values where an axis has them, then what is usual, and a first value elsewhere."""
    usual: dict[str, Value] = {"states.num_warps": 4, "adjoints.num_warps": 4, "passing.block": 512}
    usual |= {"passing.num_warps": 4, "states.block_p": 64, "adjoints.block_p": 64}
    usual |= {"dt_cumsum.block_h": 32, "dt_cumsum.num_warps": 4, "dt_gradients.num_warps": 4}
    chosen = {}
    for axis in axes(schedule, problem, gpu):
        value = wanted.get(axis.name, usual.get(axis.name))
        chosen[axis.name] = value if value in axis.values else axis.values[0]
    return config(schedule, chosen)
