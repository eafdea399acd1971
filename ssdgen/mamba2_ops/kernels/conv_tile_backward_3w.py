"""One program makes the gradients of a tile of channels and tokens. What it adds to the gradients of the weight it
leaves in parts.

x_1[t, d] = x[t, d], 1 before along t
seq_1[t] = seq[t], 1 before along t
tap_1[t, d] = Piecewise((x_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
x_2[t, d] = x[t, d], 2 before along t
seq_2[t] = seq[t], 2 before along t
tap_2[t, d] = Piecewise((x_2[t, d], Eq(seq[t], seq_2[t])), (0, True))    if HAS_SEQ_IDX
units_weight_0[d] = -weight_0[d]/log(2)    if SILU
units_weight_1[d] = -weight_1[d]/log(2)    if SILU
units_weight_2[d] = -weight_2[d]/log(2)    if SILU
units_bias[d] = -bias[d]/log(2)    if SILU
own[t, d] = units_weight_0[d]*x[t, d]
biased[t, d] = own[t, d] + units_bias[d]    if HAS_BIAS
summed[t, d] = biased[t, d] + tap_1[t, d]*units_weight_1[d] + tap_2[t, d]*units_weight_2[d]
d_active[t, d] = Piecewise((d_y[t, d], seq[t] >= 0), (0, True))    if HAS_SEQ_IDX
d_summed[t, d] = silu2_slope(summed[t, d])*d_active[t, d]    if SILU
d_units_weight_1_terms[t, d] = d_summed[t, d]*tap_1[t, d]
d_units_weight_1[d] = sum over t of d_units_weight_1_terms[t, d]
d_units_weight_2_terms[t, d] = d_summed[t, d]*tap_2[t, d]
d_units_weight_2[d] = sum over t of d_units_weight_2_terms[t, d]
d_units_bias[d] = sum over t of d_summed[t, d]
d_units_weight_0_terms[t, d] = d_summed[t, d]*x[t, d]
d_units_weight_0[d] = sum over t of d_units_weight_0_terms[t, d]
d_units_bias_or_none[d] = d_units_bias[d]    if HAS_BIAS
d_tap_2[t, d] = d_summed[t, d]*units_weight_2[d]
d_x_2[t, d] = Piecewise((d_tap_2[t, d], Eq(seq[t], seq_2[t])), (0, True))    if HAS_SEQ_IDX
d_x_x_2[t, d] = d_x_2[t, d], 2 after along t
d_tap_1[t, d] = d_summed[t, d]*units_weight_1[d]
d_x_1[t, d] = Piecewise((d_tap_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
d_x_x_1[t, d] = d_x_1[t, d], 1 after along t
d_bias[d] = -d_units_bias_or_none[d]/log(2)    if SILU
d_weight_2[d] = -d_units_weight_2[d]/log(2)    if SILU
d_weight_1[d] = -d_units_weight_1[d]/log(2)    if SILU
d_weight_0[d] = -d_units_weight_0[d]/log(2)    if SILU
d_x_state_out[t, d] = Piecewise((d_state_out[t, d], Eq(seq_last, seq[t])), (0, True))    if HAS_SEQ_IDX
d_x[t, d] = d_summed[t, d]*units_weight_0[d] + d_x_state_out[t, d] + d_x_x_1[t, d] + d_x_x_2[t, d]
"""

import triton
import triton.language as tl

from .gate_functions import silu2_slope


@triton.jit
def conv_tile_backward_3w(
    x_ptr,  # [batch, dim, seqlen]
    weight_ptr,  # [dim, width]
    bias_ptr,  # [dim], if HAS_BIAS
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    initial_states_ptr,  # [rows, dim, state_len], if HAS_INITIAL
    d_y_ptr,  # [batch, dim, seqlen]
    d_states_ptr,  # [rows, dim, state_len], if HAS_D_STATES
    d_x_ptr,  # [batch, dim, seqlen]
    d_initial_states_ptr,  # [rows, dim, state_len], if STORE_D_INITIAL
    parts_ptr,  # [rows, ntiles, sums, dim]
    stride_x_batch: tl.int64,
    stride_x_dim: tl.int64,
    stride_weight_dim: tl.int64,
    stride_weight_width: tl.int64,
    stride_initial_states_rows: tl.int64,
    stride_initial_states_dim: tl.int64,
    stride_initial_states_state_len: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_dim: tl.int64,
    stride_d_states_rows: tl.int64,
    stride_d_states_dim: tl.int64,
    stride_d_states_state_len: tl.int64,
    stride_d_x_batch: tl.int64,
    stride_d_x_dim: tl.int64,
    seqlen,
    dim,
    state_len,
    sums,
    ntiles,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_D_STATES: tl.constexpr,
    STORE_D_INITIAL: tl.constexpr,
):
    tile = tl.cast(tl.program_id(0), tl.int64)
    d0 = tl.program_id(1) * BLOCK_D
    d = tl.arange(0, BLOCK_D)
    d_in = d < dim - d0
    b = tl.cast(tl.program_id(2), tl.int64)
    length = tl.cast(seqlen, tl.int64)
    if STORE_D_INITIAL:
        t0 = tile * BLOCK_T - 2
    else:
        t0 = tile * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    if HAS_SEQ_IDX:
        seq_first = tl.load(seq_idx_ptr + b * seqlen)
        seq_last = tl.load(seq_idx_ptr + b * seqlen + length - 1)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
        if SILU:
            bias = bias * -1.4426950408889634
    in_m2 = (t < BLOCK_T) & (t0 - 2 + t >= 0) & (t0 - 2 + t < seqlen)
    x_m2_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 - 2
    x_m2 = tl.load(x_m2_base + d[None, :] * stride_x_dim + t[:, None], mask=in_m2[:, None] & d_in[None, :], other=0.0)
    x_m2 = x_m2.to(tl.float32)
    if HAS_INITIAL:
        early_m2 = (t < BLOCK_T) & (t0 - 2 + t < 0) & (t0 - 2 + t >= -2)
        entering_m2_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 - 2 + 2) * stride_initial_states_state_len
        )
        entering_m2 = tl.load(
            entering_m2_base + d[None, :] * stride_initial_states_dim + t[:, None] * stride_initial_states_state_len,
            mask=early_m2[:, None] & d_in[None, :],
            other=0.0,
        )
        entering_m2 = entering_m2.to(tl.float32)
        x_m2 = entering_m2 + x_m2
    if HAS_SEQ_IDX:
        seq_m2 = tl.load(seq_idx_ptr + b * seqlen + t0 - 2 + t, mask=in_m2, other=0)  # [BLOCK_T]
        seq_m2 = tl.where(in_m2, seq_m2, seq_first)
    in_m1 = (t < BLOCK_T) & (t0 - 1 + t >= 0) & (t0 - 1 + t < seqlen)
    x_m1_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 - 1
    x_m1 = tl.load(x_m1_base + d[None, :] * stride_x_dim + t[:, None], mask=in_m1[:, None] & d_in[None, :], other=0.0)
    x_m1 = x_m1.to(tl.float32)
    if HAS_INITIAL:
        early_m1 = (t < BLOCK_T) & (t0 - 1 + t < 0) & (t0 - 1 + t >= -2)
        entering_m1_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 - 1 + 2) * stride_initial_states_state_len
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
        early_0 = (t < BLOCK_T) & (t0 + t < 0) & (t0 + t >= -2)
        entering_0_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 + 2) * stride_initial_states_state_len
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
    in_1 = (t < BLOCK_T) & (t0 + 1 + t >= 0) & (t0 + 1 + t < seqlen)
    x_1_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 + 1
    x_1 = tl.load(x_1_base + d[None, :] * stride_x_dim + t[:, None], mask=in_1[:, None] & d_in[None, :], other=0.0)
    x_1 = x_1.to(tl.float32)
    if HAS_INITIAL:
        early_1 = (t < BLOCK_T) & (t0 + 1 + t < 0) & (t0 + 1 + t >= -2)
        entering_1_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 + 1 + 2) * stride_initial_states_state_len
        )
        entering_1 = tl.load(
            entering_1_base + d[None, :] * stride_initial_states_dim + t[:, None] * stride_initial_states_state_len,
            mask=early_1[:, None] & d_in[None, :],
            other=0.0,
        )
        entering_1 = entering_1.to(tl.float32)
        x_1 = entering_1 + x_1
    if HAS_SEQ_IDX:
        seq_1 = tl.load(seq_idx_ptr + b * seqlen + t0 + 1 + t, mask=in_1, other=0)  # [BLOCK_T]
        seq_1 = tl.where(in_1, seq_1, seq_first)
    in_2 = (t < BLOCK_T) & (t0 + 2 + t >= 0) & (t0 + 2 + t < seqlen)
    x_2_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim + t0 + 2
    x_2 = tl.load(x_2_base + d[None, :] * stride_x_dim + t[:, None], mask=in_2[:, None] & d_in[None, :], other=0.0)
    x_2 = x_2.to(tl.float32)
    if HAS_INITIAL:
        early_2 = (t < BLOCK_T) & (t0 + 2 + t < 0) & (t0 + 2 + t >= -2)
        entering_2_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (t0 + 2 + 2) * stride_initial_states_state_len
        )
        entering_2 = tl.load(
            entering_2_base + d[None, :] * stride_initial_states_dim + t[:, None] * stride_initial_states_state_len,
            mask=early_2[:, None] & d_in[None, :],
            other=0.0,
        )
        entering_2 = entering_2.to(tl.float32)
        x_2 = entering_2 + x_2
    if HAS_SEQ_IDX:
        seq_2 = tl.load(seq_idx_ptr + b * seqlen + t0 + 2 + t, mask=in_2, other=0)  # [BLOCK_T]
        seq_2 = tl.where(in_2, seq_2, seq_first)
    weight_0 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 2 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_0 = weight_0.to(tl.float32)
    if SILU:
        weight_0 = weight_0 * -1.4426950408889634
    own_0 = x_0 * weight_0[None, :]
    if HAS_BIAS:
        own_0 = bias[None, :] + own_0
    tap_1_0 = x_m1
    if HAS_SEQ_IDX:
        tap_1_0 = tl.where(seq_0[:, None] == seq_m1[:, None], x_m1, 0.0)
    tap_2_0 = x_m2
    if HAS_SEQ_IDX:
        tap_2_0 = tl.where(seq_0[:, None] == seq_m2[:, None], x_m2, 0.0)
    weight_1 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 1 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_1 = weight_1.to(tl.float32)
    if SILU:
        weight_1 = weight_1 * -1.4426950408889634
    weight_2 = tl.load(weight_ptr + d0 * stride_weight_dim + d * stride_weight_dim, mask=d_in, other=0.0).to(tl.float32)
    if SILU:
        weight_2 = weight_2 * -1.4426950408889634
    summed_0 = own_0 + tap_1_0 * weight_1[None, :] + tap_2_0 * weight_2[None, :]
    own_1 = x_1 * weight_0[None, :]
    if HAS_BIAS:
        own_1 = bias[None, :] + own_1
    tap_1_1 = x_0
    if HAS_SEQ_IDX:
        tap_1_1 = tl.where(seq_0[:, None] == seq_1[:, None], x_0, 0.0)
    tap_2_1 = x_m1
    if HAS_SEQ_IDX:
        tap_2_1 = tl.where(seq_1[:, None] == seq_m1[:, None], x_m1, 0.0)
    summed_1 = own_1 + tap_1_1 * weight_1[None, :] + tap_2_1 * weight_2[None, :]
    own_2 = x_2 * weight_0[None, :]
    if HAS_BIAS:
        own_2 = bias[None, :] + own_2
    tap_1_2 = x_1
    if HAS_SEQ_IDX:
        tap_1_2 = tl.where(seq_1[:, None] == seq_2[:, None], x_1, 0.0)
    tap_2_2 = x_0
    if HAS_SEQ_IDX:
        tap_2_2 = tl.where(seq_0[:, None] == seq_2[:, None], x_0, 0.0)
    summed_2 = own_2 + tap_1_2 * weight_1[None, :] + tap_2_2 * weight_2[None, :]
    if HAS_D_STATES:
        ends = (t < BLOCK_T) & (t0 + t >= length - 2) & (t0 + t < length)
        d_state_out_0_base = (
            d_states_ptr
            + b * stride_d_states_rows
            + d0 * stride_d_states_dim
            + (t0 - length + 2) * stride_d_states_state_len
        )
        d_state_out_0 = tl.load(
            d_state_out_0_base + d[None, :] * stride_d_states_dim + t[:, None] * stride_d_states_state_len,
            mask=ends[:, None] & d_in[None, :],
            other=0.0,
        )
        d_state_out_0 = d_state_out_0.to(tl.float32)
    else:
        d_state_out_0 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    d_y_0_base = d_y_ptr + b * stride_d_y_batch + d0 * stride_d_y_dim + t0
    d_y_0 = tl.load(
        d_y_0_base + d[None, :] * stride_d_y_dim + t[:, None], mask=in_0[:, None] & d_in[None, :], other=0.0
    )
    d_y_0 = d_y_0.to(tl.float32)
    if HAS_SEQ_IDX:
        d_y_0 = tl.where(seq_0[:, None] >= 0.0, d_y_0, 0.0)
    if SILU:
        d_y_0 = d_y_0 * silu2_slope(summed_0)
    if HAS_SEQ_IDX:
        d_state_out_0 = tl.where(seq_last == seq_0[:, None], d_state_out_0, 0.0)
    d_y_1_base = d_y_ptr + b * stride_d_y_batch + d0 * stride_d_y_dim + t0 + 1
    d_y_1 = tl.load(
        d_y_1_base + d[None, :] * stride_d_y_dim + t[:, None], mask=in_1[:, None] & d_in[None, :], other=0.0
    )
    d_y_1 = d_y_1.to(tl.float32)
    if HAS_SEQ_IDX:
        d_y_1 = tl.where(seq_1[:, None] >= 0.0, d_y_1, 0.0)
    if SILU:
        d_y_1 = d_y_1 * silu2_slope(summed_1)
    d_tap_1_1 = d_y_1 * weight_1[None, :]
    if HAS_SEQ_IDX:
        d_tap_1_1 = tl.where(seq_0[:, None] == seq_1[:, None], d_tap_1_1, 0.0)
    d_y_2_base = d_y_ptr + b * stride_d_y_batch + d0 * stride_d_y_dim + t0 + 2
    d_y_2 = tl.load(
        d_y_2_base + d[None, :] * stride_d_y_dim + t[:, None], mask=in_2[:, None] & d_in[None, :], other=0.0
    )
    d_y_2 = d_y_2.to(tl.float32)
    if HAS_SEQ_IDX:
        d_y_2 = tl.where(seq_2[:, None] >= 0.0, d_y_2, 0.0)
    if SILU:
        d_y_2 = d_y_2 * silu2_slope(summed_2)
    d_tap_2_2 = d_y_2 * weight_2[None, :]
    if HAS_SEQ_IDX:
        d_tap_2_2 = tl.where(seq_0[:, None] == seq_2[:, None], d_tap_2_2, 0.0)
    d_x_0 = d_state_out_0 + d_tap_1_1 + d_tap_2_2 + d_y_0 * weight_0[None, :]
    d_x_base = d_x_ptr + b * stride_d_x_batch + d0 * stride_d_x_dim + t0
    tl.store(d_x_base + d[None, :] * stride_d_x_dim + t[:, None], d_x_0, mask=in_0[:, None] & d_in[None, :])
    if STORE_D_INITIAL:
        before = (t < BLOCK_T) & (t0 + t < 0)
        d_initial_states_base = d_initial_states_ptr + b * dim * state_len + d0 * state_len + t0 + 2
        tl.store(
            d_initial_states_base + d[None, :] * state_len + t[:, None], d_x_0, mask=before[:, None] & d_in[None, :]
        )
    d_units_weight_0_terms_0 = d_y_0 * x_0
    d_weight_0 = tl.sum(d_units_weight_0_terms_0, axis=0)
    d_units_weight_1_terms_0 = d_y_0 * tap_1_0
    d_weight_1 = tl.sum(d_units_weight_1_terms_0, axis=0)
    d_units_weight_2_terms_0 = d_y_0 * tap_2_0
    d_weight_2 = tl.sum(d_units_weight_2_terms_0, axis=0)
    if HAS_BIAS:
        d_bias = tl.sum(d_y_0, axis=0)
    if SILU:
        d_weight_0 = d_weight_0 * -1.4426950408889634
    tl.store(parts_ptr + ((b * ntiles + tile) * sums + 2) * dim + d0 + d, d_weight_0, mask=d_in)
    if SILU:
        d_weight_1 = d_weight_1 * -1.4426950408889634
    tl.store(parts_ptr + ((b * ntiles + tile) * sums + 1) * dim + d0 + d, d_weight_1, mask=d_in)
    if SILU:
        d_weight_2 = d_weight_2 * -1.4426950408889634
    tl.store(parts_ptr + (b * ntiles + tile) * sums * dim + d0 + d, d_weight_2, mask=d_in)
    if HAS_BIAS:
        if SILU:
            d_bias = d_bias * -1.4426950408889634
        tl.store(parts_ptr + ((b * ntiles + tile) * sums + 3) * dim + d0 + d, d_bias, mask=d_in)


def grid(rows, dim, ntiles, BLOCK_D, **_):
    """Programs along each axis."""
    return ntiles, triton.cdiv(dim, BLOCK_D), rows
