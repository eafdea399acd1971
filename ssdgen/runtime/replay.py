"""Inputs of the last steps, kept so that a state need not be written at every one.  -> decode

With `steps` = k a state is read at every step and written at every k-th: between, y comes from the state as it was and
from the inputs since then, which are few beside a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import decode_fallback, settings
from .errors import OptionError

# longer, and what is read of the kept inputs costs more than what is saved of the state
MOST_STEPS = 65


@dataclass(frozen=True)
class Replay:
    """What is kept for every slot of a state, in place; make it with `allocate`.

    x: [slots, nheads, steps - 1, headdim]; dt: [slots, nheads, steps - 1], fp32, after its transform;
    B: [slots, ngroups, steps - 1, dstate]; count: [slots], int32: how many inputs are kept.  Set count to 0 where a
    slot gets another sequence.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    count: Tensor

    @property
    def steps(self) -> int:
        """A state is written at every step of this number."""
        return self.x.shape[2] + 1

    @classmethod
    def allocate(cls, state: Tensor, steps: int, ngroups: int = 1, dtype: torch.dtype = torch.bfloat16) -> Replay:
        """Room for the inputs of `steps` - 1 steps of a state [slots, nheads, headdim, dstate].

        steps: 2 to 65; 8 to 16 is usual.  dtype: that of x and B.  Errors: OptionError.
        """
        if not isinstance(steps, int) or not 2 <= steps <= MOST_STEPS:
            raise OptionError(f"steps is {steps!r}; it must be an integer of 2 to {MOST_STEPS} (8 to 16 is usual)")
        if state.dim() != 4:
            raise OptionError(f"state has shape {list(state.shape)}; to replay it must have heads, [slots, nheads, ..]")
        slots, nheads, headdim, dstate = state.shape
        heads = {name: nheads if settings.PER_HEAD[name] else ngroups for name in "xB"}
        return cls(
            state.new_zeros((slots, heads["x"], steps - 1, headdim), dtype=dtype),
            state.new_zeros((slots, nheads, steps - 1), dtype=torch.float32),
            state.new_zeros((slots, heads["B"], steps - 1, dstate), dtype=dtype),
            state.new_zeros(slots, dtype=torch.int32),
        )

    def flush(self, state: Tensor, A: Tensor, state_scale: Tensor | None = None) -> None:
        """Write every state as it is after the inputs that are kept, and forget these.

        state: [slots, nheads, headdim, dstate], in place; A: [nheads], or expanded; state_scale: of an 8-bit state.
        Before a state is read by anything but further steps with this replay.  It runs in PyTorch and waits for the
        device.
        """
        decode_fallback.flush(state, A if A.dim() == 1 else A[:, 0, 0], self, state_scale)
