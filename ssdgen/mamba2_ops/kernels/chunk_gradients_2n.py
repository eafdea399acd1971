"""One program makes all gradients of one chunk but the states' for the heads of a group, one after the other.

mask_decay[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j]), i >= j), (0, True))
CB[i, j] = sum over n of C[i, n] * B[j, n]
scores_whole[h, i, j] = CB[i, j]*dt[h, j]*mask_decay[h, i, j]
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[h, j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[h, i, p] + y_ssm[h, i, p]    if HAS_D
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
d_centre_decay_terms[h, p, n] = d_state_out[h, p, n]*state[h, p, n]
d_centre_decay[h] = sum over p, n of d_centre_decay_terms[h, p, n]
d_x_weighted[h, j, p] = sum over n of B[j, n] * d_state_out[h, p, n]
d_right_decay_terms[h, j, p] = d_x_weighted[h, j, p]*x[h, j, p]
d_right_decay[h, j] = sum over p of d_right_decay_terms[h, j, p]
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_D_terms[h, i, p] = d_y_skip[h, i, p]*x[h, i, p]
d_D[h, p] = sum over i of d_D_terms[h, i, p]
d_left_decay_terms[h, i, p] = d_y_skip[h, i, p]*y_state[h, i, p]
d_left_decay[h, i] = sum over p of d_left_decay_terms[h, i, p]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[h, j, p]
d_x_y_diag[h, j, p] = sum over i of scores[h, i, j] * d_y_skip[h, i, p]
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_scores_decayed[h, i, j] = d_scores_whole[h, i, j]*mask_decay[h, i, j]
d_dt_scores_terms[h, i, j] = CB[i, j]*d_scores_decayed[h, i, j]
d_dt_scores[h, j] = sum over i of d_dt_scores_terms[h, i, j]
d_CB_head[h, i, j] = d_scores_decayed[h, i, j]*dt[h, j]
d_dA_cs_scores_terms[h, i, j] = CB[i, j]*d_CB_head[h, i, j]
d_dA_cs_scores_rows[h, i] = sum over j of d_dA_cs_scores_terms[h, i, j]
d_CB[i, j] = sum over h of d_CB_head[h, i, j]
d_C_CB[i, n] = sum over j of d_CB[i, j] * B[j, n]
d_B_CB[j, n] = sum over i of d_CB[i, j] * C[i, n]
d_z[h, i, p] = ((1 - sigmoid(z[h, i, p]))*z[h, i, p] + 1)*sigmoid(z[h, i, p])*d_y[h, i, p]*y_skip[h, i, p]
d_C_head[h, i, n] = sum over p of d_y_state[h, i, p] * state[h, p, n]
d_C_heads[i, n] = sum over h of d_C_head[h, i, n]
d_C[i, n] = d_C_CB[i, n] + d_C_heads[i, n]
d_B_head[h, j, n] = sum over p of x_weighted[h, j, p] * d_state_out[h, p, n]
d_B_heads[j, n] = sum over h of d_B_head[h, j, n]
d_B[j, n] = d_B_CB[j, n] + d_B_heads[j, n]
d_x_base[h, j, p] = d_x_weighted[h, j, p]*right_decay[h, j] + d_x_y_diag[h, j, p]
d_x[h, j, p] = D[h, p]*d_y_skip[h, j, p] + d_x_base[h, j, p]    if HAS_D
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def chunk_gradients_2n(
    x_ptr,  # [batch, seqlen, nheads, headdim]
    B_ptr,  # [batch, seqlen, ngroups, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    d_y_ptr,  # [batch, seqlen, nheads, headdim]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    states_ptr,  # [batch, nchunks, nheads, headdim, dstate]
    d_states_ptr,  # [batch, nchunks, nheads, headdim, dstate]
    d_x_ptr,  # [batch, seqlen, nheads, headdim], if NEEDS_X
    d_z_ptr,  # [batch, seqlen, nheads, headdim], if NEEDS_Z
    d_D_ptr,  # [batch, nchunks, nheads, headdim], if NEEDS_D
    d_B_ptr,  # [parts, batch, seqlen, ngroups, dstate], if NEEDS_B
    d_C_ptr,  # [parts, batch, seqlen, ngroups, dstate], if NEEDS_C
    d_dA_cs_scores_rows_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_dt_scores_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_right_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_left_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_centre_decay_ptr,  # [batch, nchunks, nheads], if NEEDS_DT
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_nheads: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_ngroups: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_seqlen: tl.int64,
    stride_d_y_nheads: tl.int64,
    stride_D_nheads: tl.int64,
    stride_D_headdim: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_seqlen: tl.int64,
    stride_z_nheads: tl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    parts,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N_0: tl.constexpr,
    BLOCK_N_1: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_Z: tl.constexpr,
    NEEDS_D: tl.constexpr,
    NEEDS_B: tl.constexpr,
    NEEDS_C: tl.constexpr,
    NEEDS_DT: tl.constexpr,
):
    group = tl.cast(tl.program_id(0) // parts, tl.int64)
    part = tl.program_id(0) % parts
    heads = nheads // ngroups // parts
    chunk = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    row0 = chunk * CHUNK
    row = tl.arange(0, CHUNK)
    n_0 = tl.arange(0, BLOCK_N_0)
    n_1 = tl.arange(0, BLOCK_N_1)
    p = tl.arange(0, BLOCK_P)
    n_0_in = n_0 < DSTATE
    n_1_in = n_1 < DSTATE - BLOCK_N_0
    p_in = p < HEADDIM
    row_in = row < seqlen - row0
    C_0_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups
    C_0 = tl.load(
        C_0_base + row[:, None] * stride_C_seqlen + n_0[None, :], mask=row_in[:, None] & n_0_in[None, :], other=0.0
    )
    B_0_base = B_ptr + b * stride_B_batch + row0 * stride_B_seqlen + group * stride_B_ngroups
    B_0 = tl.load(
        B_0_base + row[:, None] * stride_B_seqlen + n_0[None, :], mask=row_in[:, None] & n_0_in[None, :], other=0.0
    )
    C_1_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups + BLOCK_N_0
    C_1 = tl.load(
        C_1_base + row[:, None] * stride_C_seqlen + n_1[None, :], mask=row_in[:, None] & n_1_in[None, :], other=0.0
    )
    B_1_base = B_ptr + b * stride_B_batch + row0 * stride_B_seqlen + group * stride_B_ngroups + BLOCK_N_0
    B_1 = tl.load(
        B_1_base + row[:, None] * stride_B_seqlen + n_1[None, :], mask=row_in[:, None] & n_1_in[None, :], other=0.0
    )
    if HAS_SEQ_IDX:
        seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
        seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, seqlen) - 1)
    # what all heads share
    CB = tl.dot(C_0, tl.trans(B_0), input_precision=PRECISION)
    CB = tl.dot(C_1, tl.trans(B_1), acc=CB, input_precision=PRECISION)
    d_CB = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    d_C_heads_0 = tl.zeros([CHUNK, BLOCK_N_0], dtype=tl.float32)
    d_C_heads_1 = tl.zeros([CHUNK, BLOCK_N_1], dtype=tl.float32)
    d_B_heads_0 = tl.zeros([CHUNK, BLOCK_N_0], dtype=tl.float32)
    d_B_heads_1 = tl.zeros([CHUNK, BLOCK_N_1], dtype=tl.float32)
    d_y_base = d_y_ptr + b * stride_d_y_batch + row0 * stride_d_y_seqlen
    x_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen
    state_0_base = states_ptr + (b * nchunks + chunk) * nheads * HEADDIM * DSTATE
    state_1_base = states_ptr + (b * nchunks + chunk) * nheads * HEADDIM * DSTATE + BLOCK_N_0
    dA_cs_base = dA_cs_ptr + b * nheads * padded + row0
    dt_base = dt_ptr + b * nheads * padded + row0
    d_state_0_base = d_states_ptr + (b * nchunks + chunk) * nheads * HEADDIM * DSTATE
    d_state_1_base = d_states_ptr + (b * nchunks + chunk) * nheads * HEADDIM * DSTATE + BLOCK_N_0
    dA_last_base = dA_cs_ptr + b * nheads * padded + row0 + CHUNK - 1
    for step in range(heads):
        head = group * (nheads // ngroups) + part * heads + step
        d_y = tl.load(
            d_y_base + head * stride_d_y_nheads + row[:, None] * stride_d_y_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen
            z = tl.load(
                z_base + head * stride_z_nheads + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        x = tl.load(
            x_base + head * stride_x_nheads + row[:, None] * stride_x_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        state_0 = tl.load(
            state_0_base + head * HEADDIM * DSTATE + p[:, None] * DSTATE + n_0[None, :],
            mask=p_in[:, None] & n_0_in[None, :],
            other=0.0,
        )
        state_1 = tl.load(
            state_1_base + head * HEADDIM * DSTATE + p[:, None] * DSTATE + n_1[None, :],
            mask=p_in[:, None] & n_1_in[None, :],
            other=0.0,
        )
        dA_cs = tl.load(dA_cs_base + head * padded + row)  # [CHUNK]
        dt = tl.load(dt_base + head * padded + row)  # [CHUNK]
        if HAS_D:
            D = tl.load(D_ptr + head * stride_D_nheads + p * stride_D_headdim, mask=p_in, other=0.0).to(tl.float32)
        d_state_0 = tl.load(
            d_state_0_base + head * HEADDIM * DSTATE + p[:, None] * DSTATE + n_0[None, :],
            mask=p_in[:, None] & n_0_in[None, :],
            other=0.0,
        )
        d_state_1 = tl.load(
            d_state_1_base + head * HEADDIM * DSTATE + p[:, None] * DSTATE + n_1[None, :],
            mask=p_in[:, None] & n_1_in[None, :],
            other=0.0,
        )
        dA_last = tl.load(dA_last_base + head * padded)
        d_y_skip = d_y
        if HAS_Z:
            d_y_skip = d_y.to(tl.float32) * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        # diagonal block
        d_scores = tl.dot(d_y_skip.to(DOT), tl.trans(x), input_precision=PRECISION)
        # left factor: the state that enters the chunk
        y = tl.dot(C_0, tl.trans(state_0).to(DOT), input_precision=PRECISION)
        y = tl.dot(C_1, tl.trans(state_1).to(DOT), acc=y, input_precision=PRECISION)
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = tl.where(seq_before == seq, left_decay, 0.0)
        mask_decay = tl.where(row[:, None] >= row[None, :], decay(dA_cs[:, None] - dA_cs[None, :]), 0.0)
        if HAS_SEQ_IDX:
            d_scores = tl.where(seq[:, None] == seq[None, :], d_scores, 0.0)
        d_scores_decayed = d_scores * mask_decay
        d_CB_head = d_scores_decayed * dt[None, :]
        d_CB = d_CB + d_CB_head
        d_dA_cs_scores_terms = CB * d_CB_head
        d_dA_cs_scores_rows = tl.sum(d_dA_cs_scores_terms, axis=1)
        if NEEDS_DT:
            tl.store(d_dA_cs_scores_rows_ptr + b * nheads * padded + row0 + head * padded + row, d_dA_cs_scores_rows)
        d_left_decay_terms = d_y_skip.to(tl.float32) * y
        d_left_decay = tl.sum(d_left_decay_terms, axis=1)
        if NEEDS_DT:
            tl.store(d_left_decay_ptr + b * nheads * padded + row0 + head * padded + row, d_left_decay)
        d_y_state = d_y_skip.to(tl.float32) * left_decay[:, None]
        d_C_heads_0 = tl.dot(d_y_state.to(DOT), state_0.to(DOT), acc=d_C_heads_0, input_precision=PRECISION)
        d_C_heads_1 = tl.dot(d_y_state.to(DOT), state_1.to(DOT), acc=d_C_heads_1, input_precision=PRECISION)
        scores = CB * mask_decay * dt[None, :]
        if HAS_SEQ_IDX:
            scores = tl.where(seq[:, None] == seq[None, :], scores, 0.0)
        if NEEDS_Z:
            y = y * left_decay[:, None]
            y = tl.dot(scores.to(DOT), x, acc=y, input_precision=PRECISION)
            if HAS_D:
                y = y + x.to(tl.float32) * D[None, :]
            d_z = (
                d_y.to(tl.float32)
                * y
                * (z.to(tl.float32) * (1.0 - tl.sigmoid(z.to(tl.float32))) + 1.0)
                * tl.sigmoid(z.to(tl.float32))
            )
            d_z_base = d_z_ptr + b * seqlen * nheads * HEADDIM + row0 * nheads * HEADDIM
            tl.store(
                d_z_base + head * HEADDIM + row[:, None] * nheads * HEADDIM + p[None, :],
                d_z,
                mask=row_in[:, None] & p_in[None, :],
            )
        if NEEDS_D:
            d_D_terms = d_y_skip.to(tl.float32) * x.to(tl.float32)
            d_D = tl.sum(d_D_terms, axis=0)
            tl.store(d_D_ptr + (b * nchunks + chunk) * nheads * HEADDIM + head * HEADDIM + p, d_D, mask=p_in)
        d_centre_decay_terms_0 = d_state_0.to(tl.float32) * state_0.to(tl.float32)
        d_centre_decay = tl.sum(d_centre_decay_terms_0, axis=1)
        d_centre_decay = tl.sum(d_centre_decay, axis=0)
        d_centre_decay_terms_1 = d_state_1.to(tl.float32) * state_1.to(tl.float32)
        d_centre_decay_more = tl.sum(d_centre_decay_terms_1, axis=1)
        d_centre_decay_more = tl.sum(d_centre_decay_more, axis=0)
        d_centre_decay = d_centre_decay + d_centre_decay_more
        if NEEDS_DT:
            tl.store(d_centre_decay_ptr + (b * nchunks + chunk) * nheads + head, d_centre_decay)
        d_dt_scores_terms = CB * d_scores_decayed
        d_dt_scores = tl.sum(d_dt_scores_terms, axis=0)
        if NEEDS_DT:
            tl.store(d_dt_scores_ptr + b * nheads * padded + row0 + head * padded + row, d_dt_scores)
        # right factor: the state that leaves the chunk
        d_x_weighted = tl.dot(B_0, tl.trans(d_state_0).to(DOT), input_precision=PRECISION)
        d_x_weighted = tl.dot(B_1, tl.trans(d_state_1).to(DOT), acc=d_x_weighted, input_precision=PRECISION)
        d_right_decay_terms = d_x_weighted * x.to(tl.float32)
        d_right_decay = tl.sum(d_right_decay_terms, axis=1)
        if NEEDS_DT:
            tl.store(d_right_decay_ptr + b * nheads * padded + row0 + head * padded + row, d_right_decay)
        right_decay = dt * decay(dA_last - dA_cs)
        if HAS_SEQ_IDX:
            right_decay = tl.where(seq_last == seq, right_decay, 0.0)
        d_x = d_x_weighted * right_decay[:, None]
        d_x = tl.dot(tl.trans(scores).to(DOT), d_y_skip.to(DOT), acc=d_x, input_precision=PRECISION)
        x_weighted = x.to(tl.float32) * right_decay[:, None]
        d_B_heads_0 = tl.dot(x_weighted.to(DOT), d_state_0.to(DOT), acc=d_B_heads_0, input_precision=PRECISION)
        d_B_heads_1 = tl.dot(x_weighted.to(DOT), d_state_1.to(DOT), acc=d_B_heads_1, input_precision=PRECISION)
        if HAS_D:
            d_x = d_x + d_y_skip.to(tl.float32) * D[None, :]
        if NEEDS_X:
            d_x_base = d_x_ptr + b * seqlen * nheads * HEADDIM + row0 * nheads * HEADDIM
            tl.store(
                d_x_base + head * HEADDIM + row[:, None] * nheads * HEADDIM + p[None, :],
                d_x,
                mask=row_in[:, None] & p_in[None, :],
            )
    d_C_0 = d_C_heads_0
    d_C_0 = tl.dot(d_CB.to(DOT), B_0, acc=d_C_0, input_precision=PRECISION)
    if NEEDS_C:
        d_C_base = d_C_ptr + (part * batch + b) * seqlen * ngroups * DSTATE + row0 * ngroups * DSTATE + group * DSTATE
        tl.store(
            d_C_base + row[:, None] * ngroups * DSTATE + n_0[None, :], d_C_0, mask=row_in[:, None] & n_0_in[None, :]
        )
    d_C_1 = d_C_heads_1
    d_C_1 = tl.dot(d_CB.to(DOT), B_1, acc=d_C_1, input_precision=PRECISION)
    if NEEDS_C:
        d_C_base = (
            d_C_ptr
            + (part * batch + b) * seqlen * ngroups * DSTATE
            + row0 * ngroups * DSTATE
            + group * DSTATE
            + BLOCK_N_0
        )
        tl.store(
            d_C_base + row[:, None] * ngroups * DSTATE + n_1[None, :], d_C_1, mask=row_in[:, None] & n_1_in[None, :]
        )
    d_B_0 = d_B_heads_0
    d_B_0 = tl.dot(tl.trans(d_CB).to(DOT), C_0, acc=d_B_0, input_precision=PRECISION)
    if NEEDS_B:
        d_B_base = d_B_ptr + (part * batch + b) * seqlen * ngroups * DSTATE + row0 * ngroups * DSTATE + group * DSTATE
        tl.store(
            d_B_base + row[:, None] * ngroups * DSTATE + n_0[None, :], d_B_0, mask=row_in[:, None] & n_0_in[None, :]
        )
    d_B_1 = d_B_heads_1
    d_B_1 = tl.dot(tl.trans(d_CB).to(DOT), C_1, acc=d_B_1, input_precision=PRECISION)
    if NEEDS_B:
        d_B_base = (
            d_B_ptr
            + (part * batch + b) * seqlen * ngroups * DSTATE
            + row0 * ngroups * DSTATE
            + group * DSTATE
            + BLOCK_N_0
        )
        tl.store(
            d_B_base + row[:, None] * ngroups * DSTATE + n_1[None, :], d_B_1, mask=row_in[:, None] & n_1_in[None, :]
        )


def grid(batch, ngroups, nchunks, parts, **_):
    """Programs along each axis."""
    return ngroups * parts, nchunks, batch
