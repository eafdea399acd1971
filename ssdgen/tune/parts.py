"""What the passes of the layer's other parts share: limits, and the work of kernels that move memory.  -> passes"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from ..mamba2_ops import select
from ..mamba2_ops.problem import Problem as CallProblem
from ..plan.problem import Problem
from ..plan.schedules import sum_parts
from ..plan.tiles import SMALLEST
from . import gate
from .compile import Launch
from .counted import Work, memory_of
from .errors import WrongResultError
from .gate import Checked
from .results import Config

# |found - exact| / |exact| over all elements: what rounding the result costs, and half as much again; all else is fp32.
# In fp32 a sum over many tokens, one after the other, costs more than that.
LIMITS = {"bfloat16": 2.5e-3, "float16": 4e-4, "float32": 1e-5}
SUM_LIMITS = {**LIMITS, "float32": 1e-4}


def check(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], sums: frozenset[str]) -> Checked:
    """The result that comes nearest to its limit.  sums: names of those that are sums over tokens.

    Errors: WrongResultError, for any above its own, or that is not there.
    """
    if missing := sorted(set(exact) - set(found)):
        raise WrongResultError(f"there is no {', '.join(missing)}")
    checked = []
    for name, expected in exact.items():
        dtype = str(found[name].dtype).removeprefix("torch.")
        limit = (SUM_LIMITS if name in sums else LIMITS)[dtype]
        every = list(range(expected.shape[0]))
        checked.append(Checked(gate.check(found[name], expected, every, 0, limit, name), limit))
    return max(checked, key=lambda each: each.share)


def config_of(direction: str, problem: Problem, device: Any) -> Config:
    """What the public calls look up."""
    return select.part_config_for(direction, CallProblem(**problem.to_json()), device)


def work(launch: Launch, steps: int) -> Work:
    """Of a kernel that moves memory.  steps: trips of a program through its loop; every operand counts once."""
    memory = memory_of(launch)
    # one exponential of each, of a gate or of SiLU
    elements = max((t.numel() for t in launch.args.values() if isinstance(t, Tensor)), default=0)
    return Work(
        ctas=max(1, prod(launch.grid)),
        steps=max(1, steps),
        chain=0,
        memory_bytes=memory,
        loaded_bytes=memory,
        flops=0.0,
        exps=float(elements),
        entries=float(elements),
        rows=SMALLEST,
    )


def is_sum(launch: Launch) -> bool:
    """Whether it adds up what the launch before it has left."""
    return launch.kernel.__name__ in (sum_parts.NAME, sum_parts.EARLY)


def steps_of_sum(launch: Launch) -> int:
    """Trips of `sum_parts`, early or not."""
    return -(-launch.args["nparts"] // launch.args["BLOCK_T"])
