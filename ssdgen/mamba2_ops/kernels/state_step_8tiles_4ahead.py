"""One program advances tiles of rows of a head's state by one token.

dt_biased[h] = dt_bias[h] + dt_raw[h]    if HAS_DT_BIAS
dt_positive[h] = softplus(dt_biased[h])    if DT_SOFTPLUS
dt[h] = Min(dt_max, Max(dt_min, dt_positive[h]))
log_decay[h] = A[h]*dt[h]/log(2)
centre_decay[h] = 2**Min(0, log_decay[h])
x_weighted[h, p] = dt[h]*x[h, p]
carried[h, p] = centre_decay[h]*scale[h, p]
state_out[h, p, n] = B[n]*x_weighted[h, p] + carried[h, p]*stored[h, p, n]
y_terms[h, p, n] = C[n]*state_out[h, p, n]
y_ssm[h, p] = sum over n of y_terms[h, p, n]
y_own[h, p] = D_head[h]*x[h, p] + y_ssm[h, p]    if D_BY_HEAD
y_skip[h, p] = D[h, p]*x[h, p] + y_own[h, p]    if HAS_D
y[h, p] = sigmoid(z[h, p])*y_skip[h, p]*z[h, p]    if HAS_Z
largest[h, p] = largest over n of |state_out[h, p, n]|
scale_out[h, p] = stored_step*Max(1.0e-30, largest[h, p])
inverse_scale[h, p] = 1/scale_out[h, p]
state_scaled[h, p, n] = inverse_scale[h, p]*state_out[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay, maximum, minimum, softplus
from .storage_functions import narrow, widen


@triton.jit
def state_step_8tiles_4ahead(
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
    p_blocks = HEADDIM // (8 * BLOCK_P)
    p0 = tl.cast(tl.program_id(0) % p_blocks * (8 * BLOCK_P), tl.int64)
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
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 2 * BLOCK_P + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 3 * BLOCK_P + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 4 * BLOCK_P + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 5 * BLOCK_P + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 6 * BLOCK_P + p, nothing)
            tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 7 * BLOCK_P + p, nothing)
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
    state_2_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 2 * BLOCK_P) * DSTATE
    state_2 = tl.load(state_2_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    state_3_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 3 * BLOCK_P) * DSTATE
    state_3 = tl.load(state_3_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_0 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p)  # [BLOCK_P]
    else:
        scale_0 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    if HAS_SCALE:
        scale_1 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_1 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    if HAS_SCALE:
        scale_2 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 2 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_2 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    if HAS_SCALE:
        scale_3 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 3 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_3 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
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
    x_2 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 2 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_2_base = D_ptr + head * stride_D_nheads + (p0 + 2 * BLOCK_P) * stride_D_headdim
        D_2 = tl.load(D_2_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_2 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 2 * BLOCK_P + p)  # [BLOCK_P]
    x_3 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 3 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_3_base = D_ptr + head * stride_D_nheads + (p0 + 3 * BLOCK_P) * stride_D_headdim
        D_3 = tl.load(D_3_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_3 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 3 * BLOCK_P + p)  # [BLOCK_P]
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
    carried_0 = scale_0 * centre_decay
    x_weighted_0 = x_0.to(tl.float32) * dt
    state_0 = B.to(tl.float32)[None, :] * x_weighted_0[:, None] + state_0 * carried_0[:, None]
    y_terms_0 = state_0 * C.to(tl.float32)[None, :]
    y_0 = tl.sum(y_terms_0, axis=1)
    if D_BY_HEAD:
        y_0 = y_0 + x_0.to(tl.float32) * D_head
    if HAS_D:
        y_0 = y_0 + D_0 * x_0.to(tl.float32)
    if HAS_Z:
        y_0 = y_0 * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + p, y_0)
    if STORE_STATE:
        if HAS_SCALE:
            largest_0 = tl.reduce(tl.abs(state_0), 1, maximum)
            scale_out_0 = maximum(largest_0, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p, scale_out_0)
            inverse_scale_0 = 1.0 / scale_out_0
            state_scaled_0 = state_0 * inverse_scale_0[:, None]
            stored_0 = narrow(state_scaled_0, row + p0, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_0)
        else:
            stored_0 = narrow(state_0, row + p0, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_0)
    state_4_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 4 * BLOCK_P) * DSTATE
    state_4 = tl.load(state_4_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_4 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 4 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_4 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    x_4 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 4 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_4_base = D_ptr + head * stride_D_nheads + (p0 + 4 * BLOCK_P) * stride_D_headdim
        D_4 = tl.load(D_4_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_4 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 4 * BLOCK_P + p)  # [BLOCK_P]
    tl.debug_barrier()
    state_1 = widen(state_1, FORMAT)
    carried_1 = scale_1 * centre_decay
    x_weighted_1 = x_1.to(tl.float32) * dt
    state_1 = B.to(tl.float32)[None, :] * x_weighted_1[:, None] + state_1 * carried_1[:, None]
    y_terms_1 = state_1 * C.to(tl.float32)[None, :]
    y_1 = tl.sum(y_terms_1, axis=1)
    if D_BY_HEAD:
        y_1 = y_1 + x_1.to(tl.float32) * D_head
    if HAS_D:
        y_1 = y_1 + D_1 * x_1.to(tl.float32)
    if HAS_Z:
        y_1 = y_1 * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + BLOCK_P + p, y_1)
    if STORE_STATE:
        if HAS_SCALE:
            largest_1 = tl.reduce(tl.abs(state_1), 1, maximum)
            scale_out_1 = maximum(largest_1, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + BLOCK_P + p, scale_out_1)
            inverse_scale_1 = 1.0 / scale_out_1
            state_scaled_1 = state_1 * inverse_scale_1[:, None]
            stored_1 = narrow(state_scaled_1, row + p0 + BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + BLOCK_P) * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_1)
        else:
            stored_1 = narrow(state_1, row + p0 + BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + BLOCK_P) * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_1)
    state_5_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 5 * BLOCK_P) * DSTATE
    state_5 = tl.load(state_5_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_5 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 5 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_5 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    x_5 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 5 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_5_base = D_ptr + head * stride_D_nheads + (p0 + 5 * BLOCK_P) * stride_D_headdim
        D_5 = tl.load(D_5_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_5 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 5 * BLOCK_P + p)  # [BLOCK_P]
    tl.debug_barrier()
    state_2 = widen(state_2, FORMAT)
    carried_2 = scale_2 * centre_decay
    x_weighted_2 = x_2.to(tl.float32) * dt
    state_2 = B.to(tl.float32)[None, :] * x_weighted_2[:, None] + state_2 * carried_2[:, None]
    y_terms_2 = state_2 * C.to(tl.float32)[None, :]
    y_2 = tl.sum(y_terms_2, axis=1)
    if D_BY_HEAD:
        y_2 = y_2 + x_2.to(tl.float32) * D_head
    if HAS_D:
        y_2 = y_2 + D_2 * x_2.to(tl.float32)
    if HAS_Z:
        y_2 = y_2 * z_2.to(tl.float32) * tl.sigmoid(z_2.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 2 * BLOCK_P + p, y_2)
    if STORE_STATE:
        if HAS_SCALE:
            largest_2 = tl.reduce(tl.abs(state_2), 1, maximum)
            scale_out_2 = maximum(largest_2, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 2 * BLOCK_P + p, scale_out_2)
            inverse_scale_2 = 1.0 / scale_out_2
            state_scaled_2 = state_2 * inverse_scale_2[:, None]
            stored_2 = narrow(state_scaled_2, row + p0 + 2 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 2 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_2)
        else:
            stored_2 = narrow(state_2, row + p0 + 2 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 2 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_2)
    state_6_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 6 * BLOCK_P) * DSTATE
    state_6 = tl.load(state_6_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_6 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 6 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_6 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    x_6 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 6 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_6_base = D_ptr + head * stride_D_nheads + (p0 + 6 * BLOCK_P) * stride_D_headdim
        D_6 = tl.load(D_6_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_6 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 6 * BLOCK_P + p)  # [BLOCK_P]
    tl.debug_barrier()
    state_3 = widen(state_3, FORMAT)
    carried_3 = scale_3 * centre_decay
    x_weighted_3 = x_3.to(tl.float32) * dt
    state_3 = B.to(tl.float32)[None, :] * x_weighted_3[:, None] + state_3 * carried_3[:, None]
    y_terms_3 = state_3 * C.to(tl.float32)[None, :]
    y_3 = tl.sum(y_terms_3, axis=1)
    if D_BY_HEAD:
        y_3 = y_3 + x_3.to(tl.float32) * D_head
    if HAS_D:
        y_3 = y_3 + D_3 * x_3.to(tl.float32)
    if HAS_Z:
        y_3 = y_3 * z_3.to(tl.float32) * tl.sigmoid(z_3.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 3 * BLOCK_P + p, y_3)
    if STORE_STATE:
        if HAS_SCALE:
            largest_3 = tl.reduce(tl.abs(state_3), 1, maximum)
            scale_out_3 = maximum(largest_3, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 3 * BLOCK_P + p, scale_out_3)
            inverse_scale_3 = 1.0 / scale_out_3
            state_scaled_3 = state_3 * inverse_scale_3[:, None]
            stored_3 = narrow(state_scaled_3, row + p0 + 3 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 3 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_3)
        else:
            stored_3 = narrow(state_3, row + p0 + 3 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 3 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_3)
    state_7_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 7 * BLOCK_P) * DSTATE
    state_7 = tl.load(state_7_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    if HAS_SCALE:
        scale_7 = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 7 * BLOCK_P + p)  # [BLOCK_P]
    else:
        scale_7 = tl.full([BLOCK_P], 1.0, dtype=tl.float32)
    x_7 = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + 7 * BLOCK_P + p)  # [BLOCK_P]
    if HAS_D:
        D_7_base = D_ptr + head * stride_D_nheads + (p0 + 7 * BLOCK_P) * stride_D_headdim
        D_7 = tl.load(D_7_base + p * stride_D_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_Z:
        z_7 = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + 7 * BLOCK_P + p)  # [BLOCK_P]
    tl.debug_barrier()
    state_4 = widen(state_4, FORMAT)
    carried_4 = scale_4 * centre_decay
    x_weighted_4 = x_4.to(tl.float32) * dt
    state_4 = B.to(tl.float32)[None, :] * x_weighted_4[:, None] + state_4 * carried_4[:, None]
    y_terms_4 = state_4 * C.to(tl.float32)[None, :]
    y_4 = tl.sum(y_terms_4, axis=1)
    if D_BY_HEAD:
        y_4 = y_4 + x_4.to(tl.float32) * D_head
    if HAS_D:
        y_4 = y_4 + D_4 * x_4.to(tl.float32)
    if HAS_Z:
        y_4 = y_4 * z_4.to(tl.float32) * tl.sigmoid(z_4.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 4 * BLOCK_P + p, y_4)
    if STORE_STATE:
        if HAS_SCALE:
            largest_4 = tl.reduce(tl.abs(state_4), 1, maximum)
            scale_out_4 = maximum(largest_4, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 4 * BLOCK_P + p, scale_out_4)
            inverse_scale_4 = 1.0 / scale_out_4
            state_scaled_4 = state_4 * inverse_scale_4[:, None]
            stored_4 = narrow(state_scaled_4, row + p0 + 4 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 4 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_4)
        else:
            stored_4 = narrow(state_4, row + p0 + 4 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 4 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_4)
    state_5 = widen(state_5, FORMAT)
    carried_5 = scale_5 * centre_decay
    x_weighted_5 = x_5.to(tl.float32) * dt
    state_5 = B.to(tl.float32)[None, :] * x_weighted_5[:, None] + state_5 * carried_5[:, None]
    y_terms_5 = state_5 * C.to(tl.float32)[None, :]
    y_5 = tl.sum(y_terms_5, axis=1)
    if D_BY_HEAD:
        y_5 = y_5 + x_5.to(tl.float32) * D_head
    if HAS_D:
        y_5 = y_5 + D_5 * x_5.to(tl.float32)
    if HAS_Z:
        y_5 = y_5 * z_5.to(tl.float32) * tl.sigmoid(z_5.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 5 * BLOCK_P + p, y_5)
    if STORE_STATE:
        if HAS_SCALE:
            largest_5 = tl.reduce(tl.abs(state_5), 1, maximum)
            scale_out_5 = maximum(largest_5, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 5 * BLOCK_P + p, scale_out_5)
            inverse_scale_5 = 1.0 / scale_out_5
            state_scaled_5 = state_5 * inverse_scale_5[:, None]
            stored_5 = narrow(state_scaled_5, row + p0 + 5 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 5 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_5)
        else:
            stored_5 = narrow(state_5, row + p0 + 5 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 5 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_5)
    state_6 = widen(state_6, FORMAT)
    carried_6 = scale_6 * centre_decay
    x_weighted_6 = x_6.to(tl.float32) * dt
    state_6 = B.to(tl.float32)[None, :] * x_weighted_6[:, None] + state_6 * carried_6[:, None]
    y_terms_6 = state_6 * C.to(tl.float32)[None, :]
    y_6 = tl.sum(y_terms_6, axis=1)
    if D_BY_HEAD:
        y_6 = y_6 + x_6.to(tl.float32) * D_head
    if HAS_D:
        y_6 = y_6 + D_6 * x_6.to(tl.float32)
    if HAS_Z:
        y_6 = y_6 * z_6.to(tl.float32) * tl.sigmoid(z_6.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 6 * BLOCK_P + p, y_6)
    if STORE_STATE:
        if HAS_SCALE:
            largest_6 = tl.reduce(tl.abs(state_6), 1, maximum)
            scale_out_6 = maximum(largest_6, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 6 * BLOCK_P + p, scale_out_6)
            inverse_scale_6 = 1.0 / scale_out_6
            state_scaled_6 = state_6 * inverse_scale_6[:, None]
            stored_6 = narrow(state_scaled_6, row + p0 + 6 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 6 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_6)
        else:
            stored_6 = narrow(state_6, row + p0 + 6 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 6 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_6)
    state_7 = widen(state_7, FORMAT)
    carried_7 = scale_7 * centre_decay
    x_weighted_7 = x_7.to(tl.float32) * dt
    state_7 = B.to(tl.float32)[None, :] * x_weighted_7[:, None] + state_7 * carried_7[:, None]
    y_terms_7 = state_7 * C.to(tl.float32)[None, :]
    y_7 = tl.sum(y_terms_7, axis=1)
    if D_BY_HEAD:
        y_7 = y_7 + x_7.to(tl.float32) * D_head
    if HAS_D:
        y_7 = y_7 + D_7 * x_7.to(tl.float32)
    if HAS_Z:
        y_7 = y_7 * z_7.to(tl.float32) * tl.sigmoid(z_7.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + 7 * BLOCK_P + p, y_7)
    if STORE_STATE:
        if HAS_SCALE:
            largest_7 = tl.reduce(tl.abs(state_7), 1, maximum)
            scale_out_7 = maximum(largest_7, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + 7 * BLOCK_P + p, scale_out_7)
            inverse_scale_7 = 1.0 / scale_out_7
            state_scaled_7 = state_7 * inverse_scale_7[:, None]
            stored_7 = narrow(state_scaled_7, row + p0 + 7 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 7 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_7)
        else:
            stored_7 = narrow(state_7, row + p0 + 7 * BLOCK_P, 0, 0, seed, FORMAT, RANDOM)
            state_base = (
                state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + 7 * BLOCK_P) * DSTATE
            )
            tl.store(state_base + p[:, None] * DSTATE + n[None, :], stored_7)


def grid(batch, ngroups, group_heads, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return group_heads * (HEADDIM // (8 * BLOCK_P)), ngroups, batch
