"""One program convolves a tile of channels and tokens.

x_1[t, d] = x[t, d], 1 before along t
seq_1[t] = seq[t], 1 before along t
tap_1[t, d] = Piecewise((x_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
own[t, d] = weight_0[d]*x[t, d]
biased[t, d] = bias[d] + own[t, d]    if HAS_BIAS
summed[t, d] = biased[t, d] + tap_1[t, d]*weight_1[d]
active[t, d] = sigmoid(summed[t, d])*summed[t, d]    if SILU
y[t, d] = Piecewise((active[t, d], seq[t] >= 0), (0, True))    if HAS_SEQ_IDX
state_out[t, d] = Piecewise((x[t, d], Eq(seq_last, seq[t])), (0, True))    if HAS_SEQ_IDX
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def conv_tile_2w(
    x_ptr,  # [batch, dim, seqlen]
    weight_ptr,  # [dim, width]
    bias_ptr,  # [dim], if HAS_BIAS
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    initial_states_ptr,  # [rows, dim, state_len], if HAS_INITIAL
    y_ptr,  # [batch, dim, seqlen]
    final_states_ptr,  # [rows, dim, state_len], if STORE_FINAL
    stride_x_batch: tl.int64,
    stride_x_dim: tl.int64,
    stride_weight_dim: tl.int64,
    stride_weight_width: tl.int64,
    stride_initial_states_rows: tl.int64,
    stride_initial_states_dim: tl.int64,
    stride_initial_states_state_len: tl.int64,
    stride_y_batch: tl.int64,
    stride_y_dim: tl.int64,
    seqlen,
    dim,
    state_len,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    STORE_FINAL: tl.constexpr,
):
    tile = tl.cast(tl.program_id(0), tl.int64)
    d0 = tl.program_id(1) * BLOCK_D
    d = tl.arange(0, BLOCK_D)
    d_in = d < dim - d0
    b = tl.cast(tl.program_id(2), tl.int64)
    row = b
    start = tl.cast(0, tl.int64)
    length = tl.cast(seqlen, tl.int64)
    t0 = tile * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    if HAS_SEQ_IDX:
        seq_first = tl.load(seq_idx_ptr + b * seqlen)
    in_m1 = (t < BLOCK_T) & (t0 - 1 + t >= 0) & (t0 - 1 + t < seqlen)
    x_m1_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 - 1
    x_m1 = tl.load(x_m1_base + d[None, :] * stride_x_dim + t[:, None], mask=in_m1[:, None] & d_in[None, :], other=0.0)
    x_m1 = x_m1.to(tl.float32)
    if HAS_INITIAL:
        early_m1 = (t < BLOCK_T) & (t0 - 1 + t < 0) & (t0 - 1 + t >= -1)
        entering_m1_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 - 1 + 1) * stride_initial_states_state_len
        )
        entering_m1 = tl.load(
            entering_m1_base + d[None, :] * stride_initial_states_dim + t[:, None] * stride_initial_states_state_len,
            mask=early_m1[:, None] & d_in[None, :],
            other=0.0,
        )
        entering_m1 = entering_m1.to(tl.float32)
        x_m1 = entering_m1 + x_m1
    if HAS_SEQ_IDX:
        seq_m1 = tl.load(seq_idx_ptr + b * seqlen + t0 - 1 + t, mask=in_m1, other=0)  # [BLOCK_T]
        seq_m1 = tl.where(in_m1, seq_m1, seq_first)
    in_0 = (t < BLOCK_T) & (t0 + t >= 0) & (t0 + t < seqlen)
    x_0 = tl.load(
        x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 + d[None, :] * stride_x_dim + t[:, None],
        mask=in_0[:, None] & d_in[None, :],
        other=0.0,
    )
    x_0 = x_0.to(tl.float32)
    if HAS_INITIAL:
        early_0 = (t < BLOCK_T) & (t0 + t < 0) & (t0 + t >= -1)
        entering_0_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 + 1) * stride_initial_states_state_len
        )
        entering_0 = tl.load(
            entering_0_base + d[None, :] * stride_initial_states_dim + t[:, None] * stride_initial_states_state_len,
            mask=early_0[:, None] & d_in[None, :],
            other=0.0,
        )
        entering_0 = entering_0.to(tl.float32)
        x_0 = entering_0 + x_0
    if HAS_SEQ_IDX:
        seq_0 = tl.load(seq_idx_ptr + b * seqlen + t0 + t, mask=in_0, other=0)  # [BLOCK_T]
        seq_0 = tl.where(in_0, seq_0, seq_first)
    weight_0 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 1 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_0 = weight_0.to(tl.float32)
    own_0 = x_0 * weight_0[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
        own_0 = bias[None, :] + own_0
    tap_1_0 = x_m1
    if HAS_SEQ_IDX:
        tap_1_0 = tl.where(seq_0[:, None] == seq_m1[:, None], x_m1, 0.0)
    weight_1 = tl.load(weight_ptr + d0 * stride_weight_dim + d * stride_weight_dim, mask=d_in, other=0.0).to(tl.float32)
    summed_0 = own_0 + tap_1_0 * weight_1[None, :]
    if SILU:
        summed_0 = summed_0 * sigmoid(summed_0)
    if HAS_SEQ_IDX:
        summed_0 = tl.where(seq_0[:, None] >= 0.0, summed_0, 0.0)
    tl.store(
        y_ptr + b * stride_y_batch + d0 * stride_y_dim + t0 + d[None, :] * stride_y_dim + t[:, None],
        summed_0,
        mask=in_0[:, None] & d_in[None, :],
    )
    if STORE_FINAL:
        if tile == 0:
            in_e1 = (d < dim - d0) & (length >= 1)
            x_e1_base = x_ptr + row * stride_x_batch + d0 * stride_x_dim + start + length - 1
            x_e1 = tl.load(x_e1_base + d * stride_x_dim, mask=in_e1, other=0.0).to(tl.float32)  # [BLOCK_D]
            if HAS_INITIAL:
                before_e1 = (d < dim - d0) & (length < 1)
                entering_e1_base = (
                    initial_states_ptr
                    + b * stride_initial_states_rows
                    + d0 * stride_initial_states_dim
                    + length * stride_initial_states_state_len
                )
                entering_e1 = tl.load(entering_e1_base + d * stride_initial_states_dim, mask=before_e1, other=0.0)
                entering_e1 = entering_e1.to(tl.float32)
                x_e1 = entering_e1 + x_e1
            if HAS_SEQ_IDX:
                seq_e1 = tl.load(seq_idx_ptr + row * seqlen + tl.maximum(length - 1, 0))
            if HAS_SEQ_IDX:
                seq_last = tl.load(seq_idx_ptr + row * seqlen + length - 1)
            state_out = x_e1
            if HAS_SEQ_IDX:
                state_out = tl.where(seq_e1 == seq_last, x_e1, 0.0)
            tl.store(final_states_ptr + b * dim * state_len + d0 * state_len + d * state_len, state_out, mask=d_in)


def grid(rows, dim, ntiles, BLOCK_D, **_):
    """Programs along each axis."""
    return ntiles, triton.cdiv(dim, BLOCK_D), rows
