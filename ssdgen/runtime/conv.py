"""The public calls of the causal convolution.  arguments -> checks -> kernels, the same with gradients, or PyTorch"""

from __future__ import annotations

import torch
from torch import Tensor

from . import conv_autograd, conv_fallback
from .conv_checks import check_conv, check_update, check_varlen_states


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A convolution of each channel with its last inputs, same signature as causal_conv1d's function of this name.

        y[b, d, t] = act(bias[d] + sum over k < width of weight[d, width - 1 - k] x[b, d, t - k])

    x: [batch, dim, seqlen], bf16, fp16 or fp32; any dim and strides.  Read in place where its channels lie side by side
        (a slice of a projection, transposed) or its positions do, copied otherwise.
    weight: [dim, width], width 2, 3 or 4; bias: [dim] or None.  Any floating dtype.
    seq_idx: [batch, seqlen], int32 or int64: no sequence sees another one's inputs; y is zero where it is negative.
    initial_states: [batch, dim, width - 1], the inputs before position 0, the oldest first; None: zero.  With seq_idx
        they belong to the row's first sequence.  With cu_seqlens one row for each sequence, or one for the first.
    return_final_states: also return the last width - 1 inputs; with seq_idx those of the row's last sequence, zero
        where it is shorter.
    final_states_out: [rows, dim, width - 1] in x's dtype: where to write them; needs return_final_states.
    activation: None, "silu" or "swish", which is silu.
    cu_seqlens: [number of sequences + 1], int32 or int64, batch 1: sequence s is positions cu_seqlens[s] to
        cu_seqlens[s + 1], none of them empty.  Its contents are checked once per tensor, as those of
        `mamba_chunk_scan_combined`.

    Returns: y [batch, dim, seqlen] in x's dtype, channels last where x's are; with return_final_states (y, states),
    states [batch, dim, width - 1] or, with cu_seqlens, [number of sequences, dim, width - 1].

    All math is in fp32.  Gradients of y and of the states reach x, weight, bias and initial_states; first derivatives
    only, with the same bits each time.  torch.compile takes the call whole.
    Errors, all before anything is written: ShapeError, DtypeError, DeviceError, OptionError, OperandError,
    SequenceError.
    """
    check_conv(x, weight, bias, seq_idx, cu_seqlens, initial_states, return_final_states, final_states_out, activation)
    y, states = conv_autograd.run(
        x, weight, bias, initial_states, seq_idx, cu_seqlens, activation is not None, return_final_states
    )
    if not return_final_states:
        return y
    return y, states if final_states_out is None else final_states_out.copy_(states)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution of one or a few new tokens, same signature as causal_conv1d's function of this name.

    x: [batch, dim] or [batch, dim, tokens], bf16, fp16 or fp32.
    conv_state: [batch or slots, dim, state_len], state_len at least width - 1, in x's dtype or fp32; any strides that
        do not overlap.  The last inputs of each sequence; the new ones are written to it in place.
    weight: [dim, width], width 2, 3 or 4; bias: [dim] or None.
    activation: None, "silu" or "swish".
    cache_seqlens: [batch], int32 or int64, how many inputs each sequence had so far: the state is then a ring, with
        input t at position t modulo state_len.  None: the inputs move up, the newest one last.
    conv_state_indices: [batch], int32 or int64, the slot of each row, no slot twice; -1 marks padding, for which the
        result is zero and no state is touched.

    Returns: y in the shape and dtype of x.  It has no gradient.
    Errors, all before the state is touched: those of `causal_conv1d_fn`, and SlotError for the contents of
    conv_state_indices, which are read once per tensor (never while a CUDA graph is captured or torch.compile traces;
    an index that is no slot is then taken for padding).
    """
    check_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    with torch.no_grad():
        tokens = x.unsqueeze(2) if x.dim() == 2 else x
        y = conv_autograd.update(
            tokens, conv_state, weight, bias, activation is not None, cache_seqlens, conv_state_indices
        )
    return y.squeeze(2) if x.dim() == 2 else y


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of each packed sequence, as `causal_conv1d_update` takes them.

    x: [tokens, dim]; cu_seqlens: [number of sequences + 1], int32 or int64, none of the sequences empty.
    state_len: inputs to keep of each, at least 1; as many as conv_state has there.
    Returns: [number of sequences, dim, state_len] in x's dtype, the newest input last, zero before a sequence's first.
    Errors: ShapeError, DtypeError, DeviceError, OptionError, OperandError, SequenceError.
    """
    check_varlen_states(x, cu_seqlens, state_len)
    return conv_fallback.varlen_states(x, cu_seqlens, state_len)
