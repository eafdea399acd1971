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
def group_gradients_multi_expand(
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
    BLOCK_P: tl.constexpr,
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
    p = tl.arange(0, BLOCK_P)
    n_in = n < DSTATE
    p_in = p < HEADDIM
    row_in = row < seqlen - row0
    C_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups
    C = tl.load(C_base + row[:, None] * stride_C_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    d_y_base = d_y_ptr + b * stride_d_y_batch + row0 * stride_d_y_seqlen + head * stride_d_y_nheads
    d_y = tl.load(
        d_y_base + row[:, None] * stride_d_y_seqlen + p[None, :], mask=row_in[:, None] & p_in[None, :], other=0.0
    )
    if HAS_Z:
        z_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + head * stride_z_nheads
        z = tl.load(
            z_base + row[:, None] * stride_z_seqlen + p[None, :], mask=row_in[:, None] & p_in[None, :], other=0.0
        )
    state_base = states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE
    state = tl.load(state_base + p[:, None] * DSTATE + n[None, :], mask=p_in[:, None] & n_in[None, :], other=0.0)
    d_state_base = d_states_ptr + ((b * nchunks + chunk) * nheads + head) * HEADDIM * DSTATE
    d_state = tl.load(d_state_base + p[:, None] * DSTATE + n[None, :], mask=p_in[:, None] & n_in[None, :], other=0.0)
    x_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen + group * stride_x_ngroups
    x = tl.load(x_base + row[:, None] * stride_x_seqlen + p[None, :], mask=row_in[:, None] & p_in[None, :], other=0.0)
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
    d_y_skip = d_y
    if HAS_Z:
        d_y_skip = d_y.to(tl.float32) * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
    d_C_y_state = tl.dot(d_y_skip.to(DOT), state.to(DOT), input_precision=PRECISION)
    d_left_decay_terms = C.to(tl.float32) * d_C_y_state
    d_left_decay = tl.sum(d_left_decay_terms, axis=1)
    if NEEDS_DT:
        tl.store(d_left_decay_ptr + (b * nheads + head) * padded + row0 + row, d_left_decay)
    d_centre_decay_terms = d_state.to(tl.float32) * state.to(tl.float32)
    d_centre_decay = tl.sum(d_centre_decay_terms, axis=1)
    d_centre_decay = tl.sum(d_centre_decay, axis=0)
    if NEEDS_DT:
        tl.store(d_centre_decay_ptr + (b * nchunks + chunk) * nheads + head, d_centre_decay)
    d_scores = tl.dot(d_y_skip.to(DOT), tl.trans(x), input_precision=PRECISION)
    if HAS_SEQ_IDX:
        d_scores = tl.where(seq[:, None] == seq[None, :], d_scores, 0.0)
    mask_decay = tl.where(row[:, None] >= row[None, :], decay(dA_cs[:, None] - dA_cs[None, :]), 0.0)
    d_scores_decayed = d_scores * mask_decay
    d_CB = d_scores_decayed * dt[None, :]
    d_B_local_state = tl.dot(x, d_state.to(DOT), input_precision=PRECISION)
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
