"""One program convolves a tile of channels of a part of a sequence: it walks along the tokens and keeps the last
inputs.

x_1[t, d] = x[t, d], 1 before along t
seq_1[t] = seq[t], 1 before along t
tap_1[t, d] = Piecewise((x_1[t, d], Eq(seq[t], seq_1[t])), (0, True))    if HAS_SEQ_IDX
x_2[t, d] = x[t, d], 2 before along t
seq_2[t] = seq[t], 2 before along t
tap_2[t, d] = Piecewise((x_2[t, d], Eq(seq[t], seq_2[t])), (0, True))    if HAS_SEQ_IDX
x_3[t, d] = x[t, d], 3 before along t
seq_3[t] = seq[t], 3 before along t
tap_3[t, d] = Piecewise((x_3[t, d], Eq(seq[t], seq_3[t])), (0, True))    if HAS_SEQ_IDX
own[t, d] = weight_0[d]*x[t, d]
biased[t, d] = bias[d] + own[t, d]    if HAS_BIAS
summed[t, d] = biased[t, d] + tap_1[t, d]*weight_1[d] + tap_2[t, d]*weight_2[d] + tap_3[t, d]*weight_3[d]
active[t, d] = sigmoid(summed[t, d])*summed[t, d]    if SILU
y[t, d] = Piecewise((active[t, d], seq[t] >= 0), (0, True))    if HAS_SEQ_IDX
state_out[t, d] = Piecewise((x[t, d], Eq(seq_last, seq[t])), (0, True))    if HAS_SEQ_IDX
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid
from .word_functions import from_words, in_words


@triton.jit
def conv_walk_4w(
    x_ptr,  # [batch, seqlen, dim]
    weight_ptr,  # [dim, width]
    bias_ptr,  # [dim], if HAS_BIAS
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    initial_states_ptr,  # [rows, dim, state_len], if HAS_INITIAL
    y_ptr,  # [batch, seqlen, dim]
    final_states_ptr,  # [rows, dim, state_len], if STORE_FINAL
    cu_seqlens_ptr,  # [rows + 1], if HAS_CU_SEQLENS
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_weight_dim: tl.int64,
    stride_weight_width: tl.int64,
    stride_initial_states_rows: tl.int64,
    stride_initial_states_dim: tl.int64,
    stride_initial_states_state_len: tl.int64,
    stride_y_batch: tl.int64,
    stride_y_seqlen: tl.int64,
    seqlen,
    dim,
    state_len,
    nsegments,
    BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_CU_SEQLENS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    STORE_FINAL: tl.constexpr,
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
    weight_0 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 3 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_0 = weight_0.to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
    weight_1 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 2 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_1 = weight_1.to(tl.float32)
    weight_2 = tl.load(
        weight_ptr + d0 * stride_weight_dim + 1 * stride_weight_width + d * stride_weight_dim, mask=d_in, other=0.0
    )
    weight_2 = weight_2.to(tl.float32)
    weight_3 = tl.load(weight_ptr + d0 * stride_weight_dim + d * stride_weight_dim, mask=d_in, other=0.0).to(tl.float32)
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
    ahead_0 = (d < dim - d0) & (first < last)
    ahead_1 = (d < dim - d0) & (first + 1 < last)
    ahead_2 = (d < dim - d0) & (first + 2 < last)
    ahead_3 = (d < dim - d0) & (first + 3 < last)
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
    x_next_0 = in_words(x_next_0)
    x_next_1 = in_words(x_next_1)
    x_next_2 = in_words(x_next_2)
    x_next_3 = in_words(x_next_3)
    x_base = x_ptr + row * stride_x_batch + d0
    y_base = y_ptr + row * stride_y_batch + d0
    for trip in range(trips):
        t = first + trip * 4
        at = start + t
        x_0 = from_words(x_next_0, x_ptr.dtype.element_ty)
        x_1 = from_words(x_next_1, x_ptr.dtype.element_ty)
        x_2 = from_words(x_next_2, x_ptr.dtype.element_ty)
        x_3 = from_words(x_next_3, x_ptr.dtype.element_ty)
        if HAS_SEQ_IDX:
            seq_0 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t, length - 1))
            seq_1 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 1, length - 1))
            seq_2 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 2, length - 1))
            seq_3 = tl.load(seq_idx_ptr + row * seqlen + tl.minimum(t + 3, length - 1))
        ahead_0 = (d < dim - d0) & (t + 4 < last)
        ahead_1 = (d < dim - d0) & (t + 4 + 1 < last)
        ahead_2 = (d < dim - d0) & (t + 4 + 2 < last)
        ahead_3 = (d < dim - d0) & (t + 4 + 3 < last)
        x_next_0 = tl.load(x_base + (at + 4) * stride_x_seqlen + d, mask=ahead_0, other=0.0)  # [BLOCK_D]
        x_next_1 = tl.load(x_base + (at + 4 + 1) * stride_x_seqlen + d, mask=ahead_1, other=0.0)  # [BLOCK_D]
        x_next_2 = tl.load(x_base + (at + 4 + 2) * stride_x_seqlen + d, mask=ahead_2, other=0.0)  # [BLOCK_D]
        x_next_3 = tl.load(x_base + (at + 4 + 3) * stride_x_seqlen + d, mask=ahead_3, other=0.0)  # [BLOCK_D]
        x_next_0 = in_words(x_next_0)
        x_next_1 = in_words(x_next_1)
        x_next_2 = in_words(x_next_2)
        x_next_3 = in_words(x_next_3)
        in_0 = (d < dim - d0) & (t < length)
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
            summed_0 = summed_0 * sigmoid(summed_0)
        if HAS_SEQ_IDX:
            summed_0 = tl.where(seq_0 >= 0.0, summed_0, 0.0)
        tl.store(y_base + at * stride_y_seqlen + d, summed_0, mask=in_0)
        in_1 = (d < dim - d0) & (t + 1 < length)
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
            summed_1 = summed_1 * sigmoid(summed_1)
        if HAS_SEQ_IDX:
            summed_1 = tl.where(seq_1 >= 0.0, summed_1, 0.0)
        tl.store(y_base + (at + 1) * stride_y_seqlen + d, summed_1, mask=in_1)
        in_2 = (d < dim - d0) & (t + 2 < length)
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
            summed_2 = summed_2 * sigmoid(summed_2)
        if HAS_SEQ_IDX:
            summed_2 = tl.where(seq_2 >= 0.0, summed_2, 0.0)
        tl.store(y_base + (at + 2) * stride_y_seqlen + d, summed_2, mask=in_2)
        in_3 = (d < dim - d0) & (t + 3 < length)
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
            summed_3 = summed_3 * sigmoid(summed_3)
        if HAS_SEQ_IDX:
            summed_3 = tl.where(seq_3 >= 0.0, summed_3, 0.0)
        tl.store(y_base + (at + 3) * stride_y_seqlen + d, summed_3, mask=in_3)
        x_m3 = x_1
        if HAS_SEQ_IDX:
            seq_m3 = seq_1
        x_m2 = x_2
        if HAS_SEQ_IDX:
            seq_m2 = seq_2
        x_m1 = x_3
        if HAS_SEQ_IDX:
            seq_m1 = seq_3
    if STORE_FINAL:
        if segment == 0:
            in_e3 = (d < dim - d0) & (length >= 3)
            x_e3 = tl.load(
                x_ptr + row * stride_x_batch + (start + length - 3) * stride_x_seqlen + d0 + d, mask=in_e3, other=0.0
            )
            x_e3 = x_e3.to(tl.float32)
            if HAS_INITIAL:
                before_e3 = (d < dim - d0) & (length < 3)
                entering_e3_base = (
                    initial_states_ptr
                    + b * stride_initial_states_rows
                    + d0 * stride_initial_states_dim
                    + length * stride_initial_states_state_len
                )
                entering_e3 = tl.load(entering_e3_base + d * stride_initial_states_dim, mask=before_e3, other=0.0)
                entering_e3 = entering_e3.to(tl.float32)
                x_e3 = entering_e3 + x_e3
            if HAS_SEQ_IDX:
                seq_e3 = tl.load(seq_idx_ptr + row * seqlen + tl.maximum(length - 3, 0))
            in_e2 = (d < dim - d0) & (length >= 2)
            x_e2 = tl.load(
                x_ptr + row * stride_x_batch + (start + length - 2) * stride_x_seqlen + d0 + d, mask=in_e2, other=0.0
            )
            x_e2 = x_e2.to(tl.float32)
            if HAS_INITIAL:
                before_e2 = (d < dim - d0) & (length < 2)
                entering_e2_base = (
                    initial_states_ptr
                    + b * stride_initial_states_rows
                    + d0 * stride_initial_states_dim
                    + (length + 1) * stride_initial_states_state_len
                )
                entering_e2 = tl.load(entering_e2_base + d * stride_initial_states_dim, mask=before_e2, other=0.0)
                entering_e2 = entering_e2.to(tl.float32)
                x_e2 = entering_e2 + x_e2
            if HAS_SEQ_IDX:
                seq_e2 = tl.load(seq_idx_ptr + row * seqlen + tl.maximum(length - 2, 0))
            in_e1 = (d < dim - d0) & (length >= 1)
            x_e1 = tl.load(
                x_ptr + row * stride_x_batch + (start + length - 1) * stride_x_seqlen + d0 + d, mask=in_e1, other=0.0
            )
            x_e1 = x_e1.to(tl.float32)
            if HAS_INITIAL:
                before_e1 = (d < dim - d0) & (length < 1)
                entering_e1_base = (
                    initial_states_ptr
                    + b * stride_initial_states_rows
                    + d0 * stride_initial_states_dim
                    + (length + 2) * stride_initial_states_state_len
                )
                entering_e1 = tl.load(entering_e1_base + d * stride_initial_states_dim, mask=before_e1, other=0.0)
                entering_e1 = entering_e1.to(tl.float32)
                x_e1 = entering_e1 + x_e1
            if HAS_SEQ_IDX:
                seq_e1 = tl.load(seq_idx_ptr + row * seqlen + tl.maximum(length - 1, 0))
            if HAS_SEQ_IDX:
                seq_last = tl.load(seq_idx_ptr + row * seqlen + length - 1)
            state_out_e3 = x_e3
            if HAS_SEQ_IDX:
                state_out_e3 = tl.where(seq_e3 == seq_last, x_e3, 0.0)
            tl.store(final_states_ptr + b * dim * state_len + d0 * state_len + d * state_len, state_out_e3, mask=d_in)
            state_out_e2 = x_e2
            if HAS_SEQ_IDX:
                state_out_e2 = tl.where(seq_e2 == seq_last, x_e2, 0.0)
            tl.store(
                final_states_ptr + b * dim * state_len + d0 * state_len + 1 + d * state_len, state_out_e2, mask=d_in
            )
            state_out_e1 = x_e1
            if HAS_SEQ_IDX:
                state_out_e1 = tl.where(seq_e1 == seq_last, x_e1, 0.0)
            tl.store(
                final_states_ptr + b * dim * state_len + d0 * state_len + 2 + d * state_len, state_out_e1, mask=d_in
            )


def grid(rows, dim, nsegments, BLOCK_D, **_):
    """Programs along each axis."""
    return triton.cdiv(dim, BLOCK_D), nsegments, rows
