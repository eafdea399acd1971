"""One program makes what y has of inputs, for some heads of a group, and keeps those of the new token.

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
CB_terms[n] = B[n]*C[n]
CB[] = sum over n of CB_terms[n]
kept_CB_terms[j, n] = C[n]*kept_B[j, n]
kept_CB[j] = sum over n of kept_CB_terms[j, n]
kept_scores[h, j] = kept_CB[j]*weights[h, j]
y_kept_terms[h, j, p] = kept_scores[h, j]*kept_x[h, j, p]
y_kept[h, p] = sum over j of y_kept_terms[h, j, p]
y_inputs[h, p] = CB*x_weighted[h, p] + y_kept[h, p]
y_given[h, p] = D[h, p]*x[h, p] + y_inputs[h, p]    if HAS_D
"""

import triton
import triton.language as tl

from .functions import decay, maximum, minimum, softplus


@triton.jit
def replay_inputs(
    state_batch_indices_ptr,  # [batch], if HAS_SLOTS
    x_ptr,  # [batch, tokens, nheads, headdim]
    B_ptr,  # [batch, tokens, ngroups, dstate]
    C_ptr,  # [batch, tokens, ngroups, dstate]
    dt_ptr,  # [batch, tokens, nheads]
    A_ptr,  # [nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    D_ptr,  # [nheads, headdim], if HAS_D
    count_ptr,  # [nslots]
    kept_x_ptr,  # [nslots, nheads, kept, headdim]
    kept_dt_ptr,  # [nslots, nheads, kept]
    kept_B_ptr,  # [nslots, ngroups, kept, dstate]
    new_x_ptr,  # [nslots, nheads, kept, headdim]
    new_dt_ptr,  # [nslots, nheads, kept]
    new_B_ptr,  # [nslots, ngroups, kept, dstate]
    held_ptr,  # [batch]
    y_given_ptr,  # [batch, nheads, headdim]
    left_decay_ptr,  # [batch, nheads]
    weights_ptr,  # [batch, nheads, block_k]
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
    nslots,
    nheads,
    ngroups,
    pad_slot_id,
    group_heads,
    dt_min,
    dt_max,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    p_blocks = HEADDIM // BLOCK_P
    p0 = tl.cast(tl.program_id(0) % p_blocks * BLOCK_P, tl.int64)
    group = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    first_head = tl.cast(tl.program_id(0) // p_blocks * BLOCK_H, tl.int64)
    head = tl.cast(group * group_heads + first_head, tl.int64)
    h = tl.arange(0, BLOCK_H)
    h_in = h < group_heads - first_head
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    k_there = k < KEPT
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            return
    else:
        slot = b
    count = tl.load(count_ptr + slot)
    k_in = k < count
    of_group = tl.program_id(0)
    of_row = tl.program_id(0) + tl.program_id(1)
    dt = tl.load(dt_ptr + b * stride_dt_batch + head * stride_dt_nheads + h * stride_dt_nheads, mask=h_in, other=0.0)
    dt = dt.to(tl.float32)
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head * stride_dt_bias_nheads + h * stride_dt_bias_nheads, mask=h_in, other=0.0)
        dt_bias = dt_bias.to(tl.float32)
    x_base = x_ptr + b * stride_x_batch + head * stride_x_nheads + p0
    x = tl.load(x_base + h[:, None] * stride_x_nheads + p[None, :], mask=h_in[:, None], other=0.0)  # [BLOCK_H, BLOCK_P]
    C = tl.load(C_ptr + b * stride_C_batch + group * stride_C_ngroups + n)  # [BLOCK_N]
    kept_B = tl.load(
        kept_B_ptr + (slot * ngroups + group) * KEPT * DSTATE + k[:, None] * DSTATE + n[None, :],
        mask=k_there[:, None],
        other=0.0,
    )
    A = tl.load(A_ptr + head * stride_A_nheads + h * stride_A_nheads, mask=h_in, other=0.0).to(tl.float32)  # [BLOCK_H]
    B = tl.load(B_ptr + b * stride_B_batch + group * stride_B_ngroups + n)  # [BLOCK_N]
    if HAS_D:
        D_base = D_ptr + head * stride_D_nheads + p0 * stride_D_headdim
        D = tl.load(
            D_base + h[:, None] * stride_D_nheads + p[None, :] * stride_D_headdim, mask=h_in[:, None], other=0.0
        )
        D = D.to(tl.float32)
    tl.debug_barrier()
    kept_dt = tl.load(
        kept_dt_ptr + slot * nheads * KEPT + head * KEPT + h[None, :] * KEPT + k[:, None],
        mask=k_in[:, None] & h_in[None, :],
        other=0.0,
    )
    kept_x_base = kept_x_ptr + slot * nheads * KEPT * HEADDIM + head * KEPT * HEADDIM + p0
    kept_x = tl.load(
        kept_x_base + h[None, :, None] * KEPT * HEADDIM + k[:, None, None] * HEADDIM + p[None, None, :],
        mask=k_in[:, None, None] & h_in[None, :, None],
        other=0.0,
    )
    tl.debug_barrier()
    if HAS_DT_BIAS:
        dt = dt + dt_bias
    if DT_SOFTPLUS:
        dt = softplus(dt)
    dt = minimum(dt_max, maximum(dt_min, dt))
    x_weighted = x.to(tl.float32) * dt[:, None]
    kept_CB_terms = tl.where(k_in[:, None], kept_B.to(tl.float32) * C.to(tl.float32)[None, :], 0.0)
    kept_CB = tl.sum(kept_CB_terms, axis=1)
    kept_log_decay = tl.where(k_in[:, None], kept_dt * A[None, :] * 1.4426950408889634, 0.0)
    dA_cs = tl.cumsum(kept_log_decay, axis=0)
    dA_last = tl.sum(kept_log_decay, axis=0)
    log_decay = A * dt * 1.4426950408889634
    weights = kept_dt * decay(dA_last[None, :] + log_decay[None, :] - dA_cs)
    kept_scores = weights * kept_CB[:, None]
    y_kept_terms = kept_x.to(tl.float32) * kept_scores[:, :, None]
    y_kept = tl.sum(y_kept_terms, axis=0)
    CB_terms = B.to(tl.float32) * C.to(tl.float32)
    CB = tl.sum(CB_terms, axis=0)
    y_given = y_kept + x_weighted * CB
    if HAS_D:
        y_given = y_given + D * x.to(tl.float32)
    left_decay = decay(dA_last + log_decay)
    tl.store(
        y_given_ptr + b * nheads * HEADDIM + head * HEADDIM + p0 + h[:, None] * HEADDIM + p[None, :],
        y_given,
        mask=h_in[:, None],
    )
    if p0 == 0:
        tl.store(left_decay_ptr + b * nheads + head + h, left_decay, mask=h_in)
    if count < KEPT:
        new_x_base = new_x_ptr + slot * nheads * KEPT * HEADDIM + head * KEPT * HEADDIM + count * HEADDIM + p0
        tl.store(new_x_base + h[:, None] * KEPT * HEADDIM + p[None, :], x, mask=h_in[:, None])
        if p0 == 0:
            tl.store(new_dt_ptr + slot * nheads * KEPT + head * KEPT + count + h * KEPT, dt, mask=h_in)
        if of_group == 0:
            tl.store(new_B_ptr + ((slot * ngroups + group) * KEPT + count) * DSTATE + n, B)
    else:
        if p0 == 0:
            tl.store(
                weights_ptr + b * nheads * BLOCK_K + head * BLOCK_K + h[None, :] * BLOCK_K + k[:, None],
                weights,
                mask=h_in[None, :],
            )
    if of_row == 0:
        tl.store(held_ptr + b, count)


def grid(batch, ngroups, group_heads, HEADDIM, BLOCK_H, BLOCK_P, **_):
    """Programs along each axis."""
    return triton.cdiv(group_heads, BLOCK_H) * (HEADDIM // BLOCK_P), ngroups, batch
