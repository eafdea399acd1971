"""Gradients of a function of tensors by automatic differentiation, also inside of an operator.  -> *_autograd"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .fallback import differentiable


def gradients(
    run: Callable[..., Sequence[Tensor | None]],
    operands: dict[str, Tensor | None],
    d_outputs: Sequence[Tensor | None],
    needs: Sequence[str],
) -> dict[str, Tensor]:
    """Gradients of the sum of d_outputs times the outputs of `run(**operands)`, by the names in `needs`.

    d_outputs: in the order of the outputs; None: zero.  Returned in the shapes and dtypes of the operands.
    """
    with differentiable(), torch.autocast(_device(operands), enabled=False):
        leaves = {
            name: None if tensor is None else tensor.detach().requires_grad_(name in needs)
            for name, tensor in operands.items()
        }
        outputs = run(**leaves)
        pairs = [
            (out, d_out.to(out.dtype))
            for out, d_out in zip(outputs, d_outputs, strict=True)
            if out is not None and d_out is not None and out.requires_grad
        ]
        wanted = {name: leaf for name, leaf in leaves.items() if name in needs and leaf is not None}
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs:
            found = torch.autograd.grad(
                [out for out, _ in pairs], list(wanted.values()), [d_out for _, d_out in pairs], allow_unused=True
            )
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(wanted.items(), found, strict=True)
    }


def _device(operands: dict[str, Tensor | None]) -> str:
    return next(tensor.device.type for tensor in operands.values() if tensor is not None)
