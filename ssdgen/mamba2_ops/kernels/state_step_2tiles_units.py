"""One program advances tiles of rows of a head's state by one token.

dt_biased[h] = dt_bias[h] + dt_raw[h]    if HAS_DT_BIAS
dt_positive[h] = softplus(dt_biased[h])    if DT_SOFTPLUS
dt[h] = Min(dt_max, Max(dt_min, dt_positive[h]))
log_decay[h] = A[h]*dt[h]/log(2)
centre_decay[h] = 2**Min(0, log_decay[h])
x_weighted[h, p] = dt[h]*x[h, p]
carried[h, p] = Max(1.0e-20, centre_decay[h]*scale[h, p])
unit_root[h, p] = rsqrt(carried[h, p])
x_units[h, p] = unit_root[h, p]**2*x_weighted[h, p]
in_units[h, p, n] = B[n]*x_units[h, p] + stored[h, p, n]
y_terms[h, p, n] = C[n]*in_units[h, p, n]
y_units[h, p] = sum over n of y_terms[h, p, n]
y_ssm[h, p] = carried[h, p]*y_units[h, p]
largest[h, p] = largest over n of |in_units[h, p, n]|
step_units[h, p] = stored_step*Max(1.0e-30, largest[h, p])
step_root[h, p] = rsqrt(step_units[h, p])
inverse_scale[h, p] = step_root[h, p]**2
state_scaled[h, p, n] = in_units[h, p, n]*inverse_scale[h, p]
y_own[h, p] = D_head[h]*x[h, p] + y_ssm[h, p]    if D_BY_HEAD
y_skip[h, p] = D[h, p]*x[h, p] + y_own[h, p]    if HAS_D
y[h, p] = sigmoid(z[h, p])*y_skip[h, p]*z[h, p]    if HAS_Z
"""

import triton
import triton.language as tl

from .functions import decay, maximum, minimum, softplus
from .storage_functions import narrow, widen


@triton.jit
def state_step_2tiles_units(
    state_ptr,  # [nslots, nheads, headdim, dstate]
    state_scale_ptr,  # [nslots, nheads, headdim], if HAS_SCALE
    state_batch_indices_ptr,  # [batch], if HAS_SLOTS
    seed_ptr,  # [1], if RANDOM
    x_ptr,  # [batch, tokens, nheads, headdim]
    B_ptr,  # [batch, tokens, ngroups, dstate]
    C_ptr,  # [batch, tokens, ngroups, dstate]
    dt_ptr,  # [batch, tokens, nheads]
    A_ptr,  # [nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, tokens, nheads, headdim], if HAS_Z
    D_head_ptr,  # [nheads], if D_BY_HEAD
    y_ptr,  # [batch, tokens, nheads, headdim]
    stride_state_nslots: tl.int64,
    stride_state_nheads: tl.int64,
    stride_x_batch: tl.int64,
    stride_x_tokens: tl.int64,
    stride_x_nheads: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_tokens: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_tokens: tl.int64,
    stride_C_ngroups: tl.int64,
    stride_dt_batch: tl.int64,
    stride_dt_tokens: tl.int64,
    stride_dt_nheads: tl.int64,
    stride_A_nheads: tl.int64,
    stride_dt_bias_nheads: tl.int64,
    stride_D_nheads: tl.int64,
    stride_D_headdim: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_tokens: tl.int64,
    stride_z_nheads: tl.int64,
    stride_D_head_nheads: tl.int64,
    stride_y_batch: tl.int64,
    stride_y_tokens: tl.int64,
    stride_y_nheads: tl.int64,
    nslots,
    nheads,
    pad_slot_id,
    group_heads,
    dt_min,
    dt_max,
    stored_step,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    RANDOM: tl.constexpr,
    D_BY_HEAD: tl.constexpr,
    STORE_STATE: tl.constexpr,
    EARLY: tl.constexpr,
):
    p_blocks = HEADDIM // (2 * BLOCK_P)
    p0 = tl.cast(tl.program_id(0) % p_blocks * (2 * BLOCK_P), tl.int64)
    group = tl.cast(tl.program_id(1), tl.int64)
    head = tl.cast(group * group_heads + tl.program_id(0) // p_blocks, tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            nothing = tl.zeros([BLOCK_P], dtype=tl.float32)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + BLOCK_P + p, nothing)
            return
    else:
        slot = b
    if RANDOM:
        seed = tl.load(seed_ptr)
    else:
        seed = 0
    row = (slot * nheads + head) * HEADDIM
    state_0_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
    state_0 = tl.load(state_0_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    state_1_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + BLOCK_P) * DSTATE
    state_1 = tl.load(state_1_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_0 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p)  # [BLOCK_P]
    else:
        scale_0 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    if HAS_SCALE:
        scale_1 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_1 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    B = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + n)  # [BLOCK_N]
    x_0 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + p)  # [BLOCK_P]
    C = tl.load(C_ptr + b * stride_C_batch + group * stride_C_ngroups + n)  # [BLOCK_N]
    if HAS_D:
        D_0 = tl.load(D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim).to(tl.float32)
    if HAS_Z:
        z_0 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + p)  # [BLOCK_P]
    x_1 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_1 = tl.load(D_ptr + head * stride_D_nheads + (p0 + BLOCK_P) * stride_D_headdim + p * stride_D_headdim)
        D_1 = D_1.to(tl.float32)
    if HAS_Z:
        z_1 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + BLOCK_P + p)  # [BLOCK_P]
    tl.debug_barrier()
    A = tl.load(A_ptr + head * stride_A_nheads).to(tl.float32)
    dt = tl.load(dt_ptr + b * stride_dt_batch + head * stride_dt_nheads).to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head * stride_dt_bias_nheads).to(tl.float32)
    if D_BY_HEAD:
        D_head = tl.load(D_head_ptr + head * stride_D_head_nheads).to(tl.float32)
    state_0 = widen(state_0, FORMAT)
    if HAS_DT_BIAS:
        dt = dt + dt_bias
    if DT_SOFTPLUS:
        dt = softplus(dt)
    dt = minimum(dt_max, maximum(dt, dt_min))
    log_decay = A * dt * 1.4426950408889634
    centre_decay = decay(log_decay)
    carried_0 = maximum(scale_0 * centre_decay, 1e-20)
    unit_root_0 = tl.rsqrt(carried_0)
    x_weighted_0 = x_0.to(tl.float32) * dt
    x_units_0 = x_weighted_0 * unit_root_0 * unit_root_0
    state_0 = state_0 + B.to(tl.float32)[None, :] * x_units_0[:, None]
    y_terms_0 = state_0 * C.to(tl.float32)[None, :]
    y_units_0 = tl.sum(y_terms_0, axis=1)
    y_0 = carried_0 * y_units_0
    if D_BY_HEAD:
        y_0 = y_0 + x_0.to(tl.float32) * D_head
    if HAS_D:
        y_0 = y_0 + D_0 * x_0.to(tl.float32)
    if HAS_Z:
        y_0 = y_0 * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + p, y_0)
    if STORE_STATE:
        largest_0 = tl.reduce(tl.abs(state_0), 1, maximum)
        step_units_0 = maximum(largest_0, 1e-30) * stored_step
        scale_out_0 = carried_0 * step_units_0
        tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p, scale_out_0)
        step_root_0 = tl.rsqrt(step_units_0)
        inverse_scale_0 = step_root_0 * step_root_0
        state_scaled_0 = state_0 * inverse_scale_0[:, None]
        stored_0 = narrow(state_scaled_0, row + p0, 0, 0, seed, FORMAT, RANDOM)
        state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
        tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_0)
    state_1 = widen(state_1, FORMAT)
    carried_1 = maximum(scale_1 * centre_decay, 1e-20)
    unit_root_1 = tl.rsqrt(carried_1)
    x_weighted_1 = x_1.to(tl.float32) * dt
    x_units_1 = x_weighted_1 * unit_root_1 * unit_root_1
    state_1 = state_1 + B.to(tl.float32)[None, :] * x_units_1[:, None]
    y_terms_1 = state_1 * C.to(tl.float32)[None, :]
    y_units_1 = tl.sum(y_terms_1, axis=1)
    y_1 = carried_1 * y_units_1
    if D_BY_HEAD:
        y_1 = y_1 + x_1.to(tl.float32) * D_head
    if HAS_D:
        y_1 = y_1 + D_1 * x_1.to(tl.float32)
    if HAS_Z:
        y_1 = y_1 * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + BLOCK_P + p, y_1)
    if STORE_STATE:
        largest_1 = tl.reduce(tl.abs(state_1), 1, maximum)
        step_units_1 = maximum(largest_1, 1e-30) * stored_step
        scale_out_1 = carried_1 * step_units_1
        tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + BLOCK_P + p, scale_out_1)
        step_root_1 = tl.rsqrt(step_units_1)
        inverse_scale_1 = step_root_1 * step_root_1
        state_scaled_1 = state_1 * inverse_scale_1[:, None]
        stored_1 = narrow(state_scaled_1, row + p0 + BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
        state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + BLOCK_P) * DSTATE
        tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_1)


def grid(batch, ngroups, group_heads, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return group_heads * (HEADDIM // (2 * BLOCK_P)), ngroups, batch
