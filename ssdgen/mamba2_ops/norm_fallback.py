"""The gated norms in plain PyTorch: for CPUs, devices without Triton and float64.  -> norm_autograd"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Arguments, already checked, as in `layernorm_fn`.  Math in fp32, or in float64 if x is; differentiable."""
    math = torch.float64 if x.dtype is torch.float64 else torch.float32
    value = x.to(math)
    gate = None if z is None else F.silu(z.to(math))
    if gate is not None and not norm_before_gate:
        value = value * gate
    grouped = value.unflatten(-1, (-1, group_size))
    if not is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    value = grouped.flatten(-2) * weight.to(math)
    if bias is not None:
        value = value + bias.to(math)
    if gate is not None and norm_before_gate:
        value = value * gate
    return value.to(out_dtype or x.dtype).contiguous()
