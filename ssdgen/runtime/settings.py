"""What the description fixes beside the kernels.  description -> settings -> checks, fallback, defaults

Written for the layer that a package is made for; this is Mamba-2's.
"""

from __future__ import annotations

from torch import Tensor

# positions per chunk of the built-in default config; None: chosen by size
CHUNK: int | None = None

# operands with an entry for every head; the others have one for every group
PER_HEAD = {"x": True, "B": False, "C": False}


def log_decay(dt: Tensor, A: Tensor) -> Tensor | float:
    """Logarithm of the share of the state that a step keeps.  dt: [batch, seqlen, nheads]; A: [nheads]."""
    return A * dt
