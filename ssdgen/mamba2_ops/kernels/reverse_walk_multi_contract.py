"""One program walks the chunks of a segment for one head from the last to the first, the adjoint of the state in
registers; it writes the gradients of x, z and D, those of each chunk's decays and step sizes, and each chunk's
d_state_out.

mask_decay[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j]), i >= j), (0, True))
CB[h, i, j] = sum over n of C[h, i, n] * B[j, n]
scores_whole[h, i, j] = CB[h, i, j]*dt[h, j]*mask_decay[h, i, j]
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[h, i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[i, p] + y_ssm[h, i, p]    if HAS_D
d_x_weighted[h, j, p] = sum over n of B[j, n] * d_state_out[h, p, n]
d_right_decay_terms[h, j, p] = d_x_weighted[h, j, p]*x[j, p]
d_right_decay[h, j] = sum over p of d_right_decay_terms[h, j, p]
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_D_terms[h, i, p] = d_y_skip[h, i, p]*x[i, p]
d_D[h, p] = sum over i of d_D_terms[h, i, p]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[j, p]
d_x_y_diag[h, j, p] = sum over i of scores[h, i, j] * d_y_skip[h, i, p]
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_state_y_state[h, p, n] = sum over i of d_y_state[h, i, p] * C[h, i, n]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_scores_decayed[h, i, j] = d_scores_whole[h, i, j]*mask_decay[h, i, j]
d_dt_scores_terms[h, i, j] = CB[h, i, j]*d_scores_decayed[h, i, j]
d_dt_scores[h, j] = sum over i of d_dt_scores_terms[h, i, j]
d_CB[h, i, j] = d_scores_decayed[h, i, j]*dt[h, j]
d_dA_cs_scores_terms[h, i, j] = CB[h, i, j]*d_CB[h, i, j]
d_dA_cs_scores_rows[h, i] = sum over j of d_dA_cs_scores_terms[h, i, j]
d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
d_z[h, i, p] = ((1 - sigmoid(z[h, i, p]))*z[h, i, p] + 1)*sigmoid(z[h, i, p])*d_y[h, i, p]*y_skip[h, i, p]
d_x_head_base[h, j, p] = d_x_weighted[h, j, p]*right_decay[h, j] + d_x_y_diag[h, j, p]
d_x_head[h, j, p] = D[h, p]*d_y_skip[h, j, p] + d_x_head_base[h, j, p]    if HAS_D
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def reverse_walk_multi_contract(
    x_ptr,  # [batch, seqlen, ngroups, headdim]
    B_ptr,  # [batch, seqlen, ngroups, dstate]
    C_ptr,  # [batch, seqlen, nheads, dstate]
    d_y_ptr,  # [batch, seqlen, nheads, headdim]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    states_ptr,  # [batch, nchunks, nheads, headdim, dstate], if NEEDS_Z
    leaving_ptr,  # [batch, nsegments, nheads, headdim, dstate], if HAS_LEAVING
    d_x_ptr,  # [batch, seqlen, nheads, headdim], if NEEDS_X
    d_z_ptr,  # [batch, seqlen, nheads, headdim], if NEEDS_Z
    d_D_ptr,  # [batch, nsegments, nheads, headdim], if NEEDS_D
    d_dA_cs_scores_rows_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_dt_scores_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_right_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_states_ptr,  # [batch, nchunks, nheads, headdim, dstate], if STORE_ADJOINTS
    d_initial_ptr,  # [batch, nheads, headdim, dstate], if STORE_INITIAL
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_ngroups: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_nheads: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_seqlen: tl.int64,
    stride_d_y_nheads: tl.int64,
    stride_D_nheads: tl.int64,
    stride_D_headdim: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_seqlen: tl.int64,
    stride_z_nheads: tl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    nchunks,
    segment_len,
    padded,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_LEAVING: tl.constexpr,
    STORE_ADJOINTS: tl.constexpr,
    STORE_INITIAL: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_Z: tl.constexpr,
    NEEDS_D: tl.constexpr,
    NEEDS_DT: tl.constexpr,
):
    head = tl.cast(tl.program_id(0), tl.int64)
    group = head // (nheads // ngroups)
    segment = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    first = segment * (segment_len // CHUNK)
    stop = tl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = tl.cast(tl.cdiv(stop - segment * segment_len, CHUNK), tl.int32)
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    n_in = n < DSTATE
    p_in = p < HEADDIM
    if HAS_LEAVING:
        d_state_base = leaving_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE
        d_state = tl.load(
            d_state_base + p[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_in[None, :], other=0.0
        )
        d_state = d_state.to(tl.float32)
    else:
        d_state = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    if NEEDS_D:
        d_D_total = tl.zeros([BLOCK_P], dtype=tl.float32)
    if HAS_D:
        D = tl.load(D_ptr + head * stride_D_nheads + p * stride_D_headdim, mask=p_in, other=0.0).to(tl.float32)
    x_base = x_ptr + b * stride_x_batch + group * stride_x_ngroups
    d_y_base = d_y_ptr + b * stride_d_y_batch + head * stride_d_y_nheads
    B_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    C_base = C_ptr + b * stride_C_batch + head * stride_C_nheads
    dt_base = dt_ptr + (b * nheads + head) * padded
    for step in range(chunks):
        chunk = first + chunks - 1 - step
        row0 = chunk * CHUNK
        row_in = row < stop - row0
        x = tl.load(
            x_base + row0 * stride_x_seqlen + row[:, None] * stride_x_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        d_y = tl.load(
            d_y_base + row0 * stride_d_y_seqlen + row[:, None] * stride_d_y_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads
            z = tl.load(
                z_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        B = tl.load(
            B_base + row0 * stride_B_seqlen + row[:, None] * stride_B_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
        dA_cs = tl.load(dA_cs_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        C = tl.load(
            C_base + row0 * stride_C_seqlen + row[:, None] * stride_C_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
        dt = tl.load(dt_base + row0 + row)  # [CHUNK]
        if NEEDS_Z:
            state_base = states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE
            state = tl.load(
                state_base + chunk * nheads * HEADDIM * DSTATE + p[None, :] * DSTATE + n[:, None],
                mask=n_in[:, None] & p_in[None, :],
                other=0.0,
            )
        dA_last = tl.load(dA_cs_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        if STORE_ADJOINTS:
            d_states_base = d_states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE
            tl.store(
                d_states_base + chunk * nheads * HEADDIM * DSTATE + p[None, :] * DSTATE + n[:, None],
                d_state,
                mask=n_in[:, None] & p_in[None, :],
            )
        d_y_skip = d_y
        if HAS_Z:
            d_y_skip = d_y.to(tl.float32) * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        if NEEDS_D:
            d_D_terms = d_y_skip.to(tl.float32) * x.to(tl.float32)
            d_D = tl.sum(d_D_terms, axis=0)
            d_D_total = d_D + d_D_total
        # right factor: what the state that leaves the chunk was made of
        d_x_weighted = tl.dot(B, d_state.to(DOT), input_precision=PRECISION)
        d_right_decay_terms = d_x_weighted * x.to(tl.float32)
        d_right_decay = tl.sum(d_right_decay_terms, axis=1)
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = tl.where(seq_before == seq, left_decay, 0.0)
        # diagonal block, once more and its adjoint
        CB = tl.dot(B, tl.trans(C), input_precision=PRECISION)
        mask_decay = tl.where(row[None, :] >= row[:, None], decay(dA_cs[None, :] - dA_cs[:, None]), 0.0)
        scores = CB * mask_decay * dt[:, None]
        if HAS_SEQ_IDX:
            scores = tl.where(seq[None, :] == seq[:, None], scores, 0.0)
        if NEEDS_Z:
            y = tl.dot(C, state.to(DOT), input_precision=PRECISION)
            y = y * left_decay[:, None]
            y = tl.dot(tl.trans(scores).to(DOT), x, acc=y, input_precision=PRECISION)
            if HAS_D:
                y = y + x.to(tl.float32) * D[None, :]
            d_z = (
                d_y.to(tl.float32)
                * y
                * (z.to(tl.float32) * (1.0 - tl.sigmoid(z.to(tl.float32))) + 1.0)
                * tl.sigmoid(z.to(tl.float32))
            )
            d_z_base = d_z_ptr + b * seqlen * nheads * HEADDIM + head * HEADDIM
            tl.store(
                d_z_base + row0 * nheads * HEADDIM + row[:, None] * nheads * HEADDIM + p[None, :],
                d_z,
                mask=row_in[:, None] & p_in[None, :],
            )
        right_decay = dt * decay(dA_last - dA_cs)
        if HAS_SEQ_IDX:
            right_decay = tl.where(seq_last == seq, right_decay, 0.0)
        d_x = d_x_weighted * right_decay[:, None]
        d_x = tl.dot(scores.to(DOT), d_y_skip.to(DOT), acc=d_x, input_precision=PRECISION)
        if HAS_D:
            d_x = d_x + d_y_skip.to(tl.float32) * D[None, :]
        if NEEDS_X:
            d_x_base = d_x_ptr + b * seqlen * nheads * HEADDIM + head * HEADDIM
            tl.store(
                d_x_base + row0 * nheads * HEADDIM + row[:, None] * nheads * HEADDIM + p[None, :],
                d_x,
                mask=row_in[:, None] & p_in[None, :],
            )
        d_scores = tl.dot(x, tl.trans(d_y_skip).to(DOT), input_precision=PRECISION)
        if HAS_SEQ_IDX:
            d_scores = tl.where(seq[None, :] == seq[:, None], d_scores, 0.0)
        d_scores_decayed = d_scores * mask_decay
        d_CB = d_scores_decayed * dt[:, None]
        d_dA_cs_scores_terms = CB * d_CB
        d_dA_cs_scores_rows = tl.sum(d_dA_cs_scores_terms, axis=0)
        if NEEDS_DT:
            tl.store(d_dA_cs_scores_rows_ptr + (b * nheads + head) * padded + row0 + row, d_dA_cs_scores_rows)
        d_dt_scores_terms = CB * d_scores_decayed
        d_dt_scores = tl.sum(d_dt_scores_terms, axis=1)
        if NEEDS_DT:
            tl.store(d_dt_scores_ptr + (b * nheads + head) * padded + row0 + row, d_dt_scores)
            tl.store(d_right_decay_ptr + (b * nheads + head) * padded + row0 + row, d_right_decay)
        # left and centre factor: the adjoint of the state that enters the chunk
        d_y_state = d_y_skip.to(tl.float32) * left_decay[:, None]
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = tl.where(seq_before == seq_last, centre_decay, 0.0)
        d_state = d_state * centre_decay
        d_state = tl.dot(tl.trans(C), d_y_state.to(DOT), acc=d_state, input_precision=PRECISION)
    if STORE_INITIAL:
        tl.store(
            d_initial_ptr + (b * nheads + head) * HEADDIM * DSTATE + p[None, :] * DSTATE + n[:, None],
            d_state,
            mask=n_in[:, None] & p_in[None, :],
        )
    if NEEDS_D:
        tl.store(d_D_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM + p, d_D_total, mask=p_in)


def grid(batch, nheads, nsegments, **_):
    """Programs along each axis."""
    return nheads, nsegments, batch
