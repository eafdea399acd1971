"""The steps of the split layer, as the public functions make them.  split, split_gradient -> convolution, scan, norm"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv import causal_conv1d_fn
from .interface import mamba_chunk_scan_combined
from .norm import rmsnorm_fn

# a step size before softplus that is none after it, finite in every dtype
NO_STEP = -1e4


class Operands(NamedTuple):
    """The tensors of a call, as in `mamba_split_conv1d_scan_combined`; the last three have no gradient."""

    zxbcdt: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    dt_bias: Tensor | None
    A: Tensor
    D: Tensor | None
    initial_states: Tensor | None
    rmsnorm_weight: Tensor | None
    outproj_weight: Tensor | None
    outproj_bias: Tensor | None
    initial_conv_states: Tensor | None
    seq_idx: Tensor | None
    cu_seqlens: Tensor | None
    attention_mask: Tensor | None


class Found(NamedTuple):
    """What a call makes.  y: [batch, seqlen, d_ssm], of the scan; convolved: what it read; states where asked for."""

    out: Tensor
    y: Tensor
    convolved: Tensor
    states: Tensor | None
    conv_states: Tensor | None


@dataclass(frozen=True)
class Split:
    """Sizes and options of one call.  activation: whether there is one.  final_states, final_conv_states: wanted.

    process_group: the ranks that share the sequence, or None.
    """

    nheads: int
    headdim: int
    ngroups: int
    dstate: int
    d_nonssm: int
    chunk_size: int
    dt_limit: tuple[float, float]
    activation: bool
    eps: float
    norm_before_gate: bool
    state_dtype: torch.dtype | None
    final_states: bool
    final_conv_states: bool
    process_group: Any = None

    @property
    def d_ssm(self) -> int:
        return self.nheads * self.headdim

    def parts(self, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """zx0, z, xBC and dt, where they lie."""
        conv_dim = self.d_ssm + 2 * self.ngroups * self.dstate
        # torch's method in Python takes as long again
        return torch.split_with_sizes(zxbcdt, (2 * self.d_nonssm, self.d_ssm, conv_dim, self.nheads), dim=-1)

    def heads(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, seqlen, nheads, headdim], B and C [batch, seqlen, ngroups, dstate], where they lie."""
        d_state = self.ngroups * self.dstate
        x, B, C = torch.split_with_sizes(convolved, (self.d_ssm, d_state, d_state), dim=-1)
        groups = (self.ngroups, self.dstate)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)


def compose(call: Split, given: Operands) -> Found:
    """The whole call, differentiable."""
    zx0, z, xBC, dt = call.parts(given.zxbcdt)
    if call.process_group is None:
        convolved, conv_states = convolve(call, xBC, given)
    else:
        from .ranks import told

        # the scan of the other ranks waits for this one's
        with told(call.process_group, xBC):
            convolved, conv_states = convolve(call, xBC, given)
    y, states = scan(call, convolved, gate(call, given, z), dt, given)
    h = join(call, y, z, zx0, given.rmsnorm_weight)
    out = h if given.outproj_weight is None else F.linear(h, given.outproj_weight, given.outproj_bias)
    return Found(out, y, convolved, states, conv_states)


def gate(call: Split, given: Operands, z: Tensor) -> Tensor | None:
    """The scan's gate; with a norm it is the norm's."""
    return z.unflatten(-1, (call.nheads, call.headdim)) if given.rmsnorm_weight is None else None


def convolve(call: Split, xBC: Tensor, given: Operands) -> tuple[Tensor, Tensor | None]:
    """x, B and C side by side, [batch, seqlen, channels], and what follows would start from, if it is wanted."""
    xBC = without_padding(xBC, given)
    found = causal_conv1d_fn(
        xBC.mT,
        given.conv1d_weight,
        given.conv1d_bias,
        seq_idx=given.seq_idx,
        initial_states=given.initial_conv_states,
        return_final_states=call.final_conv_states,
        activation="silu" if call.activation else None,
        cu_seqlens=given.cu_seqlens,
    )
    convolved, states = found if call.final_conv_states else (found, None)
    convolved = convolved.mT
    if call.dt_limit[0] > 0:
        # no step is as small as the one that padding should have
        convolved = without_padding(convolved, given)
    return convolved, states


def step_sizes(dt: Tensor, given: Operands) -> Tensor:
    """dt, such that padding leaves a state as it is."""
    return without_padding(dt, given, NO_STEP)


def without_padding(tensor: Tensor, given: Operands, value: float = 0.0) -> Tensor:
    """tensor: [batch, seqlen, ...], which gets `value` where there is padding."""
    if given.attention_mask is None:
        return tensor
    return tensor.masked_fill((given.attention_mask == 0).unsqueeze(-1), value)


def scan(call: Split, convolved: Tensor, z: Tensor | None, dt: Tensor, given: Operands) -> tuple[Tensor, Tensor | None]:
    """y [batch, seqlen, d_ssm], and the states after each row or packed sequence, if they are wanted."""
    x, B, C = call.heads(convolved)
    packed = given.cu_seqlens is not None
    found = mamba_chunk_scan_combined(
        x,
        step_sizes(dt, given),
        given.A,
        B,
        C,
        call.chunk_size,
        D=given.D,
        z=z,
        dt_bias=given.dt_bias,
        initial_states=given.initial_states,
        seq_idx=given.seq_idx,
        cu_seqlens=given.cu_seqlens,
        dt_softplus=True,
        dt_limit=call.dt_limit,
        return_final_states=call.final_states and not packed,
        return_varlen_states=call.final_states and packed,
        state_dtype=call.state_dtype,
        process_group=call.process_group,
    )
    y, states = found if call.final_states else (found, None)
    return y.flatten(-2), states


def join(call: Split, y: Tensor, z: Tensor, zx0: Tensor, rmsnorm_weight: Tensor | None) -> Tensor:
    """What the output projection reads: y behind its norm, and before it what bypasses the scan."""
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(
            y,
            rmsnorm_weight,
            None,
            z=z,
            eps=call.eps,
            group_size=call.d_ssm // call.ngroups,
            norm_before_gate=call.norm_before_gate,
        )
    if not call.d_nonssm:
        return y
    z0, x0 = zx0.chunk(2, dim=-1)
    return torch.cat((swiglu(z0, x0), y), dim=-1)


def swiglu(z: Tensor, x: Tensor) -> Tensor:
    """silu(z) x, rounded once."""
    math = torch.float64 if x.dtype is torch.float64 else torch.float32
    return (F.silu(z.to(math)) * x.to(math)).to(x.dtype)
