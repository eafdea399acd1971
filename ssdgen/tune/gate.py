"""Whether a candidate computes the right thing; nothing is timed before.  results, reference -> error -> passes"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WrongResultError

# The largest relative error |y - ref| / |ref| over all elements, by dtype of x.
#   bfloat16  rounding y costs 1.7e-3, rounding the decayed operands of the tensor cores as much again, and bf16 states
#             between kernels a little more: good kernels reach 2e-3 to 3.5e-3
#   float16   three more bits: an eighth of that, and states stay fp32
#   float32   products on tensor cores are tf32 by default, which alone costs 3e-4 to 6e-4; a dropped term costs 1e-2
LIMITS = {"bfloat16": 5e-3, "float16": 1e-3, "float32": 2e-3}

# The same for gradients.  Each passes through about twice as many roundings as y; those of steps and heads are sums of
# terms that cancel, of which some heads have few.  Good kernels reach 1.8e-3 to 2.5e-3 in bf16 (A: 4e-3), D next to 0.
#   float16    states and their adjoints between kernels are bf16, as they could overflow
#   float32    two products on tensor cores, one after the other
GRADIENT_LIMITS = {
    dtype: {**dict.fromkeys(("x", "B", "C"), tokens), **dict.fromkeys(("dt", "A", "dt_bias"), steps), "D": skip}
    for dtype, tokens, steps, skip in (
        ("bfloat16", 8e-3, 2e-2, 5e-3),
        ("float16", 5e-3, 2e-2, 5e-3),
        ("float32", 4e-3, 1e-2, 1e-3),
    )
}


@dataclass(frozen=True)
class Checked:
    """The error of a candidate and its limit; of several results, of the one that comes nearest to its limit."""

    error: float
    limit: float

    @property
    def share(self) -> float:
        return self.error / self.limit


def relative_error(found: Tensor, reference: Tensor) -> float:
    """|found - reference| / |reference| over all elements, in float64 sums; infinite if one is not finite.

    found: of any floating dtype; reference: the same shape, fp32.
    """
    gap = torch.zeros((), dtype=torch.float64, device=found.device)
    size = torch.zeros((), dtype=torch.float64, device=found.device)
    # a part of the sequence at a time: a copy of everything in fp32 may not fit beside the problem
    along = min(1, found.dim() - 1)
    for ours, theirs in zip(found.split(2048, dim=along), reference.split(2048, dim=along), strict=True):
        gap += (ours.float() - theirs).square().sum(dtype=torch.float64)
        size += theirs.square().sum(dtype=torch.float64)
    error = float((gap / size).sqrt())
    return error if error == error else float("inf")


def check(found: Tensor, reference: Tensor, heads: list[int], head_axis: int, limit: float, name: str = "y") -> float:
    """The relative error of the heads that were computed in float64.  Errors: WrongResultError, above the limit.

    found: all heads, along head_axis; reference: `heads` of them.  Every element of `found` must be finite, the other
    heads' too: the memory was full of NaN before.
    """
    # a sum is not finite if an element is not, and needs no memory; fp32 sums of bf16 values do not overflow
    if not torch.isfinite(found.sum(dtype=torch.float32)):
        raise WrongResultError(f"{name} has elements that were never written, or are not finite")
    if len(heads) != found.shape[head_axis]:
        found = found.index_select(head_axis, torch.tensor(heads, device=found.device))
    error = relative_error(found, reference)
    if not error <= limit:
        raise WrongResultError(f"{name} has an error of {error:.2g} against float64, over the limit of {limit:.2g}")
    return error


def check_gradients(
    found: Mapping[str, Tensor], reference: Mapping[str, Tensor], heads: list[int], dtype: str
) -> Checked:
    """The error of the gradient that comes nearest to its limit.  Errors: WrongResultError, for any above its own.

    found: {operand: gradient}, in the shape of the operand; reference: the same, of d_x maybe `heads` alone.  dtype: of
    x.
    """
    if missing := sorted(set(reference) - set(found)):
        raise WrongResultError(f"there is no gradient of {', '.join(missing)}")
    checked = []
    for name, exact in reference.items():
        limit = GRADIENT_LIMITS[dtype][name]
        # one token has no decay: there is nothing to be near to, and the others' errors say enough
        if not exact.any():
            continue
        axis = 2 if name == "x" else 0
        whole = exact.shape == found[name].shape
        own = list(range(exact.shape[axis])) if whole else heads
        checked.append(Checked(check(found[name], exact, own, axis, limit, f"d_{name}"), limit))
    return max(checked, key=lambda each: each.share)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory is full of NaN inside, outputs and what passes between kernels alike: what is not written, shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            # that some operator of torch is not deterministic is no concern of the search
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
