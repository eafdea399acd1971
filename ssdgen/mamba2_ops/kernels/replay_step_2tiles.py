"""One program makes tiles of y from the state and the kept inputs, and writes the state when no more can be kept.

dt_biased[h] = dt_bias[h] + dt_raw[h]    if HAS_DT_BIAS
dt_positive[h] = softplus(dt_biased[h])    if DT_SOFTPLUS
dt[h] = Min(dt_max, Max(dt_min, dt_positive[h]))
log_decay[h] = A[h]*dt[h]/log(2)
x_weighted[h, p] = dt[h]*x[h, p]
kept_log_decay[h, j] = A[h]*kept_dt[h, j]/log(2)
dA_cs[h, j] = running sum of kept_log_decay[h, j] over j
dA_last[h] = last dA_cs[h, j]
left_decay[h] = 2**Min(0, dA_last[h] + log_decay[h])
weights[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h] + log_decay[h])*kept_dt[h, j]
carried[h, p] = left_decay[h]*scale[h, p]
y_terms[h, p, n] = C[n]*stored[h, p, n]
y_state[h, p] = sum over n of y_terms[h, p, n]
kept_scores[h, j] = kept_CB[j]*weights[h, j]
y_kept_terms[h, j, p] = kept_scores[h, j]*kept_x[h, j, p]
y_kept[h, p] = sum over j of y_kept_terms[h, j, p]
y_ssm[h, p] = CB*x_weighted[h, p] + carried[h, p]*y_state[h, p] + y_kept[h, p]
x_kept[h, j, p] = kept_x[h, j, p]*weights[h, j]
kept_added[h, p, n] = sum over j of x_kept[h, j, p] * kept_B[j, n]
kept_state[h, p, n] = kept_added[h, p, n]
state_out[h, p, n] = B[n]*x_weighted[h, p] + carried[h, p]*stored[h, p, n] + kept_state[h, p, n]
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
def replay_step_2tiles(
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
    held_ptr,  # [batch]
    CB_ptr,  # [batch, ngroups]
    kept_CB_ptr,  # [batch, ngroups, block_k]
    kept_x_ptr,  # [nslots, nheads, kept, headdim]
    kept_dt_ptr,  # [nslots, nheads, kept]
    kept_B_ptr,  # [nslots, ngroups, kept, dstate]
    new_x_ptr,  # [nslots, nheads, kept, headdim]
    new_dt_ptr,  # [nslots, nheads, kept]
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
    ngroups,
    pad_slot_id,
    group_heads,
    dt_min,
    dt_max,
    stored_step,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    KEPT: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    RANDOM: tl.constexpr,
    D_BY_HEAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    p_blocks = HEADDIM // (2 * BLOCK_P)
    p0 = tl.cast(tl.program_id(0) % p_blocks * (2 * BLOCK_P), tl.int64)
    group = tl.cast(tl.program_id(1), tl.int64)
    head = tl.cast(group * group_heads + tl.program_id(0) // p_blocks, tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
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
    if EARLY:
        tl.extra.cuda.gdc_wait()
    held = tl.load(held_ptr + b)
    k_in = k < held
    kept_x_0 = tl.load(
        kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0 + k[:, None] * HEADDIM + p[None, :],
        mask=k_in[:, None],
        other=0.0,
    )
    kept_x_1_base = kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0 + BLOCK_P
    kept_x_1 = tl.load(kept_x_1_base + k[:, None] * HEADDIM + p[None, :], mask=k_in[:, None], other=0.0)
    tl.debug_barrier()
    A = tl.load(A_ptr + head * stride_A_nheads).to(tl.float32)
    kept_dt = tl.load(kept_dt_ptr + (slot * nheads + head) * KEPT + k, mask=k_in, other=0.0)  # [BLOCK_K]
    dt = tl.load(dt_ptr + b * stride_dt_batch + head * stride_dt_nheads).to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head * stride_dt_bias_nheads).to(tl.float32)
    kept_CB = tl.load(kept_CB_ptr + (b * ngroups + group) * BLOCK_K + k)  # [BLOCK_K]
    CB = tl.load(CB_ptr + b * ngroups + group)
    if D_BY_HEAD:
        D_head = tl.load(D_head_ptr + head * stride_D_head_nheads).to(tl.float32)
    state_0 = widen(state_0, FORMAT)
    kept_log_decay = tl.where(k_in, kept_dt * A * 1.4426950408889634, 0.0)
    dA_last = tl.sum(kept_log_decay, axis=0)
    if HAS_DT_BIAS:
        dt = dt + dt_bias
    if DT_SOFTPLUS:
        dt = softplus(dt)
    dt = minimum(dt_max, maximum(dt, dt_min))
    log_decay = A * dt * 1.4426950408889634
    left_decay = decay(dA_last + log_decay)
    carried_0 = scale_0 * left_decay
    x_weighted_0 = x_0.to(tl.float32) * dt
    dA_cs = tl.cumsum(kept_log_decay, axis=0)
    weights = kept_dt * decay(dA_last + log_decay - dA_cs)
    kept_scores = kept_CB * weights
    y_kept_terms_0 = kept_x_0.to(tl.float32) * kept_scores[:, None]
    y_kept_0 = tl.sum(y_kept_terms_0, axis=0)
    y_terms_0 = state_0 * C.to(tl.float32)[None, :]
    y_state_0 = tl.sum(y_terms_0, axis=1)
    y_0 = y_kept_0 + x_weighted_0 * CB + carried_0 * y_state_0
    if D_BY_HEAD:
        y_0 = y_0 + x_0.to(tl.float32) * D_head
    if HAS_D:
        y_0 = y_0 + D_0 * x_0.to(tl.float32)
    if HAS_Z:
        y_0 = y_0 * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + p, y_0)
    state_1 = widen(state_1, FORMAT)
    carried_1 = scale_1 * left_decay
    x_weighted_1 = x_1.to(tl.float32) * dt
    y_kept_terms_1 = kept_x_1.to(tl.float32) * kept_scores[:, None]
    y_kept_1 = tl.sum(y_kept_terms_1, axis=0)
    y_terms_1 = state_1 * C.to(tl.float32)[None, :]
    y_state_1 = tl.sum(y_terms_1, axis=1)
    y_1 = y_kept_1 + x_weighted_1 * CB + carried_1 * y_state_1
    if D_BY_HEAD:
        y_1 = y_1 + x_1.to(tl.float32) * D_head
    if HAS_D:
        y_1 = y_1 + D_1 * x_1.to(tl.float32)
    if HAS_Z:
        y_1 = y_1 * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + BLOCK_P + p, y_1)
    if held >= KEPT:
        state_0_again_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
        state_0_again = tl.load(state_0_again_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
        state_0 = widen(state_0_again, FORMAT)
        kept_x_0_again_base = kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0
        kept_x_0_again = tl.load(kept_x_0_again_base + k[:, None] * HEADDIM + p[None, :], mask=k_in[:, None], other=0.0)
        B = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + n)  # [BLOCK_N]
        x_kept_0 = kept_x_0_again.to(tl.float32) * weights[:, None]
        kept_B = tl.load(
            kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + k[:, None] * DSTATE + n[None, :],
            mask=k_in[:, None],
            other=0.0,
        )
        x_kept_0_rest = x_kept_0 - x_kept_0.to(DOT).to(tl.float32)
        kept_added_0 = tl.dot(tl.trans(x_kept_0).to(DOT), kept_B, input_precision=PRECISION)
        kept_added_0 = tl.dot(tl.trans(x_kept_0_rest).to(DOT), kept_B, acc=kept_added_0, input_precision=PRECISION)
        state_0 = kept_added_0 + B.to(tl.float32)[None, :] * x_weighted_0[:, None] + state_0 * carried_0[:, None]
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
        state_1_again_base = (
            state_ptr + slot * stride_state_nslots + head * stride_state_nheads + (p0 + BLOCK_P) * DSTATE
        )
        state_1_again = tl.load(state_1_again_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
        state_1 = widen(state_1_again, FORMAT)
        kept_x_1_again_base = kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0 + BLOCK_P
        kept_x_1_again = tl.load(kept_x_1_again_base + k[:, None] * HEADDIM + p[None, :], mask=k_in[:, None], other=0.0)
        x_kept_1 = kept_x_1_again.to(tl.float32) * weights[:, None]
        x_kept_1_rest = x_kept_1 - x_kept_1.to(DOT).to(tl.float32)
        kept_added_1 = tl.dot(tl.trans(x_kept_1).to(DOT), kept_B, input_precision=PRECISION)
        kept_added_1 = tl.dot(tl.trans(x_kept_1_rest).to(DOT), kept_B, acc=kept_added_1, input_precision=PRECISION)
        state_1 = kept_added_1 + B.to(tl.float32)[None, :] * x_weighted_1[:, None] + state_1 * carried_1[:, None]
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
    else:
        tl.store(new_x_ptr + ((slot * nheads + head) * KEPT + held) * HEADDIM + p0 + p, x_0)
        tl.store(new_x_ptr + ((slot * nheads + head) * KEPT + held) * HEADDIM + p0 + BLOCK_P + p, x_1)
        if p0 == 0:
            tl.store(new_dt_ptr + (slot * nheads + head) * KEPT + held, dt)


def grid(batch, ngroups, group_heads, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return group_heads * (HEADDIM // (2 * BLOCK_P)), ngroups, batch
