"""One program advances rows of a head's state by the tokens of a call and writes what each token gets of it.

dt_biased[h, p] = dt_bias[h, p] + dt_raw[h, p]    if HAS_DT_BIAS
dt_positive[h, p] = softplus(dt_biased[h, p])    if DT_SOFTPLUS
dt[h, p] = Min(dt_max, Max(dt_min, dt_positive[h, p]))
log_decay[h, p, n] = A[h, p, n]*dt[h, p]/log(2)
centre_decay[h, p, n] = 2**Min(0, log_decay[h, p, n])
state[h, p, n] = scale[h, p]*stored[h, p, n]    if HAS_SCALE
x_weighted[h, p] = dt[h, p]*x[h, p]
state_out[h, p, n] = B[n]*x_weighted[h, p] + centre_decay[h, p, n]*state[h, p, n]
y_terms[h, p, n] = C[n]*state_out[h, p, n]
y_ssm[h, p] = sum over n of y_terms[h, p, n]
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
def state_step_untied_2n(
    state_ptr,  # [nslots, nheads, headdim, dstate]
    state_scale_ptr,  # [nslots, nheads, headdim], if HAS_SCALE
    state_batch_indices_ptr,  # [batch], if HAS_SLOTS
    seed_ptr,  # [1], if RANDOM
    x_ptr,  # [batch, tokens, nheads, headdim]
    B_ptr,  # [batch, tokens, ngroups, dstate]
    C_ptr,  # [batch, tokens, ngroups, dstate]
    dt_ptr,  # [batch, tokens, nheads, headdim]
    A_ptr,  # [nheads, headdim, dstate]
    dt_bias_ptr,  # [nheads, headdim], if HAS_DT_BIAS
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, tokens, nheads, headdim], if HAS_Z
    y_ptr,  # [batch, tokens, nheads, headdim]
    step_states_ptr,  # [batch, tokens, nheads, headdim, dstate], if STORE_STEPS
    step_scales_ptr,  # [batch, tokens, nheads, headdim], if STORE_STEPS
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
    stride_dt_headdim: tl.int64,
    stride_A_nheads: tl.int64,
    stride_A_headdim: tl.int64,
    stride_A_dstate: tl.int64,
    stride_dt_bias_nheads: tl.int64,
    stride_dt_bias_headdim: tl.int64,
    stride_D_nheads: tl.int64,
    stride_D_headdim: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_tokens: tl.int64,
    stride_z_nheads: tl.int64,
    stride_y_batch: tl.int64,
    stride_y_tokens: tl.int64,
    stride_y_nheads: tl.int64,
    stride_step_states_batch: tl.int64,
    stride_step_states_tokens: tl.int64,
    stride_step_states_nheads: tl.int64,
    nslots,
    nheads,
    ngroups,
    pad_slot_id,
    dt_min,
    dt_max,
    stored_step,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    TOKENS: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N_0: tl.constexpr,
    BLOCK_N_1: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    RANDOM: tl.constexpr,
    STORE_STATE: tl.constexpr,
    STORE_STEPS: tl.constexpr,
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
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            nothing = tl.zeros([BLOCK_P], dtype=tl.float32)
            y_base = y_ptr + b * stride_y_batch + head * stride_y_nheads + p0
            for t in range(TOKENS):
                tl.store(y_base + t * stride_y_tokens + p, nothing)
            return
    else:
        slot = b
    if RANDOM:
        seed = tl.load(seed_ptr)
    else:
        seed = 0
    row = (slot * nheads + head) * HEADDIM + p0
    state_0_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
    state_0 = tl.load(state_0_base + p[:, None] * DSTATE + n_0[None, :])  # [BLOCK_P, BLOCK_N_0]
    state_1_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
    state_1 = tl.load(state_1_base + p[:, None] * DSTATE + n_1[None, :], mask=n_1_in[None, :], other=0)
    A_0_base = A_ptr + head * stride_A_nheads + p0 * stride_A_headdim
    A_0 = tl.load(A_0_base + p[:, None] * stride_A_headdim + n_0[None, :] * stride_A_dstate).to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias_base = dt_bias_ptr + head * stride_dt_bias_nheads + p0 * stride_dt_bias_headdim
        dt_bias = tl.load(dt_bias_base + p * stride_dt_bias_headdim).to(tl.float32)  # [BLOCK_P]
    if HAS_SCALE:
        scale = tl.load(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p)  # [BLOCK_P]
    A_1_base = A_ptr + head * stride_A_nheads + p0 * stride_A_headdim + BLOCK_N_0 * stride_A_dstate
    A_1 = tl.load(
        A_1_base + p[:, None] * stride_A_headdim + n_1[None, :] * stride_A_dstate, mask=n_1_in[None, :], other=0.0
    )
    A_1 = A_1.to(tl.float32)
    if HAS_D:
        D = tl.load(D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim).to(tl.float32)
    state_0 = widen(state_0, FORMAT)
    state_1 = widen(state_1, FORMAT)
    if HAS_SCALE:
        state_0 = state_0 * scale[:, None]
    if HAS_SCALE:
        state_1 = state_1 * scale[:, None]
    B_0_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups
    dt_base = dt_ptr + b * stride_dt_batch + head * stride_dt_nheads + p0 * stride_dt_headdim
    x_base = x_ptr + b * stride_x_batch + head * stride_x_nheads + p0
    B_1_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups + BLOCK_N_0
    C_0_base = C_ptr + b * stride_C_batch + group * stride_C_ngroups
    C_1_base = C_ptr + b * stride_C_batch + group * stride_C_ngroups + BLOCK_N_0
    y_base = y_ptr + b * stride_y_batch + head * stride_y_nheads + p0
    for t in range(TOKENS):
        B_0 = tl.load(B_0_base + t * stride_B_tokens + n_0)  # [BLOCK_N_0]
        dt = tl.load(dt_base + t * stride_dt_tokens + p * stride_dt_headdim).to(tl.float32)  # [BLOCK_P]
        x = tl.load(x_base + t * stride_x_tokens + p)  # [BLOCK_P]
        B_1 = tl.load(B_1_base + t * stride_B_tokens + n_1, mask=n_1_in, other=0.0)  # [BLOCK_N_1]
        C_0 = tl.load(C_0_base + t * stride_C_tokens + n_0)  # [BLOCK_N_0]
        C_1 = tl.load(C_1_base + t * stride_C_tokens + n_1, mask=n_1_in, other=0.0)  # [BLOCK_N_1]
        if HAS_Z:
            z = tl.load(z_ptr + b * stride_z_batch + head * stride_z_nheads + p0 + t * stride_z_tokens + p)  # [BLOCK_P]
        if HAS_DT_BIAS:
            dt = dt + dt_bias
        if DT_SOFTPLUS:
            dt = softplus(dt)
        dt = minimum(dt_max, maximum(dt_min, dt))
        log_decay_0 = A_0 * dt[:, None] * 1.4426950408889634
        centre_decay_0 = decay(log_decay_0)
        x_weighted = dt * x.to(tl.float32)
        state_0 = B_0.to(tl.float32)[None, :] * x_weighted[:, None] + centre_decay_0 * state_0
        log_decay_1 = A_1 * dt[:, None] * 1.4426950408889634
        centre_decay_1 = decay(log_decay_1)
        state_1 = B_1.to(tl.float32)[None, :] * x_weighted[:, None] + centre_decay_1 * state_1
        y_terms_0 = state_0 * C_0.to(tl.float32)[None, :]
        y = tl.sum(y_terms_0, axis=1)
        y_terms_1 = state_1 * C_1.to(tl.float32)[None, :]
        y_more = tl.sum(y_terms_1, axis=1)
        y = y + y_more
        if HAS_D:
            y = y + D * x.to(tl.float32)
        if HAS_Z:
            y = y * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        tl.store(y_base + t * stride_y_tokens + p, y)
        if STORE_STEPS:
            if HAS_SCALE:
                largest = tl.reduce(tl.abs(state_0), 1, maximum)
                largest_more = tl.reduce(tl.abs(state_1), 1, maximum)
                largest = maximum(largest, largest_more)
                scale_out = maximum(largest, 1e-30) * stored_step
                step_scales_base = step_scales_ptr + b * TOKENS * nheads * HEADDIM + head * HEADDIM + p0
                tl.store(step_scales_base + t * nheads * HEADDIM + p, scale_out)
                inverse_scale = 1.0 / scale_out
                state_scaled_0 = state_0 * inverse_scale[:, None]
                stored_0 = narrow(state_scaled_0, row, 0, t, seed, FORMAT, RANDOM)
                step_states_base = (
                    step_states_ptr + b * stride_step_states_batch + head * stride_step_states_nheads + p0 * DSTATE
                )
                tl.store(
                    step_states_base + t * stride_step_states_tokens + p[:, None] * DSTATE + n_0[None, :], stored_0
                )
                state_scaled_1 = state_1 * inverse_scale[:, None]
                stored_1 = narrow(state_scaled_1, row, BLOCK_N_0, t, seed, FORMAT, RANDOM)
                step_states_base = (
                    step_states_ptr
                    + b * stride_step_states_batch
                    + head * stride_step_states_nheads
                    + p0 * DSTATE
                    + BLOCK_N_0
                )
                tl.store(
                    step_states_base + t * stride_step_states_tokens + p[:, None] * DSTATE + n_1[None, :],
                    stored_1,
                    mask=n_1_in[None, :],
                )
            else:
                stored_0 = narrow(state_0, row, 0, t, seed, FORMAT, RANDOM)
                step_states_base = (
                    step_states_ptr + b * stride_step_states_batch + head * stride_step_states_nheads + p0 * DSTATE
                )
                tl.store(
                    step_states_base + t * stride_step_states_tokens + p[:, None] * DSTATE + n_0[None, :], stored_0
                )
                stored_1 = narrow(state_1, row, BLOCK_N_0, t, seed, FORMAT, RANDOM)
                step_states_base = (
                    step_states_ptr
                    + b * stride_step_states_batch
                    + head * stride_step_states_nheads
                    + p0 * DSTATE
                    + BLOCK_N_0
                )
                tl.store(
                    step_states_base + t * stride_step_states_tokens + p[:, None] * DSTATE + n_1[None, :],
                    stored_1,
                    mask=n_1_in[None, :],
                )
    if STORE_STATE:
        if HAS_SCALE:
            largest = tl.reduce(tl.abs(state_0), 1, maximum)
            largest_more = tl.reduce(tl.abs(state_1), 1, maximum)
            largest = maximum(largest, largest_more)
            scale_out = maximum(largest, 1e-30) * stored_step
            tl.store(state_scale_ptr + (slot * nheads + head) * HEADDIM + p0 + p, scale_out)
            inverse_scale = 1.0 / scale_out
            state_scaled_0 = state_0 * inverse_scale[:, None]
            stored_0 = narrow(state_scaled_0, row, 0, TOKENS - 1, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n_0[None, :], stored_0)
            state_scaled_1 = state_1 * inverse_scale[:, None]
            stored_1 = narrow(state_scaled_1, row, BLOCK_N_0, TOKENS - 1, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
            tl.store(state_base + p[:, None] * DSTATE + n_1[None, :], stored_1, mask=n_1_in[None, :])
        else:
            stored_0 = narrow(state_0, row, 0, TOKENS - 1, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE
            tl.store(state_base + p[:, None] * DSTATE + n_0[None, :], stored_0)
            stored_1 = narrow(state_1, row, BLOCK_N_0, TOKENS - 1, seed, FORMAT, RANDOM)
            state_base = state_ptr + slot * stride_state_nslots + head * stride_state_nheads + p0 * DSTATE + BLOCK_N_0
            tl.store(state_base + p[:, None] * DSTATE + n_1[None, :], stored_1, mask=n_1_in[None, :])


def grid(batch, nheads, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return batch * nheads * (HEADDIM // BLOCK_P), 1, 1
