"""The language model with mamba_ssm's functions in the place of ours: same weights, same loop.  -> generate, end_to_end

mamba_ssm's model takes its convolution from the package causal_conv1d and has none of its own on a GPU; where that is
not installed torch's is used, as in mamba_ssm's module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdgen.mamba2_ops import mamba2, norm, split_forward

# where the model looks its functions up
PLACES = {
    "mamba_chunk_scan_combined": (split_forward,),
    "rmsnorm_fn": (split_forward, norm),
    "causal_conv1d_fn": (split_forward,),
    "causal_conv1d_update": (mamba2,),
    "selective_state_update": (mamba2,),
}


@contextmanager
def swapped(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, the model calls these.  Errors: KeyError for a name that it does not call."""
    places = [(place, name, function) for name, function in functions.items() for place in PLACES[name]]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def load(own_conv: bool = False) -> tuple[dict[str, Callable[..., Any]] | None, str]:
    """({name: function} or None, what was found or why not).

    own_conv: without causal_conv1d leave the model's own convolution in place, which leans towards the peer.
    """
    try:
        from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported ({error}); only ssdgen is measured"
    try:
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update

        conv, about = {"causal_conv1d_fn": causal_conv1d_fn, "causal_conv1d_update": causal_conv1d_update}, "its own"
    except ImportError:
        if own_conv:
            conv, about = {}, "that of ssdgen"
        else:
            conv, about = {"causal_conv1d_fn": conv_fn, "causal_conv1d_update": conv_update}, "torch's"
    scan = {
        "mamba_chunk_scan_combined": _known(mamba_chunk_scan_combined),
        "rmsnorm_fn": rmsnorm_fn,
        "selective_state_update": _each_channel(selective_state_update),
    }
    return {**scan, **{name: _known(function) for name, function in conv.items()}}, f"mamba_ssm, convolution: {about}"


def _known(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the options that it does not have, which the model leaves at None."""
    known = inspect.signature(function).parameters
    return lambda *args, **kwargs: function(*args, **{name: v for name, v in kwargs.items() if name in known})


def _each_channel(update: Callable[..., Any]) -> Callable[..., Any]:
    """With one number for a head expanded to its channels, as it wants them (without memory)."""

    def call(state, x, dt, A, B, C, D, z=None, dt_bias=None, dt_softplus=False, **limits):
        heads = x.shape[1:]
        return update(
            state, x, dt[..., None].expand(x.shape), A[:, None, None].expand(state.shape[1:]), B, C,
            D[:, None].expand(heads), z=z, dt_bias=dt_bias[:, None].expand(heads), dt_softplus=dt_softplus,
        )  # fmt: skip

    return call


def conv_fn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """The convolution by torch.  x: [batch, channels, seqlen]."""
    y = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=x.shape[1])[..., : x.shape[2]]
    return F.silu(y) if activation else y


def conv_update(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """One more token by torch, the state in place.  x: [batch, channels]; state: [batch, channels, width]."""
    state.copy_(torch.roll(state, shifts=-1, dims=-1))
    state[..., -1] = x
    y = (state * weight).sum(-1)
    y = (y if bias is None else y + bias).to(x.dtype)
    return F.silu(y) if activation else y
