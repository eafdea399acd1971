"""Calls in a form that was seen before: nothing is checked or looked up again.  interface, autograd -> repeats

Checks, configs and plans go by the form of a call alone: by options, and by what its tensors are apart from addresses
and contents.  So a second call in a form gets what the first one has found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from . import select
from .problem import Problem

# operands of a call that may be repeated, in the order of its arguments
OPERANDS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states", "seq_idx")
_PLAIN = frozenset((Tensor, torch.nn.Parameter))

Form = tuple[Any, ...]
# makes a pass again: tensors by name, the device -> its results
Again = Callable[[dict[str, Tensor | None], torch.device], Any]
Found = TypeVar("Found")


def form_of(tensors: Sequence[Tensor | None], *options: Any) -> Form | None:
    """What a call depends on beside addresses and contents; None where a tensor is none of torch's own.

    options: whatever else results, checks and configs go by.  Configs that are chosen anew make other forms.
    """
    found: list[Any] = [select.version(), *options]
    try:
        for tensor in tensors:
            if tensor is None:
                found.append(None)
            elif type(tensor) in _PLAIN:
                # kernels are compiled for addresses that are multiples of 16 bytes, or for any
                found += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16)
            else:
                return None
    except RuntimeError:
        # one that is traced or vectorised has no address
        return None
    first = tensors[0]
    if first is not None and first.dtype is torch.float32:
        found.append(torch.backends.cuda.matmul.allow_tf32)
    return tuple(found)


class Forms(Generic[Found]):
    """What was found for each form.  Forgotten all together when there are many: lengths may vary without end."""

    def __init__(self, most: int) -> None:
        self._found: dict[Form, Found] = {}
        self._most = most

    def get(self, form: Form | None) -> Found | None:
        """None for a form that is new, or none."""
        if form is None:
            return None
        try:
            return self._found.get(form)
        except TypeError:
            # an option that cannot be hashed
            return None

    def put(self, form: Form | None, found: Found) -> None:
        if form is None:
            return
        if len(self._found) >= self._most:
            self._found.clear()
        try:
            self._found[form] = found
        except TypeError:
            pass


@dataclass(slots=True)
class Call:
    """A call of some form.

    names: of the operands that are there, in the order in which they are given; options: dt_softplus and both limits.
    forward, keeping: make the forward pass again, the latter with states that are kept for the backward pass; None:
    everything is looked up.
    """

    problem: Problem
    names: tuple[str, ...]
    options: tuple[bool, float, float]
    final_states: bool
    state_dtype: torch.dtype | None
    forward: Again | None = None
    keeping: Again | None = None

    def again(self, keeps: bool) -> Again | None:
        return self.keeping if keeps else self.forward

    def learn(self, again: Again | None, keeps: bool) -> None:
        if keeps:
            self.keeping = again
        else:
            self.forward = again
