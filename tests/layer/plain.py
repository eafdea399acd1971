"""The split layer once more, token by token and in float64: what the tests of this folder compare with."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor


def split(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    *,
    headdim: int,
    ngroups: int = 1,
    initial_states: Tensor | None = None,
    initial_conv_states: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, inf),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    norm_before_gate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the last states and the last inputs of the convolution, of rows without padding or packing."""
    batch, seqlen, columns = zxbcdt.shape
    nheads, d_ssm, channels = A.shape[0], A.shape[0] * headdim, conv1d_weight.shape[0]
    dstate = (channels - d_ssm) // (2 * ngroups)
    d_nonssm = (columns - d_ssm - channels - nheads) // 2
    z0, x0, z, xBC, dt = zxbcdt.split((d_nonssm, d_nonssm, d_ssm, channels, nheads), dim=-1)

    width = conv1d_weight.shape[1]
    before = initial_conv_states if initial_conv_states is not None else xBC.new_zeros(batch, channels, width - 1)
    inputs = torch.cat((before, xBC.mT), dim=2)
    convolved = sum(conv1d_weight[:, k, None] * inputs[:, :, k : k + seqlen] for k in range(width))
    if conv1d_bias is not None:
        convolved = convolved + conv1d_bias[:, None]
    if activation is not None:
        convolved = F.silu(convolved)
    x, B, C = convolved.mT.split((d_ssm, ngroups * dstate, ngroups * dstate), dim=-1)
    x = x.unflatten(-1, (nheads, headdim))
    B, C = (t.unflatten(-1, (ngroups, dstate)).repeat_interleave(nheads // ngroups, dim=2) for t in (B, C))

    dt = F.softplus(dt if dt_bias is None else dt + dt_bias).clamp(*dt_limit)
    state = initial_states if initial_states is not None else x.new_zeros(batch, nheads, headdim, dstate)
    ys = []
    for t in range(seqlen):
        decay = (dt[:, t] * A).exp()[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        ys.append((state * C[:, t, :, None]).sum(-1))
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]) * x
    y = y.flatten(-2)

    gate = F.silu(z)
    if rmsnorm_weight is None:
        y = y * gate
    else:
        u = y if norm_before_gate else y * gate
        groups = u.unflatten(-1, (ngroups, -1))
        u = (groups * (groups.square().mean(-1, keepdim=True) + rmsnorm_eps).rsqrt()).flatten(-2) * rmsnorm_weight
        y = u * gate if norm_before_gate else u
    out = torch.cat((F.silu(z0) * x0, y), dim=-1)
    if outproj_weight is not None:
        out = F.linear(out, outproj_weight, outproj_bias)
    return out, state, inputs[:, :, inputs.shape[2] - (width - 1) :]


def packed(cu_seqlens: list[int], zxbcdt: Tensor, *operands, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Each sequence of one row by itself."""
    states = {name: options.pop(name, None) for name in ("initial_states", "initial_conv_states")}
    found = []
    for index, (start, end) in enumerate(pairwise(cu_seqlens)):
        own = {name: t[index : index + 1] for name, t in states.items() if t is not None and index < t.shape[0]}
        found.append(split(zxbcdt[:, start:end], *operands, **options, **own))
    outs, finals, convs = zip(*found, strict=True)
    return torch.cat(outs, dim=1), torch.cat(finals), torch.cat(convs)
