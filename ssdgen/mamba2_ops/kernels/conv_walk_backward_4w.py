"""One program makes the gradients of a tile of channels of a part of a sequence: it walks along the tokens and keeps
the last inputs and adjoints. What it adds to the gradients of the weight it leaves in parts.

x_1[t, d] = x[t, d], 1 before along t
seq_1[t] = seq[t], 1 before along t
tap_1[t, d] = Piecewise((x_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
x_2[t, d] = x[t, d], 2 before along t
seq_2[t] = seq[t], 2 before along t
tap_2[t, d] = Piecewise((x_2[t, d], Eq(seq[t], seq_2[t])), (0, True))    if HAS_SEQ_IDX
x_3[t, d] = x[t, d], 3 before along t
seq_3[t] = seq[t], 3 before along t
tap_3[t, d] = Piecewise((x_3[t, d], Eq(seq[t], seq_3[t])), (0, True))    if HAS_SEQ_IDX
units_weight_0[d] = -weight_0[d]/log(2)    if SILU
units_weight_1[d] = -weight_1[d]/log(2)    if SILU
units_weight_2[d] = -weight_2[d]/log(2)    if SILU
units_weight_3[d] = -weight_3[d]/log(2)    if SILU
units_bias[d] = -bias[d]/log(2)    if SILU
own[t, d] = units_weight_0[d]*x[t, d]
biased[t, d] = own[t, d] + units_bias[d]    if HAS_BIAS
summed[t, d] = biased[t, d] + tap_1[t, d]*units_weight_1[d] + tap_2[t, d]*units_weight_2[d] +
    tap_3[t, d]*units_weight_3[d]
d_active[t, d] = Piecewise((d_y[t, d], seq[t] >= 0), (0, True))    if HAS_SEQ_IDX
d_summed[t, d] = silu2_slope(summed[t, d])*d_active[t, d]    if SILU
d_units_weight_1_terms[t, d] = d_summed[t, d]*tap_1[t, d]
d_units_weight_1[d] = sum over t of d_units_weight_1_terms[t, d]
d_units_weight_2_terms[t, d] = d_summed[t, d]*tap_2[t, d]
d_units_weight_2[d] = sum over t of d_units_weight_2_terms[t, d]
d_units_weight_3_terms[t, d] = d_summed[t, d]*tap_3[t, d]
d_units_weight_3[d] = sum over t of d_units_weight_3_terms[t, d]
d_units_bias[d] = sum over t of d_summed[t, d]
d_units_weight_0_terms[t, d] = d_summed[t, d]*x[t, d]
d_units_weight_0[d] = sum over t of d_units_weight_0_terms[t, d]
d_units_bias_or_none[d] = d_units_bias[d]    if HAS_BIAS
d_tap_3[t, d] = d_summed[t, d]*units_weight_3[d]
d_x_3[t, d] = Piecewise((d_tap_3[t, d], Eq(seq[t], seq_3[t])), (0, True))    if HAS_SEQ_IDX
d_x_x_3[t, d] = d_x_3[t, d], 3 after along t
d_tap_2[t, d] = d_summed[t, d]*units_weight_2[d]
d_x_2[t, d] = Piecewise((d_tap_2[t, d], Eq(seq[t], seq_2[t])), (0, True))    if HAS_SEQ_IDX
d_x_x_2[t, d] = d_x_2[t, d], 2 after along t
d_tap_1[t, d] = d_summed[t, d]*units_weight_1[d]
d_x_1[t, d] = Piecewise((d_tap_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
d_x_x_1[t, d] = d_x_1[t, d], 1 after along t
d_bias[d] = -d_units_bias_or_none[d]/log(2)    if SILU
d_weight_3[d] = -d_units_weight_3[d]/log(2)    if SILU
d_weight_2[d] = -d_units_weight_2[d]/log(2)    if SILU
d_weight_1[d] = -d_units_weight_1[d]/log(2)    if SILU
d_weight_0[d] = -d_units_weight_0[d]/log(2)    if SILU
d_x_state_out[t, d] = Piecewise((d_state_out[t, d], Eq(seq_last, seq[t])), (0, True))    if HAS_SEQ_IDX
d_x[t, d] = d_summed[t, d]*units_weight_0[d] + d_x_state_out[t, d] + d_x_x_1[t, d] + d_x_x_2[t, d] + d_x_x_3[t, d]
"""

import triton
import triton.language as tl

from .gate_functions import silu2_slope
from .word_functions import from_words, in_words


@triton.jit
def conv_walk_backward_4w(
    x_ptr,  # [batch, seqlen, dim]
    weight_ptr,  # [dim, width]
    bias_ptr,  # [dim], if HAS_BIAS
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    initial_states_ptr,  # [rows, dim, state_len], if HAS_INITIAL
    d_y_ptr,  # [batch, seqlen, dim]
    d_states_ptr,  # [rows, dim, state_len], if HAS_D_STATES
    d_x_ptr,  # [batch, seqlen, dim]
    d_initial_states_ptr,  # [rows, dim, state_len], if STORE_D_INITIAL
    parts_ptr,  # [rows, nsegments, sums, dim]
    cu_seqlens_ptr,  # [rows + 1], if HAS_CU_SEQLENS
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_weight_dim: tl.int64,
    stride_weight_width: tl.int64,
    stride_initial_states_rows: tl.int64,
    stride_initial_states_dim: tl.int64,
    stride_initial_states_state_len: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_seqlen: tl.int64,
    stride_d_states_rows: tl.int64,
    stride_d_states_dim: tl.int64,
    stride_d_states_state_len: tl.int64,
    stride_d_x_batch: tl.int64,
    stride_d_x_seqlen: tl.int64,
    seqlen,
    dim,
    state_len,
    sums,
    nsegments,
    BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_CU_SEQLENS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_D_STATES: tl.constexpr,
    STORE_D_INITIAL: tl.constexpr,
):
    d0 = tl.program_id(0) * BLOCK_D
    d = tl.arange(0, BLOCK_D)
    d_in = d < dim - d0
    segment = tl.program_id(1)
    b = tl.cast(tl.program_id(2), tl.int64)
    if HAS_CU_SEQLENS:
        row = tl.cast(0, tl.int64)
        start = tl.load(cu_seqlens_ptr + b).to(tl.int64)
        stop = tl.load(cu_seqlens_ptr + b + 1).to(tl.int64)
        length = tl.cast(stop - start, tl.int32)
    else:
        row = b
        start = tl.cast(0, tl.int64)
        length = tl.cast(seqlen, tl.int32)
    part = tl.cdiv(tl.cdiv(length, nsegments), 4) * 4
    first = segment * part
    last = tl.minimum(first + part, length)
    trips = tl.cast(tl.cdiv(tl.maximum(last - first, 0), 4), tl.int32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
        if SILU:
            bias = bias * -1.4426950408889634
    weight_0 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 3 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_0 = weight_0.to(tl.float32)
    if SILU:
        weight_0 = weight_0 * -1.4426950408889634
    weight_1 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 2 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_1 = weight_1.to(tl.float32)
    if SILU:
        weight_1 = weight_1 * -1.4426950408889634
    weight_2 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 1 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_2 = weight_2.to(tl.float32)
    if SILU:
        weight_2 = weight_2 * -1.4426950408889634
    weight_3 = tl.load(weight_ptr + d0 * stride_weight_dim + d * stride_weight_dim, mask=d_in, other=0.0).to(tl.float32)
    if SILU:
        weight_3 = weight_3 * -1.4426950408889634
    in_m3 = (d < dim - d0) & (first >= 3) & (first - 3 < length)
    x_m3 = tl.load(x_ptr + row * stride_x_batch + (start + first - 3) * stride_x_seqlen + d0 + d, mask=in_m3, other=0.0)
    x_m3 = x_m3.to(tl.float32)
    if HAS_INITIAL:
        before_m3 = (d < dim - d0) & (first < 3)
        entering_m3_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + first * stride_initial_states_state_len
        )
        entering_m3 = tl.load(entering_m3_base + d * stride_initial_states_dim, mask=before_m3, other=0.0)
        entering_m3 = entering_m3.to(tl.float32)
        x_m3 = entering_m3 + x_m3
    if HAS_SEQ_IDX:
        seq_m3 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(tl.maximum(first - 3, 0), length - 1))
    in_m2 = (d < dim - d0) & (first >= 2) & (first - 2 < length)
    x_m2 = tl.load(x_ptr + row * stride_x_batch + (start + first - 2) * stride_x_seqlen + d0 + d, mask=in_m2, other=0.0)
    x_m2 = x_m2.to(tl.float32)
    if HAS_INITIAL:
        before_m2 = (d < dim - d0) & (first < 2)
        entering_m2_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (first + 1) * stride_initial_states_state_len
        )
        entering_m2 = tl.load(entering_m2_base + d * stride_initial_states_dim, mask=before_m2, other=0.0)
        entering_m2 = entering_m2.to(tl.float32)
        x_m2 = entering_m2 + x_m2
    if HAS_SEQ_IDX:
        seq_m2 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(tl.maximum(first - 2, 0), length - 1))
    in_m1 = (d < dim - d0) & (first >= 1) & (first - 1 < length)
    x_m1 = tl.load(x_ptr + row * stride_x_batch + (start + first - 1) * stride_x_seqlen + d0 + d, mask=in_m1, other=0.0)
    x_m1 = x_m1.to(tl.float32)
    if HAS_INITIAL:
        before_m1 = (d < dim - d0) & (first < 1)
        entering_m1_base = (
            initial_states_ptr
            + b * stride_initial_states_rows
            + d0 * stride_initial_states_dim
            + (first + 2) * stride_initial_states_state_len
        )
        entering_m1 = tl.load(entering_m1_base + d * stride_initial_states_dim, mask=before_m1, other=0.0)
        entering_m1 = entering_m1.to(tl.float32)
        x_m1 = entering_m1 + x_m1
    if HAS_SEQ_IDX:
        seq_m1 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(tl.maximum(first - 1, 0), length - 1))
        seq_last = tl.load(seq_idx_ptr + row * seqlen + length - 1)
    ahead_0 = (d < dim - d0) & (first < length)
    ahead_1 = (d < dim - d0) & (first + 1 < length)
    ahead_2 = (d < dim - d0) & (first + 2 < length)
    ahead_3 = (d < dim - d0) & (first + 3 < length)
    x_next_0 = tl.load(
        x_ptr + row * stride_x_batch + (start + first) * stride_x_seqlen + d0 + d, mask=ahead_0, other=0.0
    )
    x_next_1 = tl.load(
        x_ptr + row * stride_x_batch + (start + first + 1) * stride_x_seqlen + d0 + d, mask=ahead_1, other=0.0
    )
    x_next_2 = tl.load(
        x_ptr + row * stride_x_batch + (start + first + 2) * stride_x_seqlen + d0 + d, mask=ahead_2, other=0.0
    )
    x_next_3 = tl.load(
        x_ptr + row * stride_x_batch + (start + first + 3) * stride_x_seqlen + d0 + d, mask=ahead_3, other=0.0
    )
    d_y_next_0 = tl.load(
        d_y_ptr + row * stride_d_y_batch + (start + first) * stride_d_y_seqlen + d0 + d, mask=ahead_0, other=0.0
    )
    d_y_next_1 = tl.load(
        d_y_ptr + row * stride_d_y_batch + (start + first + 1) * stride_d_y_seqlen + d0 + d, mask=ahead_1, other=0.0
    )
    d_y_next_2 = tl.load(
        d_y_ptr + row * stride_d_y_batch + (start + first + 2) * stride_d_y_seqlen + d0 + d, mask=ahead_2, other=0.0
    )
    d_y_next_3 = tl.load(
        d_y_ptr + row * stride_d_y_batch + (start + first + 3) * stride_d_y_seqlen + d0 + d, mask=ahead_3, other=0.0
    )
    x_next_0 = in_words(x_next_0)
    x_next_1 = in_words(x_next_1)
    x_next_2 = in_words(x_next_2)
    x_next_3 = in_words(x_next_3)
    d_y_next_0 = in_words(d_y_next_0)
    d_y_next_1 = in_words(d_y_next_1)
    d_y_next_2 = in_words(d_y_next_2)
    d_y_next_3 = in_words(d_y_next_3)
    d_summed_m3 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_summed_m2 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_summed_m1 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_weight_0 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_weight_1 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_weight_2 = tl.zeros([BLOCK_D], dtype=tl.float32)
    d_weight_3 = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_BIAS:
        d_bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    x_base = x_ptr + row * stride_x_batch + d0
    d_y_base = d_y_ptr + row * stride_d_y_batch + d0
    d_x_base = d_x_ptr + row * stride_d_x_batch + d0
    for trip in range(trips):
        t = first + trip * 4
        at = start + t
        x_0 = from_words(x_next_0, x_ptr.dtype.element_ty)
        x_1 = from_words(x_next_1, x_ptr.dtype.element_ty)
        x_2 = from_words(x_next_2, x_ptr.dtype.element_ty)
        x_3 = from_words(x_next_3, x_ptr.dtype.element_ty)
        d_y_0 = from_words(d_y_next_0, d_y_ptr.dtype.element_ty)
        d_y_1 = from_words(d_y_next_1, d_y_ptr.dtype.element_ty)
        d_y_2 = from_words(d_y_next_2, d_y_ptr.dtype.element_ty)
        d_y_3 = from_words(d_y_next_3, d_y_ptr.dtype.element_ty)
        if HAS_SEQ_IDX:
            seq_0 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t, length - 1))
            seq_1 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 1, length - 1))
            seq_2 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 2, length - 1))
            seq_3 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 3, length - 1))
        ahead_0 = (d < dim - d0) & (t + 4 < length)
        ahead_1 = (d < dim - d0) & (t + 4 + 1 < length)
        ahead_2 = (d < dim - d0) & (t + 4 + 2 < length)
        ahead_3 = (d < dim - d0) & (t + 4 + 3 < length)
        x_next_0 = tl.load(x_base + (at + 4) * stride_x_seqlen + d, mask=ahead_0, other=0.0)  # [BLOCK_D]
        x_next_1 = tl.load(x_base + (at + 4 + 1) * stride_x_seqlen + d, mask=ahead_1, other=0.0)  # [BLOCK_D]
        x_next_2 = tl.load(x_base + (at + 4 + 2) * stride_x_seqlen + d, mask=ahead_2, other=0.0)  # [BLOCK_D]
        x_next_3 = tl.load(x_base + (at + 4 + 3) * stride_x_seqlen + d, mask=ahead_3, other=0.0)  # [BLOCK_D]
        d_y_next_0 = tl.load(d_y_base + (at + 4) * stride_d_y_seqlen + d, mask=ahead_0, other=0.0)  # [BLOCK_D]
        d_y_next_1 = tl.load(d_y_base + (at + 4 + 1) * stride_d_y_seqlen + d, mask=ahead_1, other=0.0)  # [BLOCK_D]
        d_y_next_2 = tl.load(d_y_base + (at + 4 + 2) * stride_d_y_seqlen + d, mask=ahead_2, other=0.0)  # [BLOCK_D]
        d_y_next_3 = tl.load(d_y_base + (at + 4 + 3) * stride_d_y_seqlen + d, mask=ahead_3, other=0.0)  # [BLOCK_D]
        x_next_0 = in_words(x_next_0)
        x_next_1 = in_words(x_next_1)
        x_next_2 = in_words(x_next_2)
        x_next_3 = in_words(x_next_3)
        d_y_next_0 = in_words(d_y_next_0)
        d_y_next_1 = in_words(d_y_next_1)
        d_y_next_2 = in_words(d_y_next_2)
        d_y_next_3 = in_words(d_y_next_3)
        if HAS_SEQ_IDX:
            d_y_0 = tl.where(seq_0 >= 0.0, d_y_0, 0.0)
        own_0 = weight_0 * x_0
        if HAS_BIAS:
            own_0 = bias + own_0
        tap_1_0 = x_m1
        if HAS_SEQ_IDX:
            tap_1_0 = tl.where(seq_0 == seq_m1, x_m1, 0.0)
        tap_2_0 = x_m2
        if HAS_SEQ_IDX:
            tap_2_0 = tl.where(seq_0 == seq_m2, x_m2, 0.0)
        tap_3_0 = x_m3
        if HAS_SEQ_IDX:
            tap_3_0 = tl.where(seq_0 == seq_m3, x_m3, 0.0)
        summed_0 = own_0 + tap_1_0 * weight_1 + tap_2_0 * weight_2 + tap_3_0 * weight_3
        if SILU:
            d_y_0 = d_y_0 * silu2_slope(summed_0)
        d_units_weight_0_terms_0 = d_y_0 * x_0
        d_weight_0 = d_units_weight_0_terms_0 + d_weight_0
        d_units_weight_1_terms_0 = d_y_0 * tap_1_0
        d_weight_1 = d_units_weight_1_terms_0 + d_weight_1
        d_units_weight_2_terms_0 = d_y_0 * tap_2_0
        d_weight_2 = d_units_weight_2_terms_0 + d_weight_2
        d_units_weight_3_terms_0 = d_y_0 * tap_3_0
        d_weight_3 = d_units_weight_3_terms_0 + d_weight_3
        if HAS_BIAS:
            d_bias = d_bias + d_y_0
        if HAS_D_STATES:
            ends_m3 = (d < dim - d0) & (t - 3 >= length - 3) & (t - 3 < length)
            d_state_out_m3_base = d_states_ptr + b * stride_d_states_rows + d0 * stride_d_states_dim
            d_state_out_m3 = tl.load(
                d_state_out_m3_base + (t - 3 - length + 3) * stride_d_states_state_len + d * stride_d_states_dim,
                mask=ends_m3,
                other=0.0,
            )
            d_state_out_m3 = d_state_out_m3.to(tl.float32)
        else:
            d_state_out_m3 = tl.zeros([BLOCK_D], dtype=tl.float32)
        if HAS_SEQ_IDX:
            d_state_out_m3 = tl.where(seq_last == seq_m3, d_state_out_m3, 0.0)
        d_tap_1_m2 = d_summed_m2 * weight_1
        if HAS_SEQ_IDX:
            d_tap_1_m2 = tl.where(seq_m2 == seq_m3, d_tap_1_m2, 0.0)
        d_tap_2_m1 = d_summed_m1 * weight_2
        if HAS_SEQ_IDX:
            d_tap_2_m1 = tl.where(seq_m1 == seq_m3, d_tap_2_m1, 0.0)
        d_tap_3_0 = d_y_0 * weight_3
        if HAS_SEQ_IDX:
            d_tap_3_0 = tl.where(seq_0 == seq_m3, d_tap_3_0, 0.0)
        d_x_m3 = d_state_out_m3 + d_tap_1_m2 + d_tap_2_m1 + d_tap_3_0 + d_summed_m3 * weight_0
        own_m3 = (d < dim - d0) & (t - 3 >= first) & (t - 3 < length)
        tl.store(d_x_base + (at - 3) * stride_d_x_seqlen + d, d_x_m3, mask=own_m3)
        if STORE_D_INITIAL:
            early_m3 = (d < dim - d0) & (t - 3 < 0)
            tl.store(
                d_initial_states_ptr + b * dim * state_len + d0 * state_len + t - 3 + 3 + d * state_len,
                d_x_m3,
                mask=early_m3,
            )
        if HAS_SEQ_IDX:
            d_y_1 = tl.where(seq_1 >= 0.0, d_y_1, 0.0)
        own_1 = weight_0 * x_1
        if HAS_BIAS:
            own_1 = bias + own_1
        tap_1_1 = x_0
        if HAS_SEQ_IDX:
            tap_1_1 = tl.where(seq_0 == seq_1, x_0, 0.0)
        tap_2_1 = x_m1
        if HAS_SEQ_IDX:
            tap_2_1 = tl.where(seq_1 == seq_m1, x_m1, 0.0)
        tap_3_1 = x_m2
        if HAS_SEQ_IDX:
            tap_3_1 = tl.where(seq_1 == seq_m2, x_m2, 0.0)
        summed_1 = own_1 + tap_1_1 * weight_1 + tap_2_1 * weight_2 + tap_3_1 * weight_3
        if SILU:
            d_y_1 = d_y_1 * silu2_slope(summed_1)
        d_units_weight_0_terms_1 = d_y_1 * x_1
        d_weight_0 = d_units_weight_0_terms_1 + d_weight_0
        d_units_weight_1_terms_1 = d_y_1 * tap_1_1
        d_weight_1 = d_units_weight_1_terms_1 + d_weight_1
        d_units_weight_2_terms_1 = d_y_1 * tap_2_1
        d_weight_2 = d_units_weight_2_terms_1 + d_weight_2
        d_units_weight_3_terms_1 = d_y_1 * tap_3_1
        d_weight_3 = d_units_weight_3_terms_1 + d_weight_3
        if HAS_BIAS:
            d_bias = d_bias + d_y_1
        if HAS_D_STATES:
            ends_m2 = (d < dim - d0) & (t - 2 >= length - 3) & (t - 2 < length)
            d_state_out_m2_base = d_states_ptr + b * stride_d_states_rows + d0 * stride_d_states_dim
            d_state_out_m2 = tl.load(
                d_state_out_m2_base + (t - 2 - length + 3) * stride_d_states_state_len + d * stride_d_states_dim,
                mask=ends_m2,
                other=0.0,
            )
            d_state_out_m2 = d_state_out_m2.to(tl.float32)
        else:
            d_state_out_m2 = tl.zeros([BLOCK_D], dtype=tl.float32)
        if HAS_SEQ_IDX:
            d_state_out_m2 = tl.where(seq_last == seq_m2, d_state_out_m2, 0.0)
        d_tap_1_m1 = d_summed_m1 * weight_1
        if HAS_SEQ_IDX:
            d_tap_1_m1 = tl.where(seq_m1 == seq_m2, d_tap_1_m1, 0.0)
        d_tap_2_0 = d_y_0 * weight_2
        if HAS_SEQ_IDX:
            d_tap_2_0 = tl.where(seq_0 == seq_m2, d_tap_2_0, 0.0)
        d_tap_3_1 = d_y_1 * weight_3
        if HAS_SEQ_IDX:
            d_tap_3_1 = tl.where(seq_1 == seq_m2, d_tap_3_1, 0.0)
        d_x_m2 = d_state_out_m2 + d_tap_1_m1 + d_tap_2_0 + d_tap_3_1 + d_summed_m2 * weight_0
        own_m2 = (d < dim - d0) & (t - 2 >= first) & (t - 2 < length)
        tl.store(d_x_base + (at - 2) * stride_d_x_seqlen + d, d_x_m2, mask=own_m2)
        if STORE_D_INITIAL:
            early_m2 = (d < dim - d0) & (t - 2 < 0)
            tl.store(
                d_initial_states_ptr + b * dim * state_len + d0 * state_len + t - 2 + 3 + d * state_len,
                d_x_m2,
                mask=early_m2,
            )
        if HAS_SEQ_IDX:
            d_y_2 = tl.where(seq_2 >= 0.0, d_y_2, 0.0)
        own_2 = weight_0 * x_2
        if HAS_BIAS:
            own_2 = bias + own_2
        tap_1_2 = x_1
        if HAS_SEQ_IDX:
            tap_1_2 = tl.where(seq_1 == seq_2, x_1, 0.0)
        tap_2_2 = x_0
        if HAS_SEQ_IDX:
            tap_2_2 = tl.where(seq_0 == seq_2, x_0, 0.0)
        tap_3_2 = x_m1
        if HAS_SEQ_IDX:
            tap_3_2 = tl.where(seq_2 == seq_m1, x_m1, 0.0)
        summed_2 = own_2 + tap_1_2 * weight_1 + tap_2_2 * weight_2 + tap_3_2 * weight_3
        if SILU:
            d_y_2 = d_y_2 * silu2_slope(summed_2)
        d_units_weight_0_terms_2 = d_y_2 * x_2
        d_weight_0 = d_units_weight_0_terms_2 + d_weight_0
        d_units_weight_1_terms_2 = d_y_2 * tap_1_2
        d_weight_1 = d_units_weight_1_terms_2 + d_weight_1
        d_units_weight_2_terms_2 = d_y_2 * tap_2_2
        d_weight_2 = d_units_weight_2_terms_2 + d_weight_2
        d_units_weight_3_terms_2 = d_y_2 * tap_3_2
        d_weight_3 = d_units_weight_3_terms_2 + d_weight_3
        if HAS_BIAS:
            d_bias = d_bias + d_y_2
        if HAS_D_STATES:
            ends_m1 = (d < dim - d0) & (t - 1 >= length - 3) & (t - 1 < length)
            d_state_out_m1_base = d_states_ptr + b * stride_d_states_rows + d0 * stride_d_states_dim
            d_state_out_m1 = tl.load(
                d_state_out_m1_base + (t - 1 - length + 3) * stride_d_states_state_len + d * stride_d_states_dim,
                mask=ends_m1,
                other=0.0,
            )
            d_state_out_m1 = d_state_out_m1.to(tl.float32)
        else:
            d_state_out_m1 = tl.zeros([BLOCK_D], dtype=tl.float32)
        if HAS_SEQ_IDX:
            d_state_out_m1 = tl.where(seq_last == seq_m1, d_state_out_m1, 0.0)
        d_tap_1_0 = d_y_0 * weight_1
        if HAS_SEQ_IDX:
            d_tap_1_0 = tl.where(seq_0 == seq_m1, d_tap_1_0, 0.0)
        d_tap_2_1 = d_y_1 * weight_2
        if HAS_SEQ_IDX:
            d_tap_2_1 = tl.where(seq_1 == seq_m1, d_tap_2_1, 0.0)
        d_tap_3_2 = d_y_2 * weight_3
        if HAS_SEQ_IDX:
            d_tap_3_2 = tl.where(seq_2 == seq_m1, d_tap_3_2, 0.0)
        d_x_m1 = d_state_out_m1 + d_tap_1_0 + d_tap_2_1 + d_tap_3_2 + d_summed_m1 * weight_0
        own_m1 = (d < dim - d0) & (t - 1 >= first) & (t - 1 < length)
        tl.store(d_x_base + (at - 1) * stride_d_x_seqlen + d, d_x_m1, mask=own_m1)
        if STORE_D_INITIAL:
            early_m1 = (d < dim - d0) & (t - 1 < 0)
            tl.store(
                d_initial_states_ptr + b * dim * state_len + d0 * state_len + t - 1 + 3 + d * state_len,
                d_x_m1,
                mask=early_m1,
            )
        if HAS_SEQ_IDX:
            d_y_3 = tl.where(seq_3 >= 0.0, d_y_3, 0.0)
        own_3 = weight_0 * x_3
        if HAS_BIAS:
            own_3 = bias + own_3
        tap_1_3 = x_2
        if HAS_SEQ_IDX:
            tap_1_3 = tl.where(seq_2 == seq_3, x_2, 0.0)
        tap_2_3 = x_1
        if HAS_SEQ_IDX:
            tap_2_3 = tl.where(seq_1 == seq_3, x_1, 0.0)
        tap_3_3 = x_0
        if HAS_SEQ_IDX:
            tap_3_3 = tl.where(seq_0 == seq_3, x_0, 0.0)
        summed_3 = own_3 + tap_1_3 * weight_1 + tap_2_3 * weight_2 + tap_3_3 * weight_3
        if SILU:
            d_y_3 = d_y_3 * silu2_slope(summed_3)
        d_units_weight_0_terms_3 = d_y_3 * x_3
        d_weight_0 = d_units_weight_0_terms_3 + d_weight_0
        d_units_weight_1_terms_3 = d_y_3 * tap_1_3
        d_weight_1 = d_units_weight_1_terms_3 + d_weight_1
        d_units_weight_2_terms_3 = d_y_3 * tap_2_3
        d_weight_2 = d_units_weight_2_terms_3 + d_weight_2
        d_units_weight_3_terms_3 = d_y_3 * tap_3_3
        d_weight_3 = d_units_weight_3_terms_3 + d_weight_3
        if HAS_BIAS:
            d_bias = d_bias + d_y_3
        if HAS_D_STATES:
            ends_0 = (d < dim - d0) & (t >= length - 3) & (t < length)
            d_state_out_0_base = d_states_ptr + b * stride_d_states_rows + d0 * stride_d_states_dim
            d_state_out_0 = tl.load(
                d_state_out_0_base + (t - length + 3) * stride_d_states_state_len + d * stride_d_states_dim,
                mask=ends_0,
                other=0.0,
            )
            d_state_out_0 = d_state_out_0.to(tl.float32)
        else:
            d_state_out_0 = tl.zeros([BLOCK_D], dtype=tl.float32)
        if HAS_SEQ_IDX:
            d_state_out_0 = tl.where(seq_0 == seq_last, d_state_out_0, 0.0)
        d_tap_1_1 = d_y_1 * weight_1
        if HAS_SEQ_IDX:
            d_tap_1_1 = tl.where(seq_0 == seq_1, d_tap_1_1, 0.0)
        d_tap_2_2 = d_y_2 * weight_2
        if HAS_SEQ_IDX:
            d_tap_2_2 = tl.where(seq_0 == seq_2, d_tap_2_2, 0.0)
        d_tap_3_3 = d_y_3 * weight_3
        if HAS_SEQ_IDX:
            d_tap_3_3 = tl.where(seq_0 == seq_3, d_tap_3_3, 0.0)
        d_x_0 = d_state_out_0 + d_tap_1_1 + d_tap_2_2 + d_tap_3_3 + d_y_0 * weight_0
        own_0 = (d < dim - d0) & (t >= first) & (t < length)
        tl.store(d_x_base + at * stride_d_x_seqlen + d, d_x_0, mask=own_0)
        x_m3 = x_1
        d_summed_m3 = d_y_1
        if HAS_SEQ_IDX:
            seq_m3 = seq_1
        x_m2 = x_2
        d_summed_m2 = d_y_2
        if HAS_SEQ_IDX:
            seq_m2 = seq_2
        x_m1 = x_3
        d_summed_m1 = d_y_3
        if HAS_SEQ_IDX:
            seq_m1 = seq_3
    t = first + trips * 4
    at = start + t
    x_0 = from_words(x_next_0, x_ptr.dtype.element_ty)
    x_1 = from_words(x_next_1, x_ptr.dtype.element_ty)
    x_2 = from_words(x_next_2, x_ptr.dtype.element_ty)
    d_y_0 = from_words(d_y_next_0, d_y_ptr.dtype.element_ty)
    d_y_1 = from_words(d_y_next_1, d_y_ptr.dtype.element_ty)
    d_y_2 = from_words(d_y_next_2, d_y_ptr.dtype.element_ty)
    if HAS_SEQ_IDX:
        seq_0 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t, length - 1))
        seq_1 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 1, length - 1))
        seq_2 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 2, length - 1))
    if HAS_D_STATES:
        ends_m3 = (d < dim - d0) & (t - 3 >= length - 3) & (t - 3 < length)
        d_state_out_m3_base = (
            d_states_ptr
            + b * stride_d_states_rows
            + d0 * stride_d_states_dim
            + (t - 3 - length + 3) * stride_d_states_state_len
        )
        d_state_out_m3 = tl.load(d_state_out_m3_base + d * stride_d_states_dim, mask=ends_m3, other=0.0).to(tl.float32)
    else:
        d_state_out_m3 = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_SEQ_IDX:
        d_state_out_m3 = tl.where(seq_last == seq_m3, d_state_out_m3, 0.0)
    d_tap_1_m2 = d_summed_m2 * weight_1
    if HAS_SEQ_IDX:
        d_tap_1_m2 = tl.where(seq_m2 == seq_m3, d_tap_1_m2, 0.0)
    d_tap_2_m1 = d_summed_m1 * weight_2
    if HAS_SEQ_IDX:
        d_tap_2_m1 = tl.where(seq_m1 == seq_m3, d_tap_2_m1, 0.0)
        d_y_0 = tl.where(seq_0 >= 0.0, d_y_0, 0.0)
    own_0 = weight_0 * x_0
    if HAS_BIAS:
        own_0 = bias + own_0
    tap_1_0 = x_m1
    if HAS_SEQ_IDX:
        tap_1_0 = tl.where(seq_0 == seq_m1, x_m1, 0.0)
    tap_2_0 = x_m2
    if HAS_SEQ_IDX:
        tap_2_0 = tl.where(seq_0 == seq_m2, x_m2, 0.0)
    tap_3_0 = x_m3
    if HAS_SEQ_IDX:
        tap_3_0 = tl.where(seq_0 == seq_m3, x_m3, 0.0)
    summed_0 = own_0 + tap_1_0 * weight_1 + tap_2_0 * weight_2 + tap_3_0 * weight_3
    if SILU:
        d_y_0 = d_y_0 * silu2_slope(summed_0)
    d_tap_3_0 = d_y_0 * weight_3
    if HAS_SEQ_IDX:
        d_tap_3_0 = tl.where(seq_0 == seq_m3, d_tap_3_0, 0.0)
    d_x_m3 = d_state_out_m3 + d_tap_1_m2 + d_tap_2_m1 + d_tap_3_0 + d_summed_m3 * weight_0
    own_m3 = (d < dim - d0) & (t - 3 >= first) & (t - 3 < length)
    tl.store(d_x_ptr + row * stride_d_x_batch + (at - 3) * stride_d_x_seqlen + d0 + d, d_x_m3, mask=own_m3)
    if HAS_D_STATES:
        ends_m2 = (d < dim - d0) & (t - 2 >= length - 3) & (t - 2 < length)
        d_state_out_m2_base = (
            d_states_ptr
            + b * stride_d_states_rows
            + d0 * stride_d_states_dim
            + (t - 2 - length + 3) * stride_d_states_state_len
        )
        d_state_out_m2 = tl.load(d_state_out_m2_base + d * stride_d_states_dim, mask=ends_m2, other=0.0).to(tl.float32)
    else:
        d_state_out_m2 = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_SEQ_IDX:
        d_state_out_m2 = tl.where(seq_last == seq_m2, d_state_out_m2, 0.0)
    d_tap_1_m1 = d_summed_m1 * weight_1
    if HAS_SEQ_IDX:
        d_tap_1_m1 = tl.where(seq_m1 == seq_m2, d_tap_1_m1, 0.0)
    d_tap_2_0 = d_y_0 * weight_2
    if HAS_SEQ_IDX:
        d_tap_2_0 = tl.where(seq_0 == seq_m2, d_tap_2_0, 0.0)
        d_y_1 = tl.where(seq_1 >= 0.0, d_y_1, 0.0)
    own_1 = weight_0 * x_1
    if HAS_BIAS:
        own_1 = bias + own_1
    tap_1_1 = x_0
    if HAS_SEQ_IDX:
        tap_1_1 = tl.where(seq_0 == seq_1, x_0, 0.0)
    tap_2_1 = x_m1
    if HAS_SEQ_IDX:
        tap_2_1 = tl.where(seq_1 == seq_m1, x_m1, 0.0)
    tap_3_1 = x_m2
    if HAS_SEQ_IDX:
        tap_3_1 = tl.where(seq_1 == seq_m2, x_m2, 0.0)
    summed_1 = own_1 + tap_1_1 * weight_1 + tap_2_1 * weight_2 + tap_3_1 * weight_3
    if SILU:
        d_y_1 = d_y_1 * silu2_slope(summed_1)
    d_tap_3_1 = d_y_1 * weight_3
    if HAS_SEQ_IDX:
        d_tap_3_1 = tl.where(seq_1 == seq_m2, d_tap_3_1, 0.0)
    d_x_m2 = d_state_out_m2 + d_tap_1_m1 + d_tap_2_0 + d_tap_3_1 + d_summed_m2 * weight_0
    own_m2 = (d < dim - d0) & (t - 2 >= first) & (t - 2 < length)
    tl.store(d_x_ptr + row * stride_d_x_batch + (at - 2) * stride_d_x_seqlen + d0 + d, d_x_m2, mask=own_m2)
    if HAS_D_STATES:
        ends_m1 = (d < dim - d0) & (t - 1 >= length - 3) & (t - 1 < length)
        d_state_out_m1_base = (
            d_states_ptr
            + b * stride_d_states_rows
            + d0 * stride_d_states_dim
            + (t - 1 - length + 3) * stride_d_states_state_len
        )
        d_state_out_m1 = tl.load(d_state_out_m1_base + d * stride_d_states_dim, mask=ends_m1, other=0.0).to(tl.float32)
    else:
        d_state_out_m1 = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_SEQ_IDX:
        d_state_out_m1 = tl.where(seq_last == seq_m1, d_state_out_m1, 0.0)
    d_tap_1_0 = d_y_0 * weight_1
    if HAS_SEQ_IDX:
        d_tap_1_0 = tl.where(seq_0 == seq_m1, d_tap_1_0, 0.0)
    d_tap_2_1 = d_y_1 * weight_2
    if HAS_SEQ_IDX:
        d_tap_2_1 = tl.where(seq_1 == seq_m1, d_tap_2_1, 0.0)
        d_y_2 = tl.where(seq_2 >= 0.0, d_y_2, 0.0)
    own_2 = weight_0 * x_2
    if HAS_BIAS:
        own_2 = bias + own_2
    tap_1_2 = x_1
    if HAS_SEQ_IDX:
        tap_1_2 = tl.where(seq_1 == seq_2, x_1, 0.0)
    tap_2_2 = x_0
    if HAS_SEQ_IDX:
        tap_2_2 = tl.where(seq_0 == seq_2, x_0, 0.0)
    tap_3_2 = x_m1
    if HAS_SEQ_IDX:
        tap_3_2 = tl.where(seq_2 == seq_m1, x_m1, 0.0)
    summed_2 = own_2 + tap_1_2 * weight_1 + tap_2_2 * weight_2 + tap_3_2 * weight_3
    if SILU:
        d_y_2 = d_y_2 * silu2_slope(summed_2)
    d_tap_3_2 = d_y_2 * weight_3
    if HAS_SEQ_IDX:
        d_tap_3_2 = tl.where(seq_2 == seq_m1, d_tap_3_2, 0.0)
    d_x_m1 = d_state_out_m1 + d_tap_1_0 + d_tap_2_1 + d_tap_3_2 + d_summed_m1 * weight_0
    own_m1 = (d < dim - d0) & (t - 1 >= first) & (t - 1 < length)
    tl.store(d_x_ptr + row * stride_d_x_batch + (at - 1) * stride_d_x_seqlen + d0 + d, d_x_m1, mask=own_m1)
    if SILU:
        d_weight_0 = d_weight_0 * -1.4426950408889634
    tl.store(parts_ptr + ((b * nsegments + segment) * sums + 3) * dim + d0 + d, d_weight_0, mask=d_in)
    if SILU:
        d_weight_1 = d_weight_1 * -1.4426950408889634
    tl.store(parts_ptr + ((b * nsegments + segment) * sums + 2) * dim + d0 + d, d_weight_1, mask=d_in)
    if SILU:
        d_weight_2 = d_weight_2 * -1.4426950408889634
    tl.store(parts_ptr + ((b * nsegments + segment) * sums + 1) * dim + d0 + d, d_weight_2, mask=d_in)
    if SILU:
        d_weight_3 = d_weight_3 * -1.4426950408889634
    tl.store(parts_ptr + (b * nsegments + segment) * sums * dim + d0 + d, d_weight_3, mask=d_in)
    if HAS_BIAS:
        if SILU:
            d_bias = d_bias * -1.4426950408889634
        tl.store(parts_ptr + ((b * nsegments + segment) * sums + 4) * dim + d0 + d, d_bias, mask=d_in)


def grid(rows, dim, nsegments, BLOCK_D, **_):
    """Programs along each axis."""
    return triton.cdiv(dim, BLOCK_D), nsegments, rows
