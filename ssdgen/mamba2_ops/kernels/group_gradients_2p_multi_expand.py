"""One program makes the gradients of B and C of one chunk for one head.

mask_decay[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j]), i >= j), (0, True))
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
d_centre_decay_terms[h, p, n] = d_state_out[h, p, n]*state[h, p, n]
d_centre_decay[h] = sum over p, n of d_centre_decay_terms[h, p, n]
d_B_local_state[h, j, n] = sum over p of x[j, p] * d_state_out[h, p, n]
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_C_y_state[h, i, n] = sum over p of d_y_skip[h, i, p] * state[h, p, n]
d_left_decay_terms[h, i, n] = C[i, n]*d_C_y_state[h, i, n]
d_left_decay[h, i] = sum over n of d_left_decay_terms[h, i, n]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[j, p]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_scores_decayed[h, i, j] = d_scores_whole[h, i, j]*mask_decay[h, i, j]
d_CB[h, i, j] = d_scores_decayed[h, i, j]*dt[h, j]
d_C_CB[h, i, n] = sum over j of d_CB[h, i, j] * B[h, j, n]
d_B_CB[h, j, n] = sum over i of d_CB[h, i, j] * C[i, n]
d_C_head[h, i, n] = d_C_CB[h, i, n] + d_C_y_state[h, i, n]*left_decay[h, i]
d_B[h, j, n] = d_B_CB[h, j, n] + d_B_local_state[h, j, n]*right_decay[h, j]
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def group_gradients_2p_multi_expand(
    x_ptr,  # [batch, seqlen, ngroups, headdim]
    B_ptr,  # [batch, seqlen, nheads, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    d_y_ptr,  # [batch, seqlen, nheads, headdim]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    states_ptr,  # [batch, nchunks, nheads, headdim, dstate]
    d_states_ptr,  # [batch, nchunks, nheads, headdim, dstate]
    d_B_ptr,  # [batch, seqlen, nheads, dstate], if NEEDS_B
    d_C_ptr,  # [batch, seqlen, nheads, dstate], if NEEDS_C
    d_left_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_centre_decay_ptr,  # [batch, nchunks, nheads], if NEEDS_DT
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_ngroups: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_nheads: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_ngroups: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_seqlen: tl.int64,
    stride_d_y_nheads: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_seqlen: tl.int64,
    stride_z_nheads: tl.int64,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P_0: tl.constexpr,
    BLOCK_P_1: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_Z: tl.constexpr,
    NEEDS_B: tl.constexpr,
    NEEDS_C: tl.constexpr,
    NEEDS_DT: tl.constexpr,
):
    head = tl.cast(tl.program_id(0), tl.int64)
    group = head // (nheads // ngroups)
    chunk = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    row0 = chunk * CHUNK
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p_0 = tl.arange(0, BLOCK_P_0)
    p_1 = tl.arange(0, BLOCK_P_1)
    n_in = n < DSTATE
    p_0_in = p_0 < HEADDIM
    p_1_in = p_1 < HEADDIM - BLOCK_P_0
    row_in = row < seqlen - row0
    C_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups
    C = tl.load(C_base + row[:, None] * stride_C_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    d_y_0_base = d_y_ptr + b * stride_d_y_batch + row0 * stride_d_y_seqlen + head * stride_d_y_nheads
    d_y_0 = tl.load(
        d_y_0_base + row[:, None] * stride_d_y_seqlen + p_0[None, :], mask=row_in[:, None] & p_0_in[None, :], other=0.0
    )
    if HAS_Z:
        z_0_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + head * stride_z_nheads
        z_0 = tl.load(
            z_0_base + row[:, None] * stride_z_seqlen + p_0[None, :], mask=row_in[:, None] & p_0_in[None, :], other=0.0
        )
    state_0_base = states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE
    state_0 = tl.load(
        state_0_base + p_0[:, None] * DSTATE + n[None, :], mask=p_0_in[:, None] & n_in[None, :], other=0.0
    )
    d_y_1_base = d_y_ptr + b * stride_d_y_batch + row0 * stride_d_y_seqlen + head * stride_d_y_nheads + BLOCK_P_0
    d_y_1 = tl.load(
        d_y_1_base + row[:, None] * stride_d_y_seqlen + p_1[None, :], mask=row_in[:, None] & p_1_in[None, :], other=0.0
    )
    if HAS_Z:
        z_1_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + head * stride_z_nheads + BLOCK_P_0
        z_1 = tl.load(
            z_1_base + row[:, None] * stride_z_seqlen + p_1[None, :], mask=row_in[:, None] & p_1_in[None, :], other=0.0
        )
    state_1_base = states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
    state_1 = tl.load(
        state_1_base + p_1[:, None] * DSTATE + n[None, :], mask=p_1_in[:, None] & n_in[None, :], other=0.0
    )
    d_state_0_base = d_states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE
    d_state_0 = tl.load(
        d_state_0_base + p_0[:, None] * DSTATE + n[None, :], mask=p_0_in[:, None] & n_in[None, :], other=0.0
    )
    d_state_1_base = d_states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
    d_state_1 = tl.load(
        d_state_1_base + p_1[:, None] * DSTATE + n[None, :], mask=p_1_in[:, None] & n_in[None, :], other=0.0
    )
    x_0_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen + group * stride_x_ngroups
    x_0 = tl.load(
        x_0_base + row[:, None] * stride_x_seqlen + p_0[None, :], mask=row_in[:, None] & p_0_in[None, :], other=0.0
    )
    x_1_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen + group * stride_x_ngroups + BLOCK_P_0
    x_1 = tl.load(
        x_1_base + row[:, None] * stride_x_seqlen + p_1[None, :], mask=row_in[:, None] & p_1_in[None, :], other=0.0
    )
    if HAS_SEQ_IDX:
        seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
    dA_cs = tl.load(dA_cs_ptr + (b * nheads + head) * padded + row0 + row)  # [CHUNK]
    dt = tl.load(dt_ptr + (b * nheads + head) * padded + row0 + row)  # [CHUNK]
    dA_last = tl.load(dA_cs_ptr + (b * nheads + head) * padded + row0 + CHUNK - 1)
    if HAS_SEQ_IDX:
        seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, seqlen) - 1)
        seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
    B_base = B_ptr + b * stride_B_batch + row0 * stride_B_seqlen + head * stride_B_nheads
    B = tl.load(B_base + row[:, None] * stride_B_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    d_y_skip_0 = d_y_0
    if HAS_Z:
        d_y_skip_0 = d_y_0.to(tl.float32) * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
    d_C_y_state = tl.dot(d_y_skip_0.to(DOT), state_0.to(DOT), input_precision=PRECISION)
    d_y_skip_1 = d_y_1
    if HAS_Z:
        d_y_skip_1 = d_y_1.to(tl.float32) * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
    d_C_y_state = tl.dot(d_y_skip_1.to(DOT), state_1.to(DOT), acc=d_C_y_state, input_precision=PRECISION)
    d_left_decay_terms = C.to(tl.float32) * d_C_y_state
    d_left_decay = tl.sum(d_left_decay_terms, axis=1)
    if NEEDS_DT:
        tl.store(d_left_decay_ptr + (b * nheads + head) * padded + row0 + row, d_left_decay)
    d_centre_decay_terms_0 = d_state_0.to(tl.float32) * state_0.to(tl.float32)
    d_centre_decay = tl.sum(d_centre_decay_terms_0, axis=1)
    d_centre_decay = tl.sum(d_centre_decay, axis=0)
    d_centre_decay_terms_1 = d_state_1.to(tl.float32) * state_1.to(tl.float32)
    d_centre_decay_more = tl.sum(d_centre_decay_terms_1, axis=1)
    d_centre_decay_more = tl.sum(d_centre_decay_more, axis=0)
    d_centre_decay = d_centre_decay + d_centre_decay_more
    if NEEDS_DT:
        tl.store(d_centre_decay_ptr + (b * nchunks + chunk) * nheads + head, d_centre_decay)
    d_scores = tl.dot(d_y_skip_0.to(DOT), tl.trans(x_0), input_precision=PRECISION)
    d_scores = tl.dot(d_y_skip_1.to(DOT), tl.trans(x_1), acc=d_scores, input_precision=PRECISION)
    if HAS_SEQ_IDX:
        d_scores = tl.where(seq[:, None] == seq[None, :], d_scores, 0.0)
    mask_decay = tl.where(row[:, None] >= row[None, :], decay(dA_cs[:, None] - dA_cs[None, :]), 0.0)
    d_scores_decayed = d_scores * mask_decay
    d_CB = d_scores_decayed * dt[None, :]
    d_B_local_state = tl.dot(x_0, d_state_0.to(DOT), input_precision=PRECISION)
    d_B_local_state = tl.dot(x_1, d_state_1.to(DOT), acc=d_B_local_state, input_precision=PRECISION)
    right_decay = dt * decay(dA_last - dA_cs)
    if HAS_SEQ_IDX:
        right_decay = tl.where(seq_last == seq, right_decay, 0.0)
    d_B = d_B_local_state * right_decay[:, None]
    d_B = tl.dot(tl.trans(d_CB).to(DOT), C, acc=d_B, input_precision=PRECISION)
    if NEEDS_B:
        d_B_base = d_B_ptr + b * seqlen * nheads * DSTATE + row0 * nheads * DSTATE + head * DSTATE
        tl.store(d_B_base + row[:, None] * nheads * DSTATE + n[None, :], d_B, mask=row_in[:, None] & n_in[None, :])
    left_decay = decay(dA_cs)
    if HAS_SEQ_IDX:
        left_decay = tl.where(seq_before == seq, left_decay, 0.0)
    d_C_head = d_C_y_state * left_decay[:, None]
    d_C_head = tl.dot(d_CB.to(DOT), B, acc=d_C_head, input_precision=PRECISION)
    if NEEDS_C:
        d_C_base = d_C_ptr + b * seqlen * nheads * DSTATE + row0 * nheads * DSTATE + head * DSTATE
        tl.store(d_C_base + row[:, None] * nheads * DSTATE + n[None, :], d_C_head, mask=row_in[:, None] & n_in[None, :])


def grid(batch, nheads, nchunks, **_):
    """Programs along each axis."""
    return nheads, nchunks, batch
