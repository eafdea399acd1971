"""One program makes rows of a head's y from the state and the kept inputs; when no more can be kept it writes the
state.

dt_biased[h] = dt_bias[h] + dt_raw[h]    if HAS_DT_BIAS
dt_positive[h] = softplus(dt_biased[h])    if DT_SOFTPLUS
dt[h] = Min(dt_max, Max(dt_min, dt_positive[h]))
log_decay[h] = A[h]*dt[h]/log(2)
centre_decay[h] = 2**Min(0, log_decay[h])
state[h, p, n] = scale[h, p]*stored[h, p, n]    if HAS_SCALE
x_weighted[h, p] = dt[h]*x[h, p]
state_out[h, p, n] = B[n]*x_weighted[h, p] + centre_decay[h]*state[h, p, n]
kept_log_decay[h, j] = A[h]*kept_dt[h, j]/log(2)
dA_cs[h, j] = running sum of kept_log_decay[h, j] over j
dA_last[h] = last dA_cs[h, j]
left_decay[h] = 2**Min(0, dA_last[h] + log_decay[h])
y_terms[h, p, n] = C[n]*state[h, p, n]
y_state[h, p] = sum over n of y_terms[h, p, n]
CB_terms[n] = B[n]*C[n]
CB[] = sum over n of CB_terms[n]
kept_CB_terms[j, n] = C[n]*kept_B[j, n]
kept_CB[j] = sum over n of kept_CB_terms[j, n]
kept_scores[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h] + log_decay[h])*kept_CB[j]*kept_dt[h, j]
y_kept_terms[h, j, p] = kept_scores[h, j]*kept_x[h, j, p]
y_kept[h, p] = sum over j of y_kept_terms[h, j, p]
y_ssm[h, p] = CB*x_weighted[h, p] + left_decay[h]*y_state[h, p] + y_kept[h, p]
y_skip[h, p] = D[h, p]*x[h, p] + y_ssm[h, p]    if HAS_D
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
def replay_step_2n(
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
    count_ptr,  # [nslots]
    kept_x_ptr,  # [nslots, nheads, kept, headdim]
    kept_dt_ptr,  # [nslots, nheads, kept]
    kept_B_ptr,  # [nslots, ngroups, kept, dstate]
    new_x_ptr,  # [nslots, nheads, kept, headdim]
    new_dt_ptr,  # [nslots, nheads, kept]
    new_B_ptr,  # [nslots, ngroups, kept, dstate]
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
    stride_y_batch: tl.int64,
    stride_y_tokens: tl.int64,
    stride_y_nheads: tl.int64,
    nslots,
    nheads,
    ngroups,
    pad_slot_id,
    dt_min,
    dt_max,
    stored_step,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    KEPT: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N_0: tl.constexpr,
    BLOCK_N_1: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    RANDOM: tl.constexpr,
):
    p_blocks = HEADDIM // BLOCK_P
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    head = tl.cast(tl.program_id(0) // p_blocks % nheads, tl.int64)
    b = tl.cast(tl.program_id(0) // p_blocks // nheads, tl.int64)
    group = head // (nheads // ngroups)
    p = tl.arange(0, BLOCK_P)
    n_0 = tl.arange(0, BLOCK_N_0)
    n_1 = tl.arange(0, BLOCK_N_1)
    n_1_in = n_1 < DSTATE - BLOCK_N_0
    k = tl.arange(0, BLOCK_K)
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            nothing = tl.zeros([BLOCK_P], dtype=tl.float32)
            y_base = y_ptr + b * stride_y_batch + head * stride_y_nheads + p0
            for t in range(1):
                tl.store(y_base + t * stride_y_tokens + p, nothing)
            return
    else:
        slot = b
    if RANDOM:
        seed = tl.load(seed_ptr)
    else:
        seed = 0
    row = (slot * nheads + head) * HEADDIM + p0
    count = tl.load(count_ptr + slot)
    k_in = k < count
    state_0_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
    state_0 = tl.load(state_0_base + p[:, None] * DSTATE + n_0[None, :])  # [BLOCK_P, BLOCK_N_0]
    state_1_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
    state_1 = tl.load(state_1_base + p[:, None] * DSTATE + n_1[None, :], mask=n_1_in[None, :], other=0)
    A = tl.load(A_ptr + head * stride_A_nheads).to(tl.float32)
    kept_dt = tl.load(kept_dt_ptr + (slot * nheads + head) * KEPT + k, mask=k_in, other=0.0)  # [BLOCK_K]
    dt = tl.load(dt_ptr + b * stride_dt_batch + head * stride_dt_nheads).to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head * stride_dt_bias_nheads).to(tl.float32)
    x = tl.load(x_ptr + b * stride_x_batch + head * stride_x_nheads + p0 + p)  # [BLOCK_P]
    C_0 = tl.load(C_ptr + b * stride_C_batch + group * stride_C_ngroups + n_0)  # [BLOCK_N_0]
    kept_B_0 = tl.load(
        kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + k[:, None] * DSTATE + n_0[None, :],
        mask=k_in[:, None],
        other=0.0,
    )
    C_1 = tl.load(C_ptr + b * stride_C_batch + group * stride_C_ngroups + BLOCK_N_0 + n_1, mask=n_1_in, other=0.0)
    kept_B_1_base = kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + BLOCK_N_0
    kept_B_1 = tl.load(
        kept_B_1_base + k[:, None] * DSTATE + n_1[None, :], mask=k_in[:, None] & n_1_in[None, :], other=0.0
    )
    kept_x = tl.load(
        kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0 + k[:, None] * HEADDIM + p[None, :],
        mask=k_in[:, None],
        other=0.0,
    )
    if HAS_SCALE:
        scale = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p)  # [BLOCK_P]
    B_0 = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + n_0)  # [BLOCK_N_0]
    B_1 = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + BLOCK_N_0 + n_1, mask=n_1_in, other=0.0)
    if HAS_D:
        D = tl.load(D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim).to(tl.float32)
    if HAS_Z:
        z = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + p)  # [BLOCK_P]
    state_0 = widen(state_0, FORMAT)
    state_1 = widen(state_1, FORMAT)
    if HAS_DT_BIAS:
        dt = dt + dt_bias
    if DT_SOFTPLUS:
        dt = softplus(dt)
    dt = minimum(dt_max, maximum(dt, dt_min))
    log_decay = A * dt * 1.4426950408889634
    x_weighted = x.to(tl.float32) * dt
    kept_CB_terms_0 = kept_B_0.to(tl.float32) * C_0.to(tl.float32)[None, :]
    kept_CB = tl.sum(kept_CB_terms_0, axis=1)
    kept_CB_terms_1 = kept_B_1.to(tl.float32) * C_1.to(tl.float32)[None, :]
    kept_CB_more = tl.sum(kept_CB_terms_1, axis=1)
    kept_CB = kept_CB + kept_CB_more
    if HAS_SCALE:
        state_0 = state_0 * scale[:, None]
    y_terms_0 = state_0 * C_0.to(tl.float32)[None, :]
    y_state = tl.sum(y_terms_0, axis=1)
    if HAS_SCALE:
        state_1 = state_1 * scale[:, None]
    y_terms_1 = state_1 * C_1.to(tl.float32)[None, :]
    y_state_more = tl.sum(y_terms_1, axis=1)
    y_state = y_state + y_state_more
    CB_terms_0 = B_0.to(tl.float32) * C_0.to(tl.float32)
    CB = tl.sum(CB_terms_0, axis=0)
    CB_terms_1 = B_1.to(tl.float32) * C_1.to(tl.float32)
    CB_more = tl.sum(CB_terms_1, axis=0)
    CB = CB + CB_more
    kept_log_decay = tl.where(k_in, kept_dt * A * 1.4426950408889634, 0.0)
    dA_last = tl.sum(kept_log_decay, axis=0)
    left_decay = decay(dA_last + log_decay)
    dA_cs = tl.cumsum(kept_log_decay, axis=0)
    kept_scores = kept_CB * kept_dt * decay(dA_last + log_decay - dA_cs)
    y_kept_terms = kept_x.to(tl.float32) * kept_scores[:, None]
    y_kept = tl.sum(y_kept_terms, axis=0)
    y = y_kept + x_weighted * CB + y_state * left_decay
    if HAS_D:
        y = y + D * x.to(tl.float32)
    if HAS_Z:
        y = y * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
    tl.store(y_ptr + b * stride_y_batch + head * stride_y_nheads + p0 + p, y)
    if count >= KEPT:
        B_s_0_base = kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE
        kept_dt_base = kept_dt_ptr + (slot * nheads + head) * KEPT
        kept_x_base = kept_x_ptr + (slot * nheads + head) * KEPT * HEADDIM + p0
        B_s_1_base = kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + BLOCK_N_0
        for s in range(KEPT):
            B_s_0 = tl.load(B_s_0_base + s * DSTATE + n_0)  # [BLOCK_N_0]
            dt_s = tl.load(kept_dt_base + s)
            x_s = tl.load(kept_x_base + s * HEADDIM + p)  # [BLOCK_P]
            B_s_1 = tl.load(B_s_1_base + s * DSTATE + n_1, mask=n_1_in, other=0.0)  # [BLOCK_N_1]
            log_decay_s = A * dt_s * 1.4426950408889634
            centre_decay_s = decay(log_decay_s)
            x_weighted_s = x_s.to(tl.float32) * dt_s
            state_0 = state_0 * centre_decay_s + B_s_0.to(tl.float32)[None, :] * x_weighted_s[:, None]
            state_1 = state_1 * centre_decay_s + B_s_1.to(tl.float32)[None, :] * x_weighted_s[:, None]
        centre_decay = decay(log_decay)
        state_0 = state_0 * centre_decay + B_0.to(tl.float32)[None, :] * x_weighted[:, None]
        state_1 = state_1 * centre_decay + B_1.to(tl.float32)[None, :] * x_weighted[:, None]
        if HAS_SCALE:
            largest = tl.reduce(tl.abs(state_0), 1, maximum)
            largest_more = tl.reduce(tl.abs(state_1), 1, maximum)
            largest = maximum(largest, largest_more)
            scale_out = maximum(largest, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p, scale_out)
            inverse_scale = 1.0 / scale_out
            state_scaled_0 = state_0 * inverse_scale[:, None]
            stored_0 = narrow(state_scaled_0, row, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n_0[None, :], stored_0)
            state_scaled_1 = state_1 * inverse_scale[:, None]
            stored_1 = narrow(state_scaled_1, row, BLOCK_N_0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
            tl.store(state_base + p[:, None] * DSTATE + n_1[None, :], stored_1, mask=n_1_in[None, :])
        else:
            stored_0 = narrow(state_0, row, 0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n_0[None, :], stored_0)
            stored_1 = narrow(state_1, row, BLOCK_N_0, 0, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
            tl.store(state_base + p[:, None] * DSTATE + n_1[None, :], stored_1, mask=n_1_in[None, :])
    else:
        tl.store(new_x_ptr + ((slot * nheads + head) * KEPT + count) * HEADDIM + p0 + p, x)
        if p0 == 0:
            tl.store(new_dt_ptr + (slot * nheads + head) * KEPT + count, dt)
            if head % (nheads // ngroups) == 0:
                tl.store(new_B_ptr + ((slot * ngroups + group) * KEPT + count) * DSTATE + n_0, B_0)
                tl.store(
                    new_B_ptr + ((slot * ngroups + group) * KEPT + count) * DSTATE + BLOCK_N_0 + n_1, B_1, mask=n_1_in
                )


def grid(batch, nheads, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return batch * nheads * (HEADDIM // BLOCK_P), 1, 1
