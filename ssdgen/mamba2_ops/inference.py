"""The states that layers go on from.  mamba2, language_model -> inference

The fields of `InferenceParams` are those of mamba_ssm's class of this name, and its objects are taken as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from .errors import CacheError

if TYPE_CHECKING:
    from .mamba2 import Mamba2


@dataclass
class InferenceParams:
    """States of all layers of one batch, and how far it has come.

    max_seqlen, max_batch_size: what may come at most.  seqlen_offset: tokens so far; the caller counts them.
    batch_size_offset: the first row of the states that a call uses.
    key_value_memory_dict: {layer_idx: (conv_state, ssm_state)}, filled by the layers themselves.
    lengths_per_sample: [batch] or None; kept for the sake of mamba_ssm's class.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Start again with the states that are there."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


def states_of(params: InferenceParams, layer: Mamba2, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """conv_state and ssm_state of a layer, for so many rows; made where there are none.

    Errors: CacheError.  Nothing is made or changed then.
    """
    if layer.layer_idx is None:
        raise CacheError("the layer has no layer_idx, under which its states are kept; give it one when it is made")
    first = params.batch_size_offset
    if first + rows > params.max_batch_size:
        raise CacheError(
            f"rows {first} to {first + rows} were asked for, and the cache is for {params.max_batch_size}; raise its "
            "max_batch_size"
        )
    if params.seqlen_offset + tokens > params.max_seqlen:
        raise CacheError(
            f"{tokens} tokens after {params.seqlen_offset} are more than max_seqlen {params.max_seqlen} of the cache"
        )
    memory = params.key_value_memory_dict
    if layer.layer_idx not in memory:
        if params.seqlen_offset:
            raise CacheError(
                f"layer {layer.layer_idx} has no states, and {params.seqlen_offset} tokens are to have been seen; "
                "start at seqlen_offset 0"
            )
        memory[layer.layer_idx] = layer.allocate_inference_cache(params.max_batch_size, params.max_seqlen)
    conv_state, ssm_state = (state[first : first + rows] for state in memory[layer.layer_idx])
    check_states(layer, conv_state, ssm_state, rows)
    return conv_state, ssm_state


def check_states(layer: Mamba2, conv_state: Tensor, ssm_state: Tensor, rows: int) -> None:
    """Errors: CacheError."""
    if (
        conv_state.dim() != 3
        or conv_state.shape[:2] != (rows, layer.conv_dim)
        or conv_state.shape[2] < layer.d_conv - 1
    ):
        raise CacheError(
            f"conv_state has shape {list(conv_state.shape)}; it must be [batch, conv_dim, at least d_conv - 1] = "
            f"[{rows}, {layer.conv_dim}, {layer.d_conv - 1} or more]"
        )
    shape = (rows, layer.nheads, layer.headdim, layer.d_state)
    if ssm_state.shape != shape:
        raise CacheError(
            f"ssm_state has shape {list(ssm_state.shape)}; it must be [batch, nheads, headdim, d_state] = {list(shape)}"
        )
    for name, state in (("conv_state", conv_state), ("ssm_state", ssm_state)):
        if state.device != layer.out_proj.weight.device:
            raise CacheError(f"{name} is on {state.device}, the layer on {layer.out_proj.weight.device}; move it there")
