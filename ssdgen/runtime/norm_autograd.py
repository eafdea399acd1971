"""The gated norms with gradients: a function in eager mode, operators of torch elsewhere.  norm -> norm_paths

As `autograd` for the scan: operands are kept and nothing else, and operators check nothing again, since `norm` is
traced.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import norm_fallback, norm_paths
from .autograd import NAMESPACE
from .differentiate import gradients, needs_gradient, once

# operands that may need a gradient, in the order of the operators' arguments
DIFFERENTIABLE = ("x", "weight", "bias", "z")
_ARGUMENTS = len(DIFFERENTIABLE) + 5
_OPERANDS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? z, float eps, int group_size, bool norm_before_gate, "
    "bool is_rms_norm, ScalarType? out_dtype"
)


def run(
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
    """`norm_fallback.forward` on kernels where they can run, differentiable once."""
    given = (x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, out_dtype)
    if is_compiling():
        # one operator: nothing below can be traced
        return gated_norm(*given)
    if norm_paths.runs_kernels(x, group_size) and needs_gradient(x, weight, bias, z):
        return _Norm.apply(*given)
    return _forward(*given)


def _forward(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, out_dtype) -> Tensor:
    run = norm_paths.forward if norm_paths.runs_kernels(x, group_size) else norm_fallback.forward
    return run(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, out_dtype)


def _backward(
    d_y, x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, out_dtype, needs
) -> list[Tensor]:
    """Gradients of the operands that need one (a bool for each of DIFFERENTIABLE), in their order."""
    names = [name for name, needed in zip(DIFFERENTIABLE, needs, strict=True) if needed]
    if norm_paths.runs_kernels(x, group_size):
        found = norm_paths.backward(d_y, x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)
    else:
        found = gradients(
            lambda **leaves: (
                norm_fallback.forward(
                    **leaves,
                    eps=eps,
                    group_size=group_size,
                    norm_before_gate=norm_before_gate,
                    is_rms_norm=is_rms_norm,
                    out_dtype=out_dtype,
                ),
            ),
            {"x": x, "weight": weight, "bias": bias, "z": z},
            (d_y,),
            names,
        )
    return [found[name].contiguous() for name in names]


def _backward_fake(d_y, x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, out_dtype, needs):
    operands = (x, weight, bias, z)
    return [operand.new_empty(operand.shape) for operand, needed in zip(operands, needs, strict=True) if needed]


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[: len(DIFFERENTIABLE)])
    ctx.options = inputs[len(DIFFERENTIABLE) :]


def _gradients(ctx, d_y, backward) -> tuple:
    """A gradient, or None, for each argument of the operator."""
    needs = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
    found = iter(backward(d_y, *ctx.saved_tensors, *ctx.options, needs))
    return (*(next(found) if needed else None for needed in needs), *[None] * (_ARGUMENTS - len(needs)))


def _differentiate(ctx, d_y):
    """The operator's own: a compiler traces it, in a thread that does not say so."""
    return _gradients(ctx, d_y, gated_norm_backward)


class _Norm(torch.autograd.Function):
    """`gated_norm` past the dispatcher."""

    @staticmethod
    def forward(ctx, *given):
        _keep(ctx, given, None)
        return _forward(*given)

    @staticmethod
    def backward(ctx, d_y):  # type: ignore[override]
        # with create_graph the gradient may be differentiated, of which the operator says that it cannot be
        return _gradients(ctx, d_y, gated_norm_backward if torch.is_grad_enabled() else _backward)


gated_norm = torch.library.custom_op(
    f"{NAMESPACE}::gated_norm", _forward, mutates_args=(), schema=f"({_OPERANDS}) -> Tensor"
)
gated_norm.register_fake(lambda x, *options: x.new_empty(x.shape, dtype=options[-1]))
gated_norm.register_autograd(_differentiate, setup_context=_keep)

gated_norm_backward = torch.library.custom_op(
    f"{NAMESPACE}::gated_norm_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor d_y, {_OPERANDS}, bool[] needs) -> Tensor[]",
)
gated_norm_backward.register_fake(_backward_fake)
gated_norm_backward.register_autograd(once("layernorm_fn"), setup_context=lambda ctx, inputs, output: None)
