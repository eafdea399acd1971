"""The config for a problem that nobody tuned: a rule, not a list.  Problem -> config -> select

A slower choice is allowed here and a launch that fails is not: tiles are small enough for 99 KB of shared memory.
"""

from __future__ import annotations

from typing import Any

from . import settings
from .problem import Problem

# below this a segment's state costs more to write and read than the parallelism brings
_MIN_SEGMENT = 256
_LONG = 1024


def default_config(problem: Problem, sms: int) -> dict[str, Any]:
    """A config that runs everywhere, for the problem on a GPU of so many multiprocessors.

    sms: streaming multiprocessors (compute units), >= 1.
    Returns: {"schedule", "chunk", "prepared", "kernels": {kernel: numbers}}, with "segment" and "state_dtype" where the
    schedule is "segments".
    """
    chunk = settings.CHUNK or (64 if _small(problem) else 32)
    ctas = max(1, problem.rows * problem.nheads)
    config: dict[str, Any] = {"schedule": "single_pass", "chunk": chunk, "prepared": True}
    kernels = {"dt_cumsum": _light(), "single_pass": _tile(problem)}
    # one CTA a head leaves most of the GPU idle: cut the row into segments that run side by side
    if ctas < 2 * sms and problem.row_length >= _LONG:
        wanted = -(-4 * sms // ctas)  # segments a row, for four CTAs on every multiprocessor
        config |= {
            "schedule": "segments",
            "segment": max(_MIN_SEGMENT, _next_power_of_two(-(-problem.row_length // wanted))),
            "state_dtype": "float32",
        }
        kernels |= {"segment_state": _tile(problem), "state_passing": _light()}
    return config | {"kernels": kernels}


def _small(problem: Problem) -> bool:
    """Whether a chunk of 64 positions of B and C, two stages deep, leaves room in 99 KB of shared memory."""
    return problem.dtype in ("bfloat16", "float16") and problem.dstate <= 128


def _tile(problem: Problem) -> dict[str, Any]:
    """Numbers of a kernel with matrix products.  block_p: at least what a tensor core needs, at most 64."""
    stages = 2 if _small(problem) else 1
    block = min(64, max(16, _next_power_of_two(problem.headdim)))
    return {
        "heads": 1,
        "block_p": block,
        "descriptors": False,
        # one stage and a narrow tile: without the warpgroup instructions, see the launchers
        "num_warps": 4 if stages > 1 or block == 64 else 2,
        "num_stages": stages,
        "maxnreg": 0,
    }


def _light() -> dict[str, Any]:
    """Numbers of a kernel that only moves and adds."""
    return {"num_warps": 4, "num_stages": 1, "maxnreg": 0}


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
