"""One program makes the gradients of every so many rows, groups of channels. What it adds to the gradients of weight
and bias it leaves in parts.

gated[t, d] = sigmoid(z[t, d])*x[t, d]*z[t, d]    if HAS_Z
square[t, d] = gated[t, d]**2
variance_sum[t] = sum over d of square[t, d]
variance[t] = variance_sum[t]/size
scale[t] = rsqrt(eps + variance[t])
normed[t, d] = gated[t, d]*scale[t]
d_bias[d] = sum over t of d_y[t, d]
d_weight_terms[t, d] = d_y[t, d]*normed[t, d]
d_weight[d] = sum over t of d_weight_terms[t, d]
d_normed[t, d] = d_y[t, d]*weight[d]
d_scale_terms[t, d] = d_normed[t, d]*gated[t, d]
d_scale[t] = sum over d of d_scale_terms[t, d]
d_variance[t] = -rsqrt(eps + variance[t])**3*d_scale[t]/2
d_variance_sum[t] = d_variance[t]/size
d_square[t, d] = d_variance_sum[t]
d_gated[t, d] = d_normed[t, d]*scale[t] + 2*d_square[t, d]*gated[t, d]
d_z[t, d] = ((1 - sigmoid(z[t, d]))*z[t, d] + 1)*sigmoid(z[t, d])*d_gated[t, d]*x[t, d]
d_x[t, d] = sigmoid(z[t, d])*d_gated[t, d]*z[t, d]    if HAS_Z
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def rms_norm_gate_first_backward_5d(
    x_ptr,  # [rows, dim]
    z_ptr,  # [rows, dim], if HAS_Z
    weight_ptr,  # [dim]
    d_y_ptr,  # [rows, dim]
    d_x_ptr,  # [rows, dim]
    d_z_ptr,  # [rows, dim], if HAS_Z
    parts_ptr,  # [nprograms, 2, dim]
    stride_x_rows: tl.int64,
    stride_z_rows: tl.int64,
    stride_d_y_rows: tl.int64,
    stride_d_x_rows: tl.int64,
    stride_d_z_rows: tl.int64,
    rows,
    dim,
    group_size,
    nprograms,
    size,
    eps,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    group = tl.program_id(1)
    c0 = group * group_size
    d = tl.arange(0, BLOCK_D)
    d_in_0 = d < group_size
    d_in_1 = d < group_size - BLOCK_D
    d_in_2 = d < group_size - 2 * BLOCK_D
    d_in_3 = d < group_size - 3 * BLOCK_D
    d_in_4 = d < group_size - 4 * BLOCK_D
    t = tl.arange(0, BLOCK_T)
    program = tl.cast(tl.program_id(0), tl.int64)
    first = program * BLOCK_T
    weight_0 = tl.load(weight_ptr + c0 + d, mask=d_in_0, other=0.0).to(tl.float32)  # [BLOCK_D]
    weight_1 = tl.load(weight_ptr + c0 + BLOCK_D + d, mask=d_in_1, other=0.0).to(tl.float32)  # [BLOCK_D]
    weight_2 = tl.load(weight_ptr + c0 + 2 * BLOCK_D + d, mask=d_in_2, other=0.0).to(tl.float32)  # [BLOCK_D]
    weight_3 = tl.load(weight_ptr + c0 + 3 * BLOCK_D + d, mask=d_in_3, other=0.0).to(tl.float32)  # [BLOCK_D]
    weight_4 = tl.load(weight_ptr + c0 + 4 * BLOCK_D + d, mask=d_in_4, other=0.0).to(tl.float32)  # [BLOCK_D]
    d_weight_rows_0 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    d_weight_rows_1 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    d_weight_rows_2 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    d_weight_rows_3 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    d_weight_rows_4 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    if HAS_BIAS:
        d_bias_rows_0 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        d_bias_rows_1 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        d_bias_rows_2 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        d_bias_rows_3 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        d_bias_rows_4 = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    ahead = t < rows - first
    x_next_0 = tl.load(
        x_ptr + first * stride_x_rows + c0 + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in_0[None, :],
        other=0.0,
    )
    x_next_1 = tl.load(
        x_ptr + first * stride_x_rows + c0 + BLOCK_D + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in_1[None, :],
        other=0.0,
    )
    x_next_2 = tl.load(
        x_ptr + first * stride_x_rows + c0 + 2 * BLOCK_D + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in_2[None, :],
        other=0.0,
    )
    x_next_3 = tl.load(
        x_ptr + first * stride_x_rows + c0 + 3 * BLOCK_D + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in_3[None, :],
        other=0.0,
    )
    x_next_4 = tl.load(
        x_ptr + first * stride_x_rows + c0 + 4 * BLOCK_D + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in_4[None, :],
        other=0.0,
    )
    d_y_next_0 = tl.load(
        d_y_ptr + first * stride_d_y_rows + c0 + t[:, None] * stride_d_y_rows + d[None, :],
        mask=ahead[:, None] & d_in_0[None, :],
        other=0.0,
    )
    d_y_next_1 = tl.load(
        d_y_ptr + first * stride_d_y_rows + c0 + BLOCK_D + t[:, None] * stride_d_y_rows + d[None, :],
        mask=ahead[:, None] & d_in_1[None, :],
        other=0.0,
    )
    d_y_next_2_base = d_y_ptr + first * stride_d_y_rows + c0 + 2 * BLOCK_D
    d_y_next_2 = tl.load(
        d_y_next_2_base + t[:, None] * stride_d_y_rows + d[None, :], mask=ahead[:, None] & d_in_2[None, :], other=0.0
    )
    d_y_next_3_base = d_y_ptr + first * stride_d_y_rows + c0 + 3 * BLOCK_D
    d_y_next_3 = tl.load(
        d_y_next_3_base + t[:, None] * stride_d_y_rows + d[None, :], mask=ahead[:, None] & d_in_3[None, :], other=0.0
    )
    d_y_next_4_base = d_y_ptr + first * stride_d_y_rows + c0 + 4 * BLOCK_D
    d_y_next_4 = tl.load(
        d_y_next_4_base + t[:, None] * stride_d_y_rows + d[None, :], mask=ahead[:, None] & d_in_4[None, :], other=0.0
    )
    if HAS_Z:
        z_next_0 = tl.load(
            z_ptr + first * stride_z_rows + c0 + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in_0[None, :],
            other=0.0,
        )
        z_next_1 = tl.load(
            z_ptr + first * stride_z_rows + c0 + BLOCK_D + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in_1[None, :],
            other=0.0,
        )
        z_next_2 = tl.load(
            z_ptr + first * stride_z_rows + c0 + 2 * BLOCK_D + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in_2[None, :],
            other=0.0,
        )
        z_next_3 = tl.load(
            z_ptr + first * stride_z_rows + c0 + 3 * BLOCK_D + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in_3[None, :],
            other=0.0,
        )
        z_next_4 = tl.load(
            z_ptr + first * stride_z_rows + c0 + 4 * BLOCK_D + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in_4[None, :],
            other=0.0,
        )
    trips = tl.cast(tl.cdiv(tl.maximum(rows - first, 0), nprograms * BLOCK_T), tl.int32)
    x_next_0_base = x_ptr + c0
    x_next_1_base = x_ptr + c0 + BLOCK_D
    x_next_2_base = x_ptr + c0 + 2 * BLOCK_D
    x_next_3_base = x_ptr + c0 + 3 * BLOCK_D
    x_next_4_base = x_ptr + c0 + 4 * BLOCK_D
    d_y_next_0_base = d_y_ptr + c0
    d_y_next_1_base = d_y_ptr + c0 + BLOCK_D
    d_y_next_2_base = d_y_ptr + c0 + 2 * BLOCK_D
    d_y_next_3_base = d_y_ptr + c0 + 3 * BLOCK_D
    d_y_next_4_base = d_y_ptr + c0 + 4 * BLOCK_D
    d_x_0_base = d_x_ptr + c0
    d_x_1_base = d_x_ptr + c0 + BLOCK_D
    d_x_2_base = d_x_ptr + c0 + 2 * BLOCK_D
    d_x_3_base = d_x_ptr + c0 + 3 * BLOCK_D
    d_x_4_base = d_x_ptr + c0 + 4 * BLOCK_D
    for trip in range(trips):
        t0 = first + trip * nprograms * BLOCK_T
        t_in = t < rows - t0
        x_0 = x_next_0.to(tl.float32)
        x_1 = x_next_1.to(tl.float32)
        x_2 = x_next_2.to(tl.float32)
        x_3 = x_next_3.to(tl.float32)
        x_4 = x_next_4.to(tl.float32)
        d_y_0 = d_y_next_0.to(tl.float32)
        d_y_1 = d_y_next_1.to(tl.float32)
        d_y_2 = d_y_next_2.to(tl.float32)
        d_y_3 = d_y_next_3.to(tl.float32)
        d_y_4 = d_y_next_4.to(tl.float32)
        if HAS_Z:
            z_0 = z_next_0.to(tl.float32)
            z_1 = z_next_1.to(tl.float32)
            z_2 = z_next_2.to(tl.float32)
            z_3 = z_next_3.to(tl.float32)
            z_4 = z_next_4.to(tl.float32)
        later = t0 + nprograms * BLOCK_T
        ahead = t < rows - later
        x_next_0 = tl.load(
            x_next_0_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in_0[None, :],
            other=0.0,
        )
        x_next_1 = tl.load(
            x_next_1_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in_1[None, :],
            other=0.0,
        )
        x_next_2 = tl.load(
            x_next_2_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in_2[None, :],
            other=0.0,
        )
        x_next_3 = tl.load(
            x_next_3_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in_3[None, :],
            other=0.0,
        )
        x_next_4 = tl.load(
            x_next_4_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in_4[None, :],
            other=0.0,
        )
        d_y_next_0 = tl.load(
            d_y_next_0_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in_0[None, :],
            other=0.0,
        )
        d_y_next_1 = tl.load(
            d_y_next_1_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in_1[None, :],
            other=0.0,
        )
        d_y_next_2 = tl.load(
            d_y_next_2_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in_2[None, :],
            other=0.0,
        )
        d_y_next_3 = tl.load(
            d_y_next_3_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in_3[None, :],
            other=0.0,
        )
        d_y_next_4 = tl.load(
            d_y_next_4_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in_4[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_next_0 = tl.load(
                z_ptr + c0 + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in_0[None, :],
                other=0.0,
            )
            z_next_1 = tl.load(
                z_ptr + c0 + BLOCK_D + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in_1[None, :],
                other=0.0,
            )
            z_next_2_base = z_ptr + c0 + 2 * BLOCK_D
            z_next_2 = tl.load(
                z_next_2_base + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in_2[None, :],
                other=0.0,
            )
            z_next_3_base = z_ptr + c0 + 3 * BLOCK_D
            z_next_3 = tl.load(
                z_next_3_base + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in_3[None, :],
                other=0.0,
            )
            z_next_4_base = z_ptr + c0 + 4 * BLOCK_D
            z_next_4 = tl.load(
                z_next_4_base + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in_4[None, :],
                other=0.0,
            )
        d_normed_0 = d_y_0 * weight_0[None, :]
        gated_0 = x_0
        if HAS_Z:
            gated_0 = x_0 * z_0 * sigmoid(z_0)
        d_scale_terms_0 = d_normed_0 * gated_0
        d_normed_1 = d_y_1 * weight_1[None, :]
        gated_1 = x_1
        if HAS_Z:
            gated_1 = x_1 * z_1 * sigmoid(z_1)
        d_scale_terms_1 = d_normed_1 * gated_1
        d_normed_2 = d_y_2 * weight_2[None, :]
        gated_2 = x_2
        if HAS_Z:
            gated_2 = x_2 * z_2 * sigmoid(z_2)
        d_scale_terms_2 = d_normed_2 * gated_2
        d_normed_3 = d_y_3 * weight_3[None, :]
        gated_3 = x_3
        if HAS_Z:
            gated_3 = x_3 * z_3 * sigmoid(z_3)
        d_scale_terms_3 = d_normed_3 * gated_3
        d_normed_4 = d_y_4 * weight_4[None, :]
        gated_4 = x_4
        if HAS_Z:
            gated_4 = x_4 * z_4 * sigmoid(z_4)
        d_scale_terms_4 = d_normed_4 * gated_4
        d_scale_of = d_scale_terms_0 + d_scale_terms_1 + d_scale_terms_2 + d_scale_terms_3 + d_scale_terms_4
        d_scale = tl.sum(d_scale_of, axis=1)
        square_0 = gated_0 * gated_0
        square_1 = gated_1 * gated_1
        square_2 = gated_2 * gated_2
        square_3 = gated_3 * gated_3
        square_4 = gated_4 * gated_4
        variance_sum_of = square_0 + square_1 + square_2 + square_3 + square_4
        variance_sum = tl.sum(variance_sum_of, axis=1)
        variance = variance_sum / size
        d_variance = d_scale * tl.rsqrt(variance + eps) * tl.rsqrt(variance + eps) * tl.rsqrt(variance + eps) * -0.5
        d_variance_sum = d_variance / size
        scale = tl.where(t_in, tl.rsqrt(variance + eps), 0.0)
        d_gated_0 = d_normed_0 * scale[:, None] + gated_0 * d_variance_sum[:, None] * 2.0
        d_x_0 = d_gated_0
        if HAS_Z:
            d_x_0 = d_gated_0 * z_0 * sigmoid(z_0)
        tl.store(
            d_x_0_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x_0,
            mask=t_in[:, None] & d_in_0[None, :],
        )
        d_gated_1 = d_normed_1 * scale[:, None] + gated_1 * d_variance_sum[:, None] * 2.0
        d_x_1 = d_gated_1
        if HAS_Z:
            d_x_1 = d_gated_1 * z_1 * sigmoid(z_1)
        tl.store(
            d_x_1_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x_1,
            mask=t_in[:, None] & d_in_1[None, :],
        )
        d_gated_2 = d_normed_2 * scale[:, None] + gated_2 * d_variance_sum[:, None] * 2.0
        d_x_2 = d_gated_2
        if HAS_Z:
            d_x_2 = d_gated_2 * z_2 * sigmoid(z_2)
        tl.store(
            d_x_2_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x_2,
            mask=t_in[:, None] & d_in_2[None, :],
        )
        d_gated_3 = d_normed_3 * scale[:, None] + gated_3 * d_variance_sum[:, None] * 2.0
        d_x_3 = d_gated_3
        if HAS_Z:
            d_x_3 = d_gated_3 * z_3 * sigmoid(z_3)
        tl.store(
            d_x_3_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x_3,
            mask=t_in[:, None] & d_in_3[None, :],
        )
        d_gated_4 = d_normed_4 * scale[:, None] + gated_4 * d_variance_sum[:, None] * 2.0
        d_x_4 = d_gated_4
        if HAS_Z:
            d_x_4 = d_gated_4 * z_4 * sigmoid(z_4)
        tl.store(
            d_x_4_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x_4,
            mask=t_in[:, None] & d_in_4[None, :],
        )
        if HAS_Z:
            d_z_0 = d_gated_0 * x_0 * (z_0 * (1.0 - sigmoid(z_0)) + 1.0) * sigmoid(z_0)
            tl.store(
                d_z_ptr + c0 + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z_0,
                mask=t_in[:, None] & d_in_0[None, :],
            )
            d_z_1 = d_gated_1 * x_1 * (z_1 * (1.0 - sigmoid(z_1)) + 1.0) * sigmoid(z_1)
            d_z_base = d_z_ptr + c0 + BLOCK_D
            tl.store(
                d_z_base + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z_1,
                mask=t_in[:, None] & d_in_1[None, :],
            )
            d_z_2 = d_gated_2 * x_2 * (z_2 * (1.0 - sigmoid(z_2)) + 1.0) * sigmoid(z_2)
            d_z_base = d_z_ptr + c0 + 2 * BLOCK_D
            tl.store(
                d_z_base + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z_2,
                mask=t_in[:, None] & d_in_2[None, :],
            )
            d_z_3 = d_gated_3 * x_3 * (z_3 * (1.0 - sigmoid(z_3)) + 1.0) * sigmoid(z_3)
            d_z_base = d_z_ptr + c0 + 3 * BLOCK_D
            tl.store(
                d_z_base + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z_3,
                mask=t_in[:, None] & d_in_3[None, :],
            )
            d_z_4 = d_gated_4 * x_4 * (z_4 * (1.0 - sigmoid(z_4)) + 1.0) * sigmoid(z_4)
            d_z_base = d_z_ptr + c0 + 4 * BLOCK_D
            tl.store(
                d_z_base + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z_4,
                mask=t_in[:, None] & d_in_4[None, :],
            )
        normed_0 = gated_0 * scale[:, None]
        d_weight_terms_0 = d_y_0 * normed_0
        d_weight_rows_0 = d_weight_rows_0 + d_weight_terms_0
        normed_1 = gated_1 * scale[:, None]
        d_weight_terms_1 = d_y_1 * normed_1
        d_weight_rows_1 = d_weight_rows_1 + d_weight_terms_1
        normed_2 = gated_2 * scale[:, None]
        d_weight_terms_2 = d_y_2 * normed_2
        d_weight_rows_2 = d_weight_rows_2 + d_weight_terms_2
        normed_3 = gated_3 * scale[:, None]
        d_weight_terms_3 = d_y_3 * normed_3
        d_weight_rows_3 = d_weight_rows_3 + d_weight_terms_3
        normed_4 = gated_4 * scale[:, None]
        d_weight_terms_4 = d_y_4 * normed_4
        d_weight_rows_4 = d_weight_rows_4 + d_weight_terms_4
        if HAS_BIAS:
            d_bias_rows_0 = d_bias_rows_0 + d_y_0
            d_bias_rows_1 = d_bias_rows_1 + d_y_1
            d_bias_rows_2 = d_bias_rows_2 + d_y_2
            d_bias_rows_3 = d_bias_rows_3 + d_y_3
            d_bias_rows_4 = d_bias_rows_4 + d_y_4
    d_weight_0 = tl.sum(d_weight_rows_0, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + d, d_weight_0, mask=d_in_0)
    d_weight_1 = tl.sum(d_weight_rows_1, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + BLOCK_D + d, d_weight_1, mask=d_in_1)
    d_weight_2 = tl.sum(d_weight_rows_2, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + 2 * BLOCK_D + d, d_weight_2, mask=d_in_2)
    d_weight_3 = tl.sum(d_weight_rows_3, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + 3 * BLOCK_D + d, d_weight_3, mask=d_in_3)
    d_weight_4 = tl.sum(d_weight_rows_4, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + 4 * BLOCK_D + d, d_weight_4, mask=d_in_4)
    if HAS_BIAS:
        d_bias_0 = tl.sum(d_bias_rows_0, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + d, d_bias_0, mask=d_in_0)
        d_bias_1 = tl.sum(d_bias_rows_1, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + BLOCK_D + d, d_bias_1, mask=d_in_1)
        d_bias_2 = tl.sum(d_bias_rows_2, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + 2 * BLOCK_D + d, d_bias_2, mask=d_in_2)
        d_bias_3 = tl.sum(d_bias_rows_3, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + 3 * BLOCK_D + d, d_bias_3, mask=d_in_3)
        d_bias_4 = tl.sum(d_bias_rows_4, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + 4 * BLOCK_D + d, d_bias_4, mask=d_in_4)


def grid(ngroups, nprograms, **_):
    """Programs along each axis."""
    return nprograms, ngroups
