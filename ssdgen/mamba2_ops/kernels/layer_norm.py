"""One program normalises some rows: groups of channels.

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
y[t, d] = sigmoid(z[t, d])*biased[t, d]*z[t, d]    if HAS_Z
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def layer_norm(
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
    BLOCK_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    group = tl.program_id(1)
    c0 = group * group_size
    d = tl.arange(0, BLOCK_D)
    d_in = d < group_size
    t = tl.arange(0, BLOCK_T)
    t0 = tl.cast(tl.program_id(0) * BLOCK_T, tl.int64)
    t_in = t < rows - t0
    x = tl.load(
        x_ptr + t0 * stride_x_rows + c0 + t[:, None] * stride_x_rows + d[None, :],
        mask=t_in[:, None] & d_in[None, :],
        other=0.0,
    )
    x = x.to(tl.float32)
    if HAS_Z:
        z = tl.load(
            z_ptr + t0 * stride_z_rows + c0 + t[:, None] * stride_z_rows + d[None, :],
            mask=t_in[:, None] & d_in[None, :],
            other=0.0,
        )
        z = z.to(tl.float32)
    mean_sum = tl.sum(x, axis=1)
    mean = mean_sum / size
    centred = tl.where(d_in[None, :], x - mean[:, None], 0.0)
    square = centred * centred
    variance_sum = tl.sum(square, axis=1)
    variance = variance_sum / size
    scale = tl.where(t_in, tl.rsqrt(variance + eps), 0.0)
    normed = centred * scale[:, None]
    weight = tl.load(weight_ptr + c0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
    weighted = normed * weight[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c0 + d, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
        weighted = bias[None, :] + weighted
    if HAS_Z:
        weighted = weighted * z * sigmoid(z)
    tl.store(
        y_ptr + t0 * stride_y_rows + c0 + t[:, None] * stride_y_rows + d[None, :],
        weighted,
        mask=t_in[:, None] & d_in[None, :],
    )


def grid(rows, ngroups, BLOCK_T, **_):
    """Programs along each axis."""
    return triton.cdiv(rows, BLOCK_T), ngroups
