"""What the description fixes beside the kernels.  description -> settings -> checks, fallback, parallel

Written for the layer that a package is made for; this is Mamba-2's.
"""

from __future__ import annotations

import torch
from torch import Tensor

# positions per chunk of the built-in default config; None: chosen by size
CHUNK: int | None = None

# operands with an entry for every head; the others have one for every group
PER_HEAD = {"x": True, "B": False, "C": False}

# the layout of these kernels, and the others that kernels are there for, with their operands for every head
LAYOUT = "multi-input"
LAYOUTS = {
    LAYOUT: PER_HEAD,
    "multi-contract": {"x": False, "B": False, "C": True},
    "multi-expand": {"x": False, "B": True, "C": False},
}

# whether kernels take a decay for every token
GATED = True


def log_decay(dt: Tensor, A: Tensor) -> Tensor | float:
    """Logarithm of the share of the state that a step keeps.  dt: [batch, seqlen, nheads]; A: [nheads]."""
    return A * dt


def combine(
    first_total: Tensor, first_state: Tensor, second_total: Tensor, second_state: Tensor
) -> tuple[Tensor, Tensor]:
    """What two runs of tokens, one after the other, do to a state: the total and the state of both.

    totals: [batch, nheads], log2 of a run's decay, -inf past a sequence boundary; states: what a run adds to the state,
    [batch, nheads, headdim, dstate].
    """
    kept = torch.exp2(second_total.clamp(max=0))[..., None, None]
    return first_total + second_total, first_state * kept + second_state
