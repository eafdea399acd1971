"""The config of a backward pass that nobody tuned: a rule, not a list.  Problem -> config -> launchers"""

from __future__ import annotations

from typing import Any

from .problem import Problem

# programs of a walk on every multiprocessor: fewer leave it waiting for memory, more states cost more than they bring
_PROGRAMS = 2

# rows that a group of four warps multiplies: a chunk, and a tile of headdim
CONSUMER_ROWS = 64

_LIGHT = ("segment_state", "segment_adjoint", "chunk_states", "chunk_adjoints")

# matrix units whose operands and sums are in a warp's registers: what does not fit there costs more than all else.
# Hopper's take operands from shared memory, and those of data-centre Blackwell keep their sums beside the registers
_IN_REGISTERS = ("sm7", "sm8", "sm12")


def default_backward(problem: Problem, sms: int, arch: str = "") -> dict[str, Any]:
    """A config that is right on every GPU with 100 KB of shared memory (sm90: 228), for one of so many multiprocessors.

    sms: streaming multiprocessors (compute units), >= 1.  arch: "sm90" has kernels of its own, specialised by warps; ""
        is none in particular.
    Returns: {"schedule", "chunk", "segment", "parts", "state_dtype", "kernels": {kernel: numbers}}, without "segment"
    where a program walks the whole sequence; MINIMAL_BACKWARD of the launcher is what fits where this does not.
    """
    # Mamba-2's own layout alone has kernels that are specialised by warps
    specialised = arch == "sm90" and problem.dtype == "bfloat16" and not problem.layout
    if specialised and problem.headdim == CONSUMER_ROWS and problem.dstate <= 128:
        return _specialised(problem, sms)
    if specialised and CONSUMER_ROWS <= problem.headdim <= 256 and problem.dstate <= 256:
        return _walked_by_consumers(problem, sms)
    half = problem.dtype in ("bfloat16", "float16")
    small = problem.headdim <= 64 and problem.dstate <= 128
    if arch.startswith(_IN_REGISTERS):
        return _in_registers(problem, sms, half, small)
    # with 228 KB of shared memory, and matrix units that take 64 rows at a time: a chunk of 32 is 15 times slower there
    large = half and arch == "sm90"
    chunk = 64 if (half and small) or large else 32 if half or small else 16
    config: dict[str, Any] = {
        "schedule": "walk",
        "chunk": chunk,
        # fp16 states could overflow
        "state_dtype": "bfloat16" if half else "float32",
        "kernels": {name: {"num_warps": 4, "num_stages": 1} for name in _LIGHT}
        | {
            name: {"num_warps": 8 if chunk == 64 else 4, "num_stages": 1}
            for name in ("reverse_walk", "group_gradients")
        },
    }
    return config | _segments(problem, sms, chunk)


def _segments(problem: Problem, sms: int, chunk: int) -> dict[str, int]:
    """{"segment": tokens} where heads alone are too few programs; whole chunks, at least one."""
    wanted = -(-_PROGRAMS * sms // max(1, problem.batch * problem.nheads))
    if wanted <= 1 or problem.seqlen <= chunk:
        return {}
    return {"segment": max(1, problem.seqlen // (wanted * chunk)) * chunk}


def _in_registers(problem: Problem, sms: int, half: bool, small: bool) -> dict[str, Any]:
    """Tiles that leave little or nothing in memory: by far the fastest by the compiler's own figures, on no GPU yet."""
    light = dict.fromkeys(_LIGHT, {"num_warps": 4, "num_stages": 1})
    state_dtype = "bfloat16" if half else "float32"
    if half and small and not problem.layout:
        kernels = {**light, "chunk_gradients": {"num_warps": 8, "num_stages": 1}}
        parts = parts_for(problem, sms, chunk=32)
        return {"schedule": "chunks", "chunk": 32, "parts": parts, "state_dtype": state_dtype, "kernels": kernels}
    shared_out = {"share": 32 if half else 16, "num_warps": 4, "num_stages": 1}
    if problem.layout:
        # no program of these layouts has a part of headdim or dstate
        shared_out = {"num_warps": 8, "num_stages": 1}
    kernels = {**light, **dict.fromkeys(("reverse_walk", "group_gradients"), shared_out)}
    config = {"schedule": "walk", "chunk": 16, "state_dtype": state_dtype, "kernels": kernels}
    return config | _segments(problem, sms, 16)


def _specialised(problem: Problem, sms: int) -> dict[str, Any]:
    """One consumer a walk, so that two or three programs fit, those of adjoints beside those of states.

    Heads are shared out where chunks alone are too few.
    """
    walks = {"consumers": 1, "num_stages": 2, "maxnreg": 128}
    return {
        "schedule": "chunks",
        "chunk": CONSUMER_ROWS,
        "parts": parts_for(problem, sms),
        "beside": True,
        "state_dtype": "bfloat16",
        "kernels": {**dict.fromkeys(_LIGHT, walks), "chunk_gradients": {"consumers": 2, "num_stages": 3}},
    }


def _walked_by_consumers(problem: Problem, sms: int) -> dict[str, Any]:
    """A walk back of two consumers, with most of a multiprocessor's memory, and heads added up by tile of dstate.

    Where there is no even number of walks, and for the heads where headdim has more than two tiles, in plain kernels.
    """
    one = {"consumers": 1, "num_stages": 2, "maxnreg": 128}
    walks = one if problem.dstate <= 128 else {"consumers": 2, "num_stages": 2}
    tiles = -(-problem.headdim // CONSUMER_ROWS)
    pairs, rest = divmod(problem.nheads // problem.ngroups * tiles, 2)
    back = {"share": 32, "num_warps": 4, "num_stages": 1} if rest else {"consumers": 2, "num_stages": 2}
    heads = {"consumers": 2, "num_stages": 2} if tiles <= 2 else {"share": 64, "num_warps": 8, "num_stages": 1}
    config: dict[str, Any] = {
        "schedule": "walk",
        "chunk": CONSUMER_ROWS,
        "state_dtype": "bfloat16",
        "kernels": {**dict.fromkeys(_LIGHT, walks), "reverse_walk": back, "group_gradients": heads},
    }
    segments = sms // max(1, problem.batch * problem.ngroups * pairs)
    # whole chunks, and two at least: where one is a segment no walk is left
    length = -(-problem.seqlen // (max(1, segments) * CONSUMER_ROWS)) * CONSUMER_ROWS
    if segments > 1 and max(length, 2 * CONSUMER_ROWS) < problem.seqlen:
        config["segment"] = max(length, 2 * CONSUMER_ROWS)
    return config


def parts_for(problem: Problem, sms: int, chunk: int = CONSUMER_ROWS, slices: int = 1) -> int:
    """Programs that share out the heads of a group, of which slices have their part each.

    As many as all run at once, one on a multiprocessor: one more would wait for all others to end, while each has less
    to do: 160 programs take longer than 128.
    """
    groups = -(-problem.batch * problem.ngroups // max(1, slices))
    heads, across = problem.nheads // problem.ngroups, groups * -(-problem.seqlen // chunk)
    most = sms // max(1, across)
    return next((parts for parts in range(min(heads, most), 1, -1) if heads % parts == 0), 1)
