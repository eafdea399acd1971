"""One program normalises some rows: groups of channels.

gated[t, d] = sigmoid(z[t, d])*x[t, d]*z[t, d]    if HAS_Z
mean_sum[t] = sum over d of gated[t, d]
mean[t] = mean_sum[t]/size
centred[t, d] = gated[t, d] - mean[t]
square[t, d] = centred[t, d]**2
variance_sum[t] = sum over d of square[t, d]
variance[t] = variance_sum[t]/size
scale[t] = rsqrt(eps + variance[t])
normed[t, d] = centred[t, d]*scale[t]
weighted[t, d] = normed[t, d]*weight[d]
biased[t, d] = bias[d] + weighted[t, d]    if HAS_BIAS
y[t, d] = biased[t, d]
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def layer_norm_gate_first_2d(
    x_ptr,  # [rows, dim]
    z_ptr,  # [rows, dim], if HAS_Z
    weight_ptr,  # [dim]
    bias_ptr,  # [dim], if HAS_BIAS
    y_ptr,  # [rows, dim]
    stride_x_rows: tl.int64,
    stride_z_rows: tl.int64,
    stride_y_rows: tl.int64,
    rows,
    group_size,
    size,
    eps,
    BLOCK_T: tl.constexpr,
    BLOCK_D_0: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    group = tl.program_id(1)
    c0 = group * group_size
    d_0 = tl.arange(0, BLOCK_D_0)
    d_in_0 = d_0 < group_size
    d_1 = tl.arange(0, BLOCK_D_1)
    d_in_1 = d_1 < group_size - BLOCK_D_0
    t = tl.arange(0, BLOCK_T)
    t0 = tl.cast(tl.program_id(0) * BLOCK_T, tl.int64)
    t_in = t < rows - t0
    x_0 = tl.load(
        x_ptr + t0 * stride_x_rows + c0 + t[:, None] * stride_x_rows + d_0[None, :],
        mask=t_in[:, None] & d_in_0[None, :],
        other=0.0,
    )
    x_0 = x_0.to(tl.float32)
    x_1 = tl.load(
        x_ptr + t0 * stride_x_rows + c0 + BLOCK_D_0 + t[:, None] * stride_x_rows + d_1[None, :],
        mask=t_in[:, None] & d_in_1[None, :],
        other=0.0,
    )
    x_1 = x_1.to(tl.float32)
    if HAS_Z:
        z_0 = tl.load(
            z_ptr + t0 * stride_z_rows + c0 + t[:, None] * stride_z_rows + d_0[None, :],
            mask=t_in[:, None] & d_in_0[None, :],
            other=0.0,
        )
        z_0 = z_0.to(tl.float32)
        z_1 = tl.load(
            z_ptr + t0 * stride_z_rows + c0 + BLOCK_D_0 + t[:, None] * stride_z_rows + d_1[None, :],
            mask=t_in[:, None] & d_in_1[None, :],
            other=0.0,
        )
        z_1 = z_1.to(tl.float32)
    gated_0 = x_0
    if HAS_Z:
        gated_0 = x_0 * z_0 * sigmoid(z_0)
    mean_sum = tl.sum(gated_0, axis=1)
    gated_1 = x_1
    if HAS_Z:
        gated_1 = x_1 * z_1 * sigmoid(z_1)
    mean_sum_more = tl.sum(gated_1, axis=1)
    mean_sum = mean_sum + mean_sum_more
    mean = mean_sum / size
    centred_0 = tl.where(d_in_0[None, :], gated_0 - mean[:, None], 0.0)
    square_0 = centred_0 * centred_0
    variance_sum = tl.sum(square_0, axis=1)
    centred_1 = tl.where(d_in_1[None, :], gated_1 - mean[:, None], 0.0)
    square_1 = centred_1 * centred_1
    variance_sum_more = tl.sum(square_1, axis=1)
    variance_sum = variance_sum + variance_sum_more
    variance = variance_sum / size
    scale = tl.where(t_in, tl.rsqrt(variance + eps), 0.0)
    normed_0 = centred_0 * scale[:, None]
    weight_0 = tl.load(weight_ptr + c0 + d_0, mask=d_in_0, other=0.0).to(tl.float32)  # [BLOCK_D_0]
    weighted_0 = normed_0 * weight_0[None, :]
    if HAS_BIAS:
        bias_0 = tl.load(bias_ptr + c0 + d_0, mask=d_in_0, other=0.0).to(tl.float32)  # [BLOCK_D_0]
        weighted_0 = bias_0[None, :] + weighted_0
    tl.store(
        y_ptr + t0 * stride_y_rows + c0 + t[:, None] * stride_y_rows + d_0[None, :],
        weighted_0,
        mask=t_in[:, None] & d_in_0[None, :],
    )
    normed_1 = centred_1 * scale[:, None]
    weight_1 = tl.load(weight_ptr + c0 + BLOCK_D_0 + d_1, mask=d_in_1, other=0.0).to(tl.float32)  # [BLOCK_D_1]
    weighted_1 = normed_1 * weight_1[None, :]
    if HAS_BIAS:
        bias_1 = tl.load(bias_ptr + c0 + BLOCK_D_0 + d_1, mask=d_in_1, other=0.0).to(tl.float32)  # [BLOCK_D_1]
        weighted_1 = bias_1[None, :] + weighted_1
    tl.store(
        y_ptr + t0 * stride_y_rows + c0 + BLOCK_D_0 + t[:, None] * stride_y_rows + d_1[None, :],
        weighted_1,
        mask=t_in[:, None] & d_in_1[None, :],
    )


def grid(rows, ngroups, BLOCK_T, **_):
    """Programs along each axis."""
    return triton.cdiv(rows, BLOCK_T), ngroups
