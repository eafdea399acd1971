"""One program makes the gradients of every so many rows, groups of channels. What it adds to the gradients of weight
and bias it leaves in parts.

mean_sum[t] = sum over d of x[t, d]
mean[t] = mean_sum[t]/size
centred[t, d] = -mean[t] + x[t, d]
square[t, d] = centred[t, d]**2
variance_sum[t] = sum over d of square[t, d]
variance[t] = variance_sum[t]/size
scale[t] = rsqrt(eps + variance[t])
normed[t, d] = centred[t, d]*scale[t]
weighted[t, d] = normed[t, d]*weight[d]
biased[t, d] = bias[d] + weighted[t, d]    if HAS_BIAS
d_biased[t, d] = sigmoid(z[t, d])*d_y[t, d]*z[t, d]    if HAS_Z
d_bias[d] = sum over t of d_biased[t, d]
d_weight_terms[t, d] = d_biased[t, d]*normed[t, d]
d_weight[d] = sum over t of d_weight_terms[t, d]
d_normed[t, d] = d_biased[t, d]*weight[d]
d_scale_terms[t, d] = centred[t, d]*d_normed[t, d]
d_scale[t] = sum over d of d_scale_terms[t, d]
d_variance[t] = -rsqrt(eps + variance[t])**3*d_scale[t]/2
d_variance_sum[t] = d_variance[t]/size
d_square[t, d] = d_variance_sum[t]
d_centred[t, d] = 2*centred[t, d]*d_square[t, d] + d_normed[t, d]*scale[t]
d_mean_centred[t] = sum over d of d_centred[t, d]
d_mean[t] = -d_mean_centred[t]
d_mean_sum[t] = d_mean[t]/size
d_z[t, d] = ((1 - sigmoid(z[t, d]))*z[t, d] + 1)*sigmoid(z[t, d])*biased[t, d]*d_y[t, d]
d_x[t, d] = d_centred[t, d] + d_mean_sum[t]
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def layer_norm_backward(
    x_ptr,  # [rows, dim]
    z_ptr,  # [rows, dim], if HAS_Z
    weight_ptr,  # [dim]
    bias_ptr,  # [dim], if HAS_BIAS
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
    d_in = d < group_size
    t = tl.arange(0, BLOCK_T)
    program = tl.cast(tl.program_id(0), tl.int64)
    first = program * BLOCK_T
    weight = tl.load(weight_ptr + c0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
    if HAS_Z:
        if HAS_BIAS:
            bias = tl.load(bias_ptr + c0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
    d_weight_rows = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    if HAS_BIAS:
        d_bias_rows = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    ahead = t < rows - first
    x_next = tl.load(
        x_ptr + first * stride_x_rows + c0 + t[:, None] * stride_x_rows + d[None, :],
        mask=ahead[:, None] & d_in[None, :],
        other=0.0,
    )
    d_y_next = tl.load(
        d_y_ptr + first * stride_d_y_rows + c0 + t[:, None] * stride_d_y_rows + d[None, :],
        mask=ahead[:, None] & d_in[None, :],
        other=0.0,
    )
    if HAS_Z:
        z_next = tl.load(
            z_ptr + first * stride_z_rows + c0 + t[:, None] * stride_z_rows + d[None, :],
            mask=ahead[:, None] & d_in[None, :],
            other=0.0,
        )
    trips = tl.cast(tl.cdiv(tl.maximum(rows - first, 0), nprograms * BLOCK_T), tl.int32)
    x_base = x_ptr + c0
    d_y_base = d_y_ptr + c0
    d_x_base = d_x_ptr + c0
    for trip in range(trips):
        t0 = first + trip * nprograms * BLOCK_T
        t_in = t < rows - t0
        x = x_next.to(tl.float32)
        d_y = d_y_next.to(tl.float32)
        if HAS_Z:
            z = z_next.to(tl.float32)
        later = t0 + nprograms * BLOCK_T
        ahead = t < rows - later
        x_next = tl.load(
            x_base + later * stride_x_rows + t[:, None] * stride_x_rows + d[None, :],
            mask=ahead[:, None] & d_in[None, :],
            other=0.0,
        )
        d_y_next = tl.load(
            d_y_base + later * stride_d_y_rows + t[:, None] * stride_d_y_rows + d[None, :],
            mask=ahead[:, None] & d_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_next = tl.load(
                z_ptr + c0 + later * stride_z_rows + t[:, None] * stride_z_rows + d[None, :],
                mask=ahead[:, None] & d_in[None, :],
                other=0.0,
            )
        mean_sum = tl.sum(x, axis=1)
        mean = mean_sum / size
        centred = tl.where(d_in[None, :], x - mean[:, None], 0.0)
        d_biased = d_y
        if HAS_Z:
            d_biased = d_y * z * sigmoid(z)
        d_normed = d_biased * weight[None, :]
        d_scale_terms = centred * d_normed
        d_scale = tl.sum(d_scale_terms, axis=1)
        square = centred * centred
        variance_sum = tl.sum(square, axis=1)
        variance = variance_sum / size
        d_variance = d_scale * tl.rsqrt(variance + eps) * tl.rsqrt(variance + eps) * tl.rsqrt(variance + eps) * -0.5
        d_variance_sum = d_variance / size
        scale = tl.where(t_in, tl.rsqrt(variance + eps), 0.0)
        d_centred = centred * d_variance_sum[:, None] * 2.0 + d_normed * scale[:, None]
        d_mean_centred = tl.sum(d_centred, axis=1)
        d_mean = -d_mean_centred
        d_mean_sum = d_mean / size
        d_x = d_centred + d_mean_sum[:, None]
        tl.store(
            d_x_base + t0 * stride_d_x_rows + t[:, None] * stride_d_x_rows + d[None, :],
            d_x,
            mask=t_in[:, None] & d_in[None, :],
        )
        if HAS_Z:
            normed = centred * scale[:, None]
            weighted = normed * weight[None, :]
            if HAS_BIAS:
                weighted = bias[None, :] + weighted
            d_z = d_y * weighted * (z * (1.0 - sigmoid(z)) + 1.0) * sigmoid(z)
            tl.store(
                d_z_ptr + c0 + t0 * stride_d_z_rows + t[:, None] * stride_d_z_rows + d[None, :],
                d_z,
                mask=t_in[:, None] & d_in[None, :],
            )
        normed = centred * scale[:, None]
        d_weight_terms = d_biased * normed
        d_weight_rows = d_weight_rows + d_weight_terms
        if HAS_BIAS:
            d_bias_rows = d_bias_rows + d_biased
    d_weight = tl.sum(d_weight_rows, axis=0)
    tl.store(parts_ptr + program * 2 * dim + c0 + d, d_weight, mask=d_in)
    if HAS_BIAS:
        d_bias = tl.sum(d_bias_rows, axis=0)
        tl.store(parts_ptr + (program * 2 + 1) * dim + c0 + d, d_bias, mask=d_in)


def grid(ngroups, nprograms, **_):
    """Programs along each axis."""
    return nprograms, ngroups
