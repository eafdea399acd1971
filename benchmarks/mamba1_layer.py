"""The Mamba-1 layer around its CUDA scan, and around its recurrence in PyTorch.  selective_scan -> layer_training

The convolution is ours, so that it costs what it costs the Mamba-2 layer; the gate is the scan's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import selective_scan
from ssdgen.mamba2_ops import causal_conv1d_fn

# scan(u, delta, A, B, C, D=, delta_bias=, z=), as selective_scan.scan without the extension
Scan = Callable[..., Tensor]


class Mamba1(nn.Module):
    """in_proj, convolution, projections to dt, B and C, scan with its gate, out_proj.

    d_model: width of input and output; inside it is twice as wide.  d_state: states of a channel.
    """

    def __init__(self, d_model: int, scan: Scan, d_state: int = 16, d_conv: int = 4, device: Any = None) -> None:
        super().__init__()
        self.scan, self.d_inner, self.d_state, self.dt_rank = scan, 2 * d_model, d_state, ceil(d_model / 16)
        inner = self.d_inner
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False, device=device)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, device=device)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, device=device)
        self.dt_proj = nn.Linear(self.dt_rank, inner, bias=False, device=device)
        step = torch.exp(torch.rand(inner, device=device) * (log(0.1) - log(0.001)) + log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1, device=device).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner, device=device))
        self.out_proj = nn.Linear(inner, d_model, bias=False, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [batch, seqlen, d_model]; returns the same shape."""
        batch, seqlen = hidden.shape[:2]

        def by_channels(weight: Tensor, rows: Tensor) -> Tensor:
            """rows weight^T with tokens side by side, as the scan wants them: [batch, channels, seqlen]."""
            return (weight @ rows.mT).unflatten(1, (batch, seqlen)).transpose(0, 1)

        x, z = by_channels(self.in_proj.weight, hidden.flatten(0, 1)).chunk(2, dim=1)
        x = causal_conv1d_fn(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        parts = self.x_proj(x.mT.flatten(0, 1)).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        B, C = (part.unflatten(0, (batch, seqlen)).mT.unsqueeze(1).contiguous() for part in parts[1:])
        delta = by_channels(self.dt_proj.weight, parts[0])
        y = self.scan(x, delta, -torch.exp(self.A_log.float()), B, C, self.D, self.dt_bias, z=z)
        return self.out_proj(y.mT)


def cuda_scan(extension: Any) -> Scan:
    """The extension as the layer calls it."""
    return partial(selective_scan.scan, extension)


def plain_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, z: Tensor):
    """The recurrence, token by token, in float64: what the extension is checked against."""
    kept = u.dtype
    u, delta, A, B, C, D, delta_bias, z = (t.double() for t in (u, delta, A, B, C, D, delta_bias, z))
    dt = F.softplus(delta + delta_bias[:, None])
    state, ys = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype, device=u.device), []
    for at in range(u.shape[2]):
        step = dt[:, :, at, None]
        state = (step * A).exp() * state + step * B[:, :, :, at] * u[:, :, at, None]
        ys.append((state * C[:, :, :, at]).sum(-1))
    return ((torch.stack(ys, dim=2) + D[:, None] * u) * F.silu(z)).to(kept)
