"""Running the norms' kernels: rows, strides, device, config.  norm_autograd -> launchers.norm"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import norm_defaults
from .conv_paths import on_device
from .part_problem import of_norm
from .paths import runs_kernels as kernels_run
from .records import NORM_BACKWARD, NORM_FORWARD
from .select import part_config_for


def runs_kernels(x: Tensor, group_size: int) -> bool:
    """Whether the emitted kernels can run on this tensor: there are rows, and none is too long for one."""
    return x.numel() > 0 and group_size <= norm_defaults.LONGEST and kernels_run(x)


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
    """`norm_fallback.forward` by the emitted kernels, on the device of x."""
    from .launchers import norm as launcher

    config = _config(False, x, group_size)
    options = (eps, group_size, norm_before_gate, is_rms_norm, out_dtype)
    with on_device(x.device):
        y = launcher.forward(config, _rows(x), *_vectors(weight, bias), None if z is None else _rows(z), *options)
    return y.view(x.shape)


def backward(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
    d_z: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by the names of the operands.

    d_z: memory for the gradient of z, of its shape, whose rows are evenly spaced; None: of its own, dense.
    """
    from .launchers import norm as launcher

    config = _config(True, x, group_size)
    options = (eps, group_size, norm_before_gate, is_rms_norm)
    rows = (_rows(d_y), _rows(x), *_vectors(weight, bias), None if z is None else _rows(z))
    with on_device(x.device):
        found = launcher.backward(config, *rows, *options, None if d_z is None else d_z.view(-1, d_z.shape[-1]))
    return {name: value.view(x.shape) if name in ("x", "z") else value for name, value in found.items()}


def _config(backward: bool, x: Tensor, group_size: int) -> dict[str, Any]:
    dim = x.shape[-1]
    problem = of_norm(x.numel() // dim, dim // group_size, group_size, x.dtype)
    return part_config_for(NORM_BACKWARD if backward else NORM_FORWARD, problem, x.device)


def _rows(tensor: Tensor) -> Tensor:
    """[rows, dim] with a last stride of 1: a view where rows are evenly spaced, else a copy."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    # the gradient of a sum is one number, expanded
    return rows if rows.stride(1) == 1 and 0 not in rows.stride() else rows.contiguous()


def _vectors(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.contiguous(), None if bias is None else bias.contiguous()
