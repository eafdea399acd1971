"""Every mistake in the arguments of the convolution is found here, before anything is written.  conv -> conv_checks

torch.compile traces it: what has to be read from memory is then not checked.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .errors import DeviceError, DtypeError, OperandError, OptionError, ShapeError
from .sequences import check_sequences
from .slots import check_slots

WIDTHS = (2, 3, 4)
ACTIVATIONS = (None, "silu", "swish")
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTS = (torch.int32, torch.int64)


def check_conv(
    x: Any,
    weight: Any,
    bias: Any,
    seq_idx: Any,
    cu_seqlens: Any,
    initial_states: Any,
    return_final_states: bool,
    final_states_out: Any,
    activation: Any,
) -> None:
    """Check the arguments of `causal_conv1d_fn` (shapes and dtypes are listed there).

    Errors: OperandError, ShapeError, DtypeError, DeviceError, OptionError, SequenceError.
    """
    _tensors(
        ("x", "weight"),
        x=x, weight=weight, bias=bias, seq_idx=seq_idx, cu_seqlens=cu_seqlens, initial_states=initial_states,
        final_states_out=final_states_out,
    )  # fmt: skip
    if x.dim() != 3 or not (x.shape[1] and x.shape[2]):
        _shape("x", x, "[batch, dim, seqlen], at least 1 in dim and seqlen")
    batch, dim, seqlen = x.shape
    width = _weight(x, weight, bias, activation)
    sequences = batch
    if cu_seqlens is not None:
        if seq_idx is not None:
            raise OptionError("seq_idx and cu_seqlens were both given; give the one that says where sequences begin")
        if batch != 1:
            raise ShapeError(f"cu_seqlens was given with batch {batch}; packed sequences are one row of batch 1")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
            _shape("cu_seqlens", cu_seqlens, "[number of sequences + 1], with at least one sequence")
        _dtype("cu_seqlens", cu_seqlens, INTS)
        _device("cu_seqlens", cu_seqlens, x)
        sequences = cu_seqlens.shape[0] - 1
        if not is_compiling():
            check_sequences(cu_seqlens, seqlen)
    if seq_idx is not None:
        if seq_idx.shape != (batch, seqlen):
            _shape("seq_idx", seq_idx, f"[batch, seqlen] = [{batch}, {seqlen}]")
        _dtype("seq_idx", seq_idx, INTS)
        _device("seq_idx", seq_idx, x)
    if initial_states is not None:
        # a tracer finds no shape `in` a tuple of them
        if all(initial_states.shape != (count, dim, width - 1) for count in (sequences, batch)):
            rows = (
                f"{sequences} (one for each packed sequence) or 1 (for the first)" if cu_seqlens is not None else batch
            )
            _shape(
                "initial_states", initial_states, f"[rows, dim, width - 1] = [rows, {dim}, {width - 1}], rows {rows}"
            )
        _dtype("initial_states", initial_states, FLOATS)
        _device("initial_states", initial_states, x)
    if final_states_out is not None:
        if not return_final_states:
            raise OptionError("final_states_out was given without return_final_states=True; set it, or leave it out")
        if final_states_out.shape != (sequences, dim, width - 1):
            _shape("final_states_out", final_states_out, f"[rows, dim, width - 1] = [{sequences}, {dim}, {width - 1}]")
        if final_states_out.dtype is not x.dtype:
            raise DtypeError(f"final_states_out is {final_states_out.dtype}; it must be {x.dtype}, as x is")
        _device("final_states_out", final_states_out, x)


def check_update(
    x: Any, conv_state: Any, weight: Any, bias: Any, activation: Any, cache_seqlens: Any, conv_state_indices: Any
) -> None:
    """Check the arguments of `causal_conv1d_update`, before the state is touched.

    Errors: OperandError, ShapeError, DtypeError, DeviceError, OptionError, SlotError.
    """
    _tensors(
        ("x", "conv_state", "weight"),
        x=x, conv_state=conv_state, weight=weight, bias=bias, cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )  # fmt: skip
    if x.dim() not in (2, 3) or not all(x.shape[1:]):
        _shape("x", x, "[batch, dim] or [batch, dim, tokens], at least 1 in dim and tokens")
    batch, dim = x.shape[:2]
    width = _weight(x, weight, bias, activation)
    if conv_state.dim() != 3 or conv_state.shape[1] != dim:
        _shape("conv_state", conv_state, f"[batch or slots, dim, state_len] with dim {dim}, as in x")
    if conv_state.shape[2] < width - 1:
        _shape("conv_state", conv_state, f"at least width - 1 = {width - 1} long in its last dimension")
    if conv_state.dtype not in (x.dtype, torch.float32):
        raise DtypeError(f"conv_state is {conv_state.dtype}, x is {x.dtype}; the state must be in x's dtype or float32")
    _device("conv_state", conv_state, x)
    if _overlaps(conv_state):
        raise ShapeError(
            f"conv_state has strides {conv_state.stride()}: elements share memory; give it memory of its own"
        )
    for name, tensor in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if tensor is not None:
            if tensor.shape != (batch,):
                _shape(name, tensor, f"[batch] = [{batch}]")
            _dtype(name, tensor, INTS)
            _device(name, tensor, x)
    if conv_state_indices is not None:
        if not is_compiling():
            check_slots(conv_state_indices, conv_state.shape[0], "conv_state_indices", "conv_state")
    elif conv_state.shape[0] != batch:
        _shape("conv_state", conv_state, f"[batch, dim, state_len] with batch {batch} where no conv_state_indices are")


def check_varlen_states(x: Any, cu_seqlens: Any, state_len: Any) -> None:
    """Check the arguments of `causal_conv1d_varlen_states`.  Errors: as in `check_conv`."""
    _tensors(("x", "cu_seqlens"), x=x, cu_seqlens=cu_seqlens)
    if x.dim() != 2 or not x.shape[0]:
        _shape("x", x, "[tokens, dim], at least one token")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        _shape("cu_seqlens", cu_seqlens, "[number of sequences + 1], with at least one sequence")
    _dtype("cu_seqlens", cu_seqlens, INTS)
    _device("cu_seqlens", cu_seqlens, x)
    if not isinstance(state_len, int) or state_len < 1:
        raise OptionError(f"state_len is {state_len!r}; it must be an integer of at least 1 (width - 1 is usual)")
    if not is_compiling():
        check_sequences(cu_seqlens, x.shape[0])


def _weight(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Any) -> int:
    """Check what a channel is multiplied with; returns the width."""
    dim = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != dim:
        _shape("weight", weight, f"[dim, width] with dim {dim}, as in x; of a Conv1d take weight.squeeze(1)")
    if weight.shape[1] not in WIDTHS:
        raise ShapeError(f"weight has width {weight.shape[1]}; allowed are 2, 3 and 4")
    if bias is not None and bias.shape != (dim,):
        _shape("bias", bias, f"[dim] = [{dim}]")
    if activation not in ACTIVATIONS:
        raise OptionError(f"activation is {activation!r}; allowed are None, 'silu' and 'swish' (the same as 'silu')")
    _dtype("x", x, FLOATS)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _dtype(name, tensor, FLOATS)
            _device(name, tensor, x)
    return weight.shape[1]


def _overlaps(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _tensors(needed: tuple[str, ...], **operands: Any) -> None:
    for name, value in operands.items():
        if not isinstance(value, Tensor) and (value is not None or name in needed):
            allowed = "a torch.Tensor" if name in needed else "a torch.Tensor or None"
            raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}")


def _shape(name: str, tensor: Tensor, wanted: str) -> NoReturn:
    raise ShapeError(f"{name} has shape {list(tensor.shape)}; it must be {wanted}")


def _dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise DtypeError(f"{name} is {tensor.dtype}; allowed are {names}: convert it with .to(...)")


def _device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise DeviceError(
            f"{name} is on {tensor.device}, x is on {x.device}; move it there with .to({str(x.device)!r})"
        )
