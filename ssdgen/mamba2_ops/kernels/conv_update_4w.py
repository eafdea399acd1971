"""One program convolves the new tokens of a row, one after the other, for a tile of channels. A row whose slot is none
is padding: its result is zero.

own[t, d] = weight_0[d]*x[t, d]
biased[t, d] = bias[d] + own[t, d]    if HAS_BIAS
summed[t, d] = biased[t, d] + tap_1[t, d]*weight_1[d] + tap_2[t, d]*weight_2[d] + tap_3[t, d]*weight_3[d]
active[t, d] = sigmoid(summed[t, d])*summed[t, d]    if SILU
"""

import triton
import triton.language as tl

from .gate_functions import sigmoid


@triton.jit
def conv_update_4w(
    x_ptr,  # [batch, dim, tokens]
    weight_ptr,  # [dim, width]
    bias_ptr,  # [dim], if HAS_BIAS
    conv_state_ptr,  # [slots, dim, state_len]
    cache_seqlens_ptr,  # [batch], if HAS_RING
    conv_state_indices_ptr,  # [batch], if HAS_INDICES
    y_ptr,  # [batch, dim, tokens]
    stride_x_batch: tl.int64,
    stride_x_dim: tl.int64,
    stride_x_tokens: tl.int64,
    stride_weight_dim: tl.int64,
    stride_weight_width: tl.int64,
    stride_conv_state_slots: tl.int64,
    stride_conv_state_dim: tl.int64,
    stride_conv_state_state_len: tl.int64,
    stride_y_batch: tl.int64,
    stride_y_dim: tl.int64,
    stride_y_tokens: tl.int64,
    slots,
    dim,
    tokens,
    state_len,
    BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    HAS_RING: tl.constexpr,
    HAS_INDICES: tl.constexpr,
):
    d0 = tl.program_id(0) * BLOCK_D
    d = tl.arange(0, BLOCK_D)
    d_in = d < dim - d0
    b = tl.cast(tl.program_id(1), tl.int64)
    if HAS_INDICES:
        slot = tl.load(conv_state_indices_ptr + b).to(tl.int64)
    else:
        slot = b
    there = (d < dim - d0) & (slot >= 0) & (slot < slots)
    if HAS_RING:
        cached = tl.load(cache_seqlens_ptr + b).to(tl.int64)
        newest = (cached % state_len + state_len) % state_len + state_len
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
    if HAS_RING:
        at_m3 = (newest - 3) % state_len
    else:
        at_m3 = state_len - 3
    x_m3_base = (
        conv_state_ptr
        + slot * stride_conv_state_slots
        + d0 * stride_conv_state_dim
        + at_m3 * stride_conv_state_state_len
    )
    x_m3 = tl.load(x_m3_base + d * stride_conv_state_dim, mask=there, other=0.0).to(tl.float32)  # [BLOCK_D]
    if HAS_RING:
        at_m2 = (newest - 2) % state_len
    else:
        at_m2 = state_len - 2
    x_m2_base = (
        conv_state_ptr
        + slot * stride_conv_state_slots
        + d0 * stride_conv_state_dim
        + at_m2 * stride_conv_state_state_len
    )
    x_m2 = tl.load(x_m2_base + d * stride_conv_state_dim, mask=there, other=0.0).to(tl.float32)  # [BLOCK_D]
    if HAS_RING:
        at_m1 = (newest - 1) % state_len
    else:
        at_m1 = state_len - 1
    x_m1_base = (
        conv_state_ptr
        + slot * stride_conv_state_slots
        + d0 * stride_conv_state_dim
        + at_m1 * stride_conv_state_state_len
    )
    x_m1 = tl.load(x_m1_base + d * stride_conv_state_dim, mask=there, other=0.0).to(tl.float32)  # [BLOCK_D]
    x_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim
    y_base = y_ptr + b * stride_y_batch + d0 * stride_y_dim
    conv_state_base = conv_state_ptr + slot * stride_conv_state_slots + d0 * stride_conv_state_dim
    for t in range(tokens):
        x = tl.load(x_base + t * stride_x_tokens + d * stride_x_dim, mask=d_in, other=0.0).to(tl.float32)  # [BLOCK_D]
        own = weight_0 * x
        if HAS_BIAS:
            own = bias + own
        summed = own + weight_1 * x_m1 + weight_2 * x_m2 + weight_3 * x_m3
        if SILU:
            summed = summed * sigmoid(summed)
        summed = tl.where(there, summed, 0.0)
        tl.store(y_base + t * stride_y_tokens + d * stride_y_dim, summed, mask=d_in)
        if HAS_RING:
            tl.store(
                conv_state_base + ((newest + t) % state_len) * stride_conv_state_state_len + d * stride_conv_state_dim,
                x,
                mask=there,
            )
        x_m3 = x_m2
        x_m2 = x_m1
        x_m1 = x
    if not HAS_RING:
        conv_state_base = conv_state_ptr + slot * stride_conv_state_slots + d0 * stride_conv_state_dim
        x_base = x_ptr + b * stride_x_batch + d0 * stride_x_dim
        for place in range(state_len):
            stays = (d < dim - d0) & (slot >= 0) & (slot < slots) & (place + tokens < state_len)
            old = tl.load(
                conv_state_base + (place + tokens) * stride_conv_state_state_len + d * stride_conv_state_dim,
                mask=stays,
                other=0.0,
            )
            old = old.to(tl.float32)
            enters = (d < dim - d0) & (slot >= 0) & (slot < slots) & (place + tokens >= state_len)
            new = tl.load(
                x_base + (place + tokens - state_len) * stride_x_tokens + d * stride_x_dim, mask=enters, other=0.0
            )
            new = new.to(tl.float32)
            new = new + old
            tl.store(conv_state_base + place * stride_conv_state_state_len + d * stride_conv_state_dim, new, mask=there)


def grid(batch, dim, BLOCK_D, **_):
    """Programs along each axis."""
    return triton.cdiv(dim, BLOCK_D), batch
