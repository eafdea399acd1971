"""The emitted launchers as the tuner calls them.  config, Inputs -> launches, or y"""

from __future__ import annotations

from math import inf
from typing import Any

from torch import Tensor

from ..mamba2_ops import paths
from .inputs import Inputs

# the arguments that a tuning run does not use
_UNUSED = {"z": None, "initial_states": None, "seq_idx": None, "cu_seqlens": None, "state_dtype": None}


def plan(config: dict[str, Any], inputs: Inputs, final_states: bool = False) -> Any:
    """The launches of a config, not yet made; the inputs may be on "meta"."""
    return paths.forward_launcher(inputs.layout).launches(config, *inputs.operands(), **_options(inputs, final_states))


def run(config: dict[str, Any], inputs: Inputs, final_states: bool = False) -> tuple[Tensor, Tensor | None]:
    """y and, if asked for, the final states."""
    return paths.forward_launcher(inputs.layout).forward(config, *inputs.operands(), **_options(inputs, final_states))


def _options(inputs: Inputs, final_states: bool) -> dict[str, Any]:
    return {**_UNUSED, **inputs.options(), "dt_limit": (0.0, inf), "final_states": final_states}
