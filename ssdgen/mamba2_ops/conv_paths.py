"""Running the convolution's kernels: strides, device, config.  conv_autograd -> launchers.conv"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .conv_fallback import channels_last
from .part_problem import of_conv
from .paths import runs_kernels
from .records import CONV_BACKWARD, CONV_FORWARD, CONV_TILE_BACKWARD, CONV_TILE_FORWARD, CONV_UPDATE
from .select import part_config_for

__all__ = ["backward", "forward", "on_device", "runs_kernels", "update"]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor | None]:
    """`conv_fallback.forward` by the emitted kernels, on the device of x."""
    from .launchers import conv as launcher

    last = channels_last(x)
    given = _operands(x, weight, bias, initial_states, seq_idx, cu_seqlens)
    with on_device(x.device):
        y, states = launcher.forward(_config(False, given), **given, silu=silu, final_states=final_states)
    return _dense(y, last), states


def backward(
    d_y: Tensor | None,
    d_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    d_x: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by the names of the operands.

    d_x: memory for the gradient of x, of its shape, with a stride of 1 where x has it; None: of its own, dense.
    """
    from .launchers import conv as launcher

    last = channels_last(x)
    given = _operands(x, weight, bias, initial_states, seq_idx, cu_seqlens)
    if d_y is None:
        d_y = torch.zeros_like(given["x"])
    if d_y.stride(1 if _walks(given["x"]) else 2) != 1 or 0 in d_y.stride():
        d_y = _dense(d_y, _walks(given["x"]))
    with on_device(x.device):
        found = launcher.backward(_config(True, given), d_y, d_states, **given, silu=silu, d_x=d_x)
    if initial_states is not None:
        # where there was one row for the first sequence, the others started from zero
        found["initial_states"] = found["initial_states"][: initial_states.shape[0]].contiguous()
    return found if d_x is not None else {**found, "x": _dense(found["x"], last)}


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """`conv_fallback.update` by the emitted kernels."""
    from .launchers import conv as launcher

    problem = of_conv(x.shape[0], 1, x.shape[1], weight.shape[1], x.dtype)
    config = part_config_for(CONV_UPDATE, problem, x.device)
    cache_seqlens, conv_state_indices, bias = (
        tensor if tensor is None else tensor.contiguous() for tensor in (cache_seqlens, conv_state_indices, bias)
    )
    with on_device(x.device):
        return launcher.update(config, x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)


def _operands(x, weight, bias, initial_states, seq_idx, cu_seqlens) -> dict[str, Any]:
    """As the kernels take them: a stride of 1 along channels, or along positions where no sequences are packed."""
    if cu_seqlens is not None and not channels_last(x):
        x = _dense(x, True)
    elif not channels_last(x) and x.stride(2) != 1:
        x = x.contiguous()
    if initial_states is not None and cu_seqlens is not None:
        # given for the first sequence only: the others start from zero
        more = cu_seqlens.shape[0] - 1 - initial_states.shape[0]
        initial_states = torch.nn.functional.pad(initial_states, (0, 0, 0, 0, 0, more)) if more else initial_states
    return {
        "x": x,
        "weight": weight,
        "bias": None if bias is None else bias.contiguous(),
        "initial_states": initial_states,
        "seq_idx": None if seq_idx is None else seq_idx.contiguous(),
        "cu_seqlens": None if cu_seqlens is None else cu_seqlens.contiguous(),
    }


def _walks(x: Tensor) -> bool:
    return x.stride(1) == 1


def _config(backward: bool, given: dict[str, Any]) -> dict[str, Any]:
    x, cu_seqlens = given["x"], given["cu_seqlens"]
    batch, dim, seqlen = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    average = seqlen if cu_seqlens is None else -(-seqlen // rows)
    walked, tiled = (CONV_BACKWARD, CONV_TILE_BACKWARD) if backward else (CONV_FORWARD, CONV_TILE_FORWARD)
    problem = of_conv(rows, average, dim, given["weight"].shape[1], x.dtype)
    return part_config_for(walked if _walks(x) else tiled, problem, x.device)


def _dense(tensor: Tensor, last: bool) -> Tensor:
    """With channels, or else positions, side by side and nothing in between."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2) if last else tensor.contiguous()


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Triton launches on the current device, whatever the tensors are on."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            yield
    else:
        yield
