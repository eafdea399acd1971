"""One program makes rows of some heads', head after head, y from the state and the kept inputs; when no more can be
kept it writes the state.

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
def replay_step_heads(
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
    HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    RANDOM: tl.constexpr,
    EARLY: tl.constexpr,
):
    p_blocks = HEADDIM // BLOCK_P
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    first_head = tl.cast(tl.program_id(0) // p_blocks % (nheads // HEADS) * HEADS, tl.int64)
    b = tl.cast(tl.program_id(0) // p_blocks // (nheads // HEADS), tl.int64)
    group = first_head // (nheads // ngroups)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            nothing = tl.zeros([BLOCK_P], dtype=tl.float32)
            y_base = y_ptr + b * stride_y_batch + p0
            for trip in range(HEADS):
                tl.store(y_base + (first_head + trip) * stride_y_nheads + p, nothing)
            return
    else:
        slot = b
    if RANDOM:
        seed = tl.load(seed_ptr)
    else:
        seed = 0
    count = tl.load(count_ptr + slot)
    k_in = k < count
    C = tl.load(C_ptr + b * stride_C_batch + group * stride_C_ngroups + n)  # [BLOCK_N]
    kept_B = tl.load(
        kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + k[:, None] * DSTATE + n[None, :],
        mask=k_in[:, None],
        other=0.0,
    )
    B = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + n)  # [BLOCK_N]
    state_next_base = state_ptr + slot * stride_state_nslots + first_head * stride_state_nheads + p0 * DSTATE
    state_next = tl.load(state_next_base + p[:, None] * DSTATE + n[None, :])  # [BLOCK_P, BLOCK_N]
    x_next = tl.load(x_ptr + b * stride_x_batch + first_head * stride_x_nheads + p0 + p)  # [BLOCK_P]
    dt_next = tl.load(dt_ptr + b * stride_dt_batch + first_head * stride_dt_nheads).to(tl.float32)
    A_next = tl.load(A_ptr + first_head * stride_A_nheads).to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias_next = tl.load(dt_bias_ptr + first_head * stride_dt_bias_nheads).to(tl.float32)
    if HAS_D:
        D_next = tl.load(D_ptr + first_head * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim)
    if HAS_Z:
        z_next = tl.load(z_ptr + b * stride_z_batch + first_head * stride_z_nheads + p0 + p)  # [BLOCK_P]
    if HAS_SCALE:
        scale_next = tl.load(state_scale_ptr + (slot * nheads + first_head) * HEADDIM + p0 + p)  # [BLOCK_P]
    kept_dt_next = tl.load(kept_dt_ptr + (slot * nheads + first_head) * KEPT + k, mask=k_in, other=0.0)  # [BLOCK_K]
    kept_x_next_base = kept_x_ptr + (slot * nheads + first_head) * KEPT * HEADDIM + p0
    kept_x_next = tl.load(kept_x_next_base + k[:, None] * HEADDIM + p[None, :], mask=k_in[:, None], other=0.0)
    kept_CB_terms = kept_B.to(tl.float32) * C.to(tl.float32)[None, :]
    kept_CB = tl.sum(kept_CB_terms, axis=1)
    CB_terms = B.to(tl.float32) * C.to(tl.float32)
    CB = tl.sum(CB_terms, axis=0)
    state_base = state_ptr + slot * stride_state_nslots + p0 * DSTATE
    x_base = x_ptr + b * stride_x_batch + p0
    dt_base = dt_ptr + b * stride_dt_batch
    kept_dt_base = kept_dt_ptr + slot * nheads * KEPT
    kept_x_base = kept_x_ptr + slot * nheads * KEPT * HEADDIM + p0
    y_base = y_ptr + b * stride_y_batch + p0
    new_x_base = new_x_ptr + slot * nheads * KEPT * HEADDIM + count * HEADDIM + p0
    new_dt_base = new_dt_ptr + slot * nheads * KEPT + count
    new_B_base = new_B_ptr + ((slot * ngroups + group) * KEPT + count) * DSTATE
    for trip in range(HEADS):
        head = first_head + trip
        row = (slot * nheads + head) * HEADDIM + p0
        state = state_next
        x = x_next.to(tl.float32)
        dt = dt_next
        A = A_next
        if HAS_DT_BIAS:
            dt_bias = dt_bias_next
        if HAS_D:
            D = D_next.to(tl.float32)
        if HAS_Z:
            z = z_next.to(tl.float32)
        if HAS_SCALE:
            scale = scale_next.to(tl.float32)
        kept_dt = kept_dt_next.to(tl.float32)
        kept_x = kept_x_next.to(tl.float32)
        next_head = tl.cast(tl.minimum(head + 1, first_head + HEADS - 1), tl.int64)
        state_next = tl.load(state_base + next_head * stride_state_nheads + p[:, None] * DSTATE + n[None, :])
        x_next = tl.load(x_base + next_head * stride_x_nheads + p)  # [BLOCK_P]
        dt_next = tl.load(dt_base + next_head * stride_dt_nheads).to(tl.float32)
        A_next = tl.load(A_ptr + next_head * stride_A_nheads).to(tl.float32)
        if HAS_DT_BIAS:
            dt_bias_next = tl.load(dt_bias_ptr + next_head * stride_dt_bias_nheads).to(tl.float32)
        if HAS_D:
            D_next = tl.load(D_ptr + p0 * stride_D_headdim + next_head * stride_D_nheads + p * stride_D_headdim)
        if HAS_Z:
            z_next = tl.load(z_ptr + b * stride_z_batch + p0 + next_head * stride_z_nheads + p)  # [BLOCK_P]
        if HAS_SCALE:
            scale_next = tl.load(state_scale_ptr + slot * nheads * HEADDIM + p0 + next_head * HEADDIM + p)  # [BLOCK_P]
        kept_dt_next = tl.load(kept_dt_base + next_head * KEPT + k, mask=k_in, other=0.0)  # [BLOCK_K]
        kept_x_next = tl.load(
            kept_x_base + next_head * KEPT * HEADDIM + k[:, None] * HEADDIM + p[None, :], mask=k_in[:, None], other=0.0
        )
        state = widen(state, FORMAT)
        kept_log_decay = tl.where(k_in, kept_dt * A * 1.4426950408889634, 0.0)
        dA_last = tl.sum(kept_log_decay, axis=0)
        if HAS_DT_BIAS:
            dt = dt + dt_bias
        if DT_SOFTPLUS:
            dt = softplus(dt)
        dt = minimum(dt_max, maximum(dt, dt_min))
        log_decay = A * dt * 1.4426950408889634
        left_decay = decay(dA_last + log_decay)
        x_weighted = x * dt
        dA_cs = tl.cumsum(kept_log_decay, axis=0)
        kept_scores = kept_CB * kept_dt * decay(dA_last + log_decay - dA_cs)
        y_kept_terms = kept_x * kept_scores[:, None]
        y_kept = tl.sum(y_kept_terms, axis=0)
        if HAS_SCALE:
            state = state * scale[:, None]
        y_terms = state * C.to(tl.float32)[None, :]
        y_state = tl.sum(y_terms, axis=1)
        y = y_kept + x_weighted * CB + y_state * left_decay
        if HAS_D:
            y = y + D * x
        if HAS_Z:
            y = y * z * tl.sigmoid(z)
        tl.store(y_base + head * stride_y_nheads + p, y)
        if count >= KEPT:
            kept_B_base = kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE
            for s in range(KEPT):
                B_s = tl.load(kept_B_base + s * DSTATE + n)  # [BLOCK_N]
                dt_s = tl.load(kept_dt_base + head * KEPT + s)
                x_s = tl.load(kept_x_base + head * KEPT * HEADDIM + s * HEADDIM + p)  # [BLOCK_P]
                log_decay_s = A * dt_s * 1.4426950408889634
                centre_decay_s = decay(log_decay_s)
                x_weighted_s = x_s.to(tl.float32) * dt_s
                state = state * centre_decay_s + B_s.to(tl.float32)[None, :] * x_weighted_s[:, None]
            centre_decay = decay(log_decay)
            state = state * centre_decay + B.to(tl.float32)[None, :] * x_weighted[:, None]
            if HAS_SCALE:
                largest = tl.reduce(tl.abs(state), 1, maximum)
                scale_out = maximum(largest, 1e-30) * stored_step
                tl.store(state_scale_ptr + slot * nheads * HEADDIM + p0 + head * HEADDIM + p, scale_out)
                inverse_scale = 1.0 / scale_out
                state_scaled = state * inverse_scale[:, None]
                stored = narrow(state_scaled, row, 0, 0, seed, FORMAT, RANDOM)
                tl.store(state_base + head * stride_state_nheads + p[:, None] * DSTATE + n[None, :], stored)
            else:
                stored = narrow(state, row, 0, 0, seed, FORMAT, RANDOM)
                tl.store(state_base + head * stride_state_nheads + p[:, None] * DSTATE + n[None, :], stored)
        else:
            tl.store(new_x_base + head * KEPT * HEADDIM + p, x)
            if p0 == 0:
                tl.store(new_dt_base + head * KEPT, dt)
                if head % (nheads // ngroups) == 0:
                    tl.store(new_B_base + n, B)


def grid(batch, nheads, HEADDIM, HEADS, BLOCK_P, **_):
    """Programs along each axis."""
    return batch * (nheads // HEADS) * (HEADDIM // BLOCK_P), 1, 1
