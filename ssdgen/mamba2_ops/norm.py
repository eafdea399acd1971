"""The public calls of the gated norms.  arguments -> checks -> kernels, the same with gradients, or PyTorch"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from . import norm_autograd
from .conv_checks import FLOATS
from .errors import DeviceError, DtypeError, OperandError, OptionError, ShapeError


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A norm over the last dimension, or over groups of it, with a gate; mamba_ssm's function of this name.

        norm(u) = (u - mean(u)) / sqrt(mean((u - mean(u))^2) + eps) weight + bias      without the means of u for RMS
        y = norm(x) silu(z)  if norm_before_gate  else  norm(x silu(z))

    x: [..., dim], bf16, fp16 or fp32; dim at least 1.
    weight: [dim]; bias: [dim] or None.  Any floating dtype.
    z: the shape of x, any floating dtype; None: no gate.
    eps: at least 0.
    group_size: channels that are normalised together, a divisor of dim; None: all of them.
    norm_before_gate: gate what was normalised, or normalise what was gated.
    is_rms_norm: leave the mean in.
    out_dtype: of y, bf16, fp16 or fp32, where what follows reads another dtype than that of x; None: that of x.

    Returns: y in the shape of x, in out_dtype.  All math is in fp32.  x and z are read in place where their last stride
    is 1 and their rows are evenly spaced (slices of a projection), and copied otherwise.  Gradients reach x, weight,
    bias and z; first derivatives only, with the same bits each time.  torch.compile takes the call whole.
    Errors, all before any launch: ShapeError, DtypeError, DeviceError, OptionError, OperandError.
    """
    _check(x, weight, bias, z, eps, group_size, out_dtype)
    group = x.shape[-1] if group_size is None else group_size
    options = (float(eps), group, bool(norm_before_gate), bool(is_rms_norm))
    return norm_autograd.run(x, weight, bias, z, *options, None if out_dtype is x.dtype else out_dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`layernorm_fn` without subtracting the mean: mamba_ssm's function of this name.

    norm(u) = u / sqrt(mean(u^2) + eps) weight + bias
    """
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True, out_dtype)


class LayerNorm(torch.nn.Module):
    """`layernorm_fn` with weight [hidden_size] (ones) and bias [hidden_size] (zeros) of its own.

    hidden_size: the last dimension of what is normalised.  eps, group_size, norm_before_gate: see there.
    device, dtype: of the parameters.
    """

    bias: torch.nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self._make_bias(hidden_size, device=device, dtype=dtype)
        self.reset_parameters()

    def _make_bias(self, hidden_size: int, **factory: Any) -> None:
        self.bias = torch.nn.Parameter(torch.empty(hidden_size, **factory))

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """x, z: [..., hidden_size]; the gate is left out where z is None.  out_dtype: of what is returned, else x's."""
        options = (self.eps, self.group_size, self.norm_before_gate)
        return layernorm_fn(x, self.weight, self.bias, z, *options, False, out_dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[0]}, eps={self.eps}, group_size={self.group_size}, "
            f"norm_before_gate={self.norm_before_gate}"
        )


class RMSNorm(LayerNorm):
    """`rmsnorm_fn` with a weight [hidden_size] (ones) of its own and no bias.

    hidden_size: the last dimension of what is normalised.  eps, group_size, norm_before_gate: see there.
    device, dtype: of the weight.
    """

    def _make_bias(self, hidden_size: int, **factory: Any) -> None:
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, z: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """x, z: [..., hidden_size]; the gate is left out where z is None.  out_dtype: of what is returned, else x's."""
        options = (self.eps, self.group_size, self.norm_before_gate)
        return rmsnorm_fn(x, self.weight, self.bias, z, *options, out_dtype)


def _check(x: Any, weight: Any, bias: Any, z: Any, eps: Any, group_size: Any, out_dtype: Any) -> None:
    operands = {"x": x, "weight": weight, "bias": bias, "z": z}
    for name, value in operands.items():
        if not isinstance(value, Tensor) and (value is not None or name in ("x", "weight")):
            allowed = "a torch.Tensor" if name in ("x", "weight") else "a torch.Tensor or None"
            raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}")
    if not x.dim() or not x.shape[-1]:
        _shape("x", x, "[..., dim] with dim at least 1")
    dim = x.shape[-1]
    if weight.shape != (dim,):
        _shape("weight", weight, f"[dim] = [{dim}], as in x")
    if bias is not None and bias.shape != (dim,):
        _shape("bias", bias, f"[dim] = [{dim}], as in x")
    if z is not None and z.shape != x.shape:
        _shape("z", z, f"that of x, {list(x.shape)}")
    for name, tensor in operands.items():
        if tensor is None:
            continue
        if tensor.dtype not in FLOATS:
            raise DtypeError(f"{name} is {tensor.dtype}; it must have a floating dtype: convert it with .to(...)")
        if tensor.device != x.device:
            raise DeviceError(f"{name} is on {tensor.device}, x is on {x.device}; move it there")
    if group_size is not None and (not isinstance(group_size, int) or group_size < 1 or dim % group_size):
        raise OptionError(f"group_size is {group_size!r}; it must be a divisor of dim = {dim}, or None for all of it")
    if out_dtype is not None and out_dtype not in FLOATS:
        raise DtypeError(f"out_dtype is {out_dtype}; it must be a floating dtype of torch, or None for that of x")
    if not isinstance(eps, (int, float)) or not eps >= 0:
        raise OptionError(f"eps is {eps!r}; it must be a number of at least 0 (1e-5 is usual)")


def _shape(name: str, tensor: Tensor, wanted: str) -> NoReturn:
    raise ShapeError(f"{name} has shape {list(tensor.shape)}; it must be {wanted}")
