"""The convolution with gradients: a function in eager mode, operators of torch elsewhere.  conv -> conv_paths

As `autograd` for the scan: operands are kept and nothing else, and operators check nothing again, since `conv` is
traced.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import conv_fallback, conv_paths
from .autograd import NAMESPACE
from .differentiate import gradients, needs_gradient, once

# operands that may need a gradient, in the order of the operators' arguments
DIFFERENTIABLE = ("x", "weight", "bias", "initial_states")
_TENSORS = len(DIFFERENTIABLE) + 2
_ARGUMENTS = _TENSORS + 2
_OPERANDS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, Tensor? seq_idx, Tensor? cu_seqlens, bool silu"
)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor]:
    """y and the final states, which are empty where they were not asked for."""
    given = (x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, final_states)
    if is_compiling():
        # one operator: nothing below can be traced
        return causal_conv1d(*given)
    if _runs_kernels(x) and needs_gradient(x, weight, bias, initial_states):
        return _Conv.apply(*given)
    return _forward(*given)


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """y of new tokens, [batch, dim, tokens]; the state is updated in place."""
    given = (x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)
    return causal_conv1d_update(*given) if is_compiling() else _update(*given)


def _runs_kernels(x: Tensor) -> bool:
    return x.shape[0] > 0 and conv_paths.runs_kernels(x)


def _update(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices) -> Tensor:
    run = conv_paths.update if _runs_kernels(x) else conv_fallback.update
    return run(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)


def _forward(x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, final_states) -> tuple[Tensor, Tensor]:
    if _runs_kernels(x):
        y, states = conv_paths.forward(x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, final_states)
    else:
        y, states = conv_fallback.forward(x, weight, bias, seq_idx, cu_seqlens, initial_states, silu, final_states)
    return y, x.new_empty(0) if states is None else states


def _forward_fake(x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, final_states):
    batch, dim, _ = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = (rows, dim, weight.shape[1] - 1) if final_states else (0,)
    return conv_fallback.empty_like(x), x.new_empty(states)


def _backward(d_y, d_states, x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, needs) -> list[Tensor]:
    """Gradients of the operands that need one (a bool for each of DIFFERENTIABLE), in their order."""
    names = [name for name, needed in zip(DIFFERENTIABLE, needs, strict=True) if needed]
    if _runs_kernels(x):
        found = conv_paths.backward(d_y, d_states, x, weight, bias, initial_states, seq_idx, cu_seqlens, silu)
    else:
        found = gradients(
            lambda **leaves: conv_fallback.forward(
                **leaves, seq_idx=seq_idx, cu_seqlens=cu_seqlens, silu=silu, final_states=d_states is not None
            ),
            {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states},
            (d_y, d_states),
            names,
        )
    return [conv_fallback.dense(found[name], x) if name == "x" else found[name].contiguous() for name in names]


def _backward_fake(d_y, d_states, x, weight, bias, initial_states, seq_idx, cu_seqlens, silu, needs):
    made = (
        conv_fallback.empty_like(x),
        *(None if t is None else t.new_empty(t.shape) for t in (weight, bias, initial_states)),
    )
    return [tensor for tensor, needed in zip(made, needs, strict=True) if needed]


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.silu = inputs[_TENSORS]
    # a result that nobody used has no gradient, instead of one full of zeros
    ctx.set_materialize_grads(False)


def _gradients(ctx, d_y, d_states, backward) -> tuple:
    """A gradient, or None, for each argument of the operator."""
    needs = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
    if d_states is not None and not d_states.numel():
        d_states = None
    found = iter(())
    if d_y is not None or d_states is not None:
        found = iter(backward(d_y, d_states, *ctx.saved_tensors, ctx.silu, needs))
    return (*(next(found, None) if needed else None for needed in needs), *[None] * (_ARGUMENTS - len(needs)))


def _differentiate(ctx, d_y, d_states):
    """The operator's own: a compiler traces it, in a thread that does not say so."""
    return _gradients(ctx, d_y, d_states, causal_conv1d_backward)


class _Conv(torch.autograd.Function):
    """`causal_conv1d` past the dispatcher."""

    @staticmethod
    def forward(ctx, *given):
        _keep(ctx, given, None)
        return _forward(*given)

    @staticmethod
    def backward(ctx, d_y, d_states):  # type: ignore[override]
        # with create_graph the gradient may be differentiated, of which the operator says that it cannot be
        return _gradients(ctx, d_y, d_states, causal_conv1d_backward if torch.is_grad_enabled() else _backward)


causal_conv1d = torch.library.custom_op(
    f"{NAMESPACE}::causal_conv1d",
    _forward,
    mutates_args=(),
    schema=f"({_OPERANDS}, bool final_states) -> (Tensor, Tensor)",
)
causal_conv1d.register_fake(_forward_fake)
causal_conv1d.register_autograd(_differentiate, setup_context=_keep)

causal_conv1d_backward = torch.library.custom_op(
    f"{NAMESPACE}::causal_conv1d_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor? d_y, Tensor? d_states, {_OPERANDS}, bool[] needs) -> Tensor[]",
)
causal_conv1d_backward.register_fake(_backward_fake)
causal_conv1d_backward.register_autograd(once("causal_conv1d_fn"), setup_context=lambda ctx, inputs, output: None)

causal_conv1d_update = torch.library.custom_op(
    f"{NAMESPACE}::causal_conv1d_update",
    _update,
    mutates_args=("conv_state",),
    schema="(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, bool silu, Tensor? cache_seqlens, "
    "Tensor? conv_state_indices) -> Tensor",
)
causal_conv1d_update.register_fake(lambda x, *_: x.new_empty(x.shape))
