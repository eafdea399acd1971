"""One program walks all chunks of a sequence for one head, the state in registers; it writes y, and the final state.

dt_biased[h, j] = dt_bias[h] + dt_raw[h, j]    if HAS_DT_BIAS
dt_positive[h, j] = softplus(dt_biased[h, j])    if DT_SOFTPLUS
dt[h, j] = Min(dt_max, Max(dt_min, dt_positive[h, j]))
log_decay[h, j] = Min(0, A[h, j])/log(2)
dA_cs[h, j] = running sum of log_decay[h, j] over j
dA_last[h] = last dA_cs[h, j]
CB[h, i, j] = sum over n of C[i, n] * B[h, j, n]
scores_whole[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j])*CB[h, i, j]*dt[h, j], i >= j), (0, True))
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[i, p] + y_ssm[h, i, p]    if HAS_D
y[h, i, p] = sigmoid(z[h, i, p])*y_skip[h, i, p]*z[h, i, p]    if HAS_Z
x_weighted[h, j, p] = right_decay[h, j]*x[j, p]
local_state[h, p, n] = sum over j of x_weighted[h, j, p] * B[h, j, n]
state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay, maximum, minimum, softplus


@triton.jit
def single_pass_inline_multi_expand(
    x_ptr,  # [batch, seqlen, ngroups, headdim]
    B_ptr,  # [batch, seqlen, nheads, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    dt_ptr,  # [batch, seqlen, nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    A_ptr,  # [batch, seqlen, nheads]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    cu_seqlens_ptr,  # [sequences + 1], if HAS_CU_SEQLENS
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    entering_ptr,  # [sequences, nsegments, nheads, headdim, dstate], if HAS_ENTERING
    y_ptr,  # [batch, seqlen, nheads, headdim]
    final_states_ptr,  # [sequences, nheads, headdim, dstate], if STORE_FINAL
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_ngroups: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_nheads: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_ngroups: tl.int64,
    stride_dt_batch: tl.int64,
    stride_dt_seqlen: tl.int64,
    stride_dt_nheads: tl.int64,
    stride_A_batch: tl.int64,
    stride_A_seqlen: tl.int64,
    stride_A_nheads: tl.int64,
    stride_D_nheads: tl.int64,
    stride_D_headdim: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_seqlen: tl.int64,
    stride_z_nheads: tl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    segment_len,
    dt_min,
    dt_max,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_ENTERING: tl.constexpr,
    STORE_FINAL: tl.constexpr,
    HAS_CU_SEQLENS: tl.constexpr,
):
    p_blocks = tl.cdiv(HEADDIM, BLOCK_P)
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    head = tl.cast(tl.program_id(0) // p_blocks, tl.int64)
    group = head // (nheads // ngroups)
    segment = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    if HAS_CU_SEQLENS:
        start = tl.load(cu_seqlens_ptr + b).to(tl.int64)
        stop = tl.load(cu_seqlens_ptr + b + 1).to(tl.int64)
        row_b = tl.cast(0, tl.int64)
    else:
        start = segment * segment_len
        stop = tl.minimum(start + segment_len, seqlen)
        row_b = b
    chunks = tl.cast(tl.cdiv(stop - start, CHUNK), tl.int32)
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    n_in = n < DSTATE
    p_in = p < HEADDIM - p0
    if HAS_ENTERING:
        state_base = entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        state = tl.load(state_base + p[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_in[None, :], other=0.0)
        state = state.to(tl.float32)
    else:
        state = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head).to(tl.float32)
    if HAS_D:
        D = tl.load(D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim, mask=p_in, other=0.0)
        D = D.to(tl.float32)
    A_base = A_ptr + row_b * stride_A_batch + head * stride_A_nheads
    C_base = C_ptr + row_b * stride_C_batch + group * stride_C_ngroups
    B_base = B_ptr + row_b * stride_B_batch + head * stride_B_nheads
    dt_base = dt_ptr + row_b * stride_dt_batch + head * stride_dt_nheads
    x_base = x_ptr + row_b * stride_x_batch + group * stride_x_ngroups + p0
    y_base = y_ptr + row_b * seqlen * nheads * HEADDIM + head * HEADDIM + p0
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in = row < stop - row0
        A = tl.load(A_base + row0 * stride_A_seqlen + row * stride_A_seqlen, mask=row_in, other=0.0).to(tl.float32)
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + row_b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_before = tl.load(seq_idx_ptr + row_b * seqlen + tl.maximum(row0 - 1, 0))
        C = tl.load(
            C_base + row0 * stride_C_seqlen + row[:, None] * stride_C_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
        B = tl.load(
            B_base + row0 * stride_B_seqlen + row[:, None] * stride_B_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
        dt = tl.load(dt_base + row0 * stride_dt_seqlen + row * stride_dt_seqlen, mask=row_in, other=0.0).to(tl.float32)
        x = tl.load(
            x_base + row0 * stride_x_seqlen + row[:, None] * stride_x_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_base = z_ptr + row_b * stride_z_batch + head * stride_z_nheads + p0
            z = tl.load(
                z_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        if HAS_SEQ_IDX:
            seq_last = tl.load(seq_idx_ptr + row_b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        log_decay = minimum(A, 0.0) * 1.4426950408889634
        dA_cs = tl.cumsum(log_decay, axis=0)
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = tl.where(seq_before == seq, left_decay, 0.0)
        # diagonal block: what the rows before give, inside the chunk
        CB = tl.dot(C, tl.trans(B), input_precision=PRECISION)
        if HAS_DT_BIAS:
            dt = dt + dt_bias
        if DT_SOFTPLUS:
            dt = softplus(dt)
        dt = tl.where(row_in, minimum(dt_max, maximum(dt_min, dt)), 0.0)
        scores = tl.where(row[:, None] >= row[None, :], CB * dt[None, :] * decay(dA_cs[:, None] - dA_cs[None, :]), 0.0)
        if HAS_SEQ_IDX:
            scores = tl.where(seq[:, None] == seq[None, :], scores, 0.0)
        # left factor: what the entering state gives to every row
        y = tl.dot(C, state.to(DOT), input_precision=PRECISION)
        y = y * left_decay[:, None]
        y = tl.dot(scores.to(DOT), x, acc=y, input_precision=PRECISION)
        if HAS_D:
            y = y + x.to(tl.float32) * D[None, :]
        if HAS_Z:
            y = y * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        dA_last = tl.sum(log_decay, axis=0)
        right_decay = dt * decay(dA_last - dA_cs)
        if HAS_SEQ_IDX:
            right_decay = tl.where(seq_last == seq, right_decay, 0.0)
        x_weighted = x.to(tl.float32) * right_decay[:, None]
        # centre and right factor: the state that leaves the chunk
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = tl.where(seq_before == seq_last, centre_decay, 0.0)
        state = state * centre_decay
        state = tl.dot(tl.trans(B), x_weighted.to(DOT), acc=state, input_precision=PRECISION)
        tl.store(
            y_base + row0 * nheads * HEADDIM + row[:, None] * nheads * HEADDIM + p[None, :],
            y,
            mask=row_in[:, None] & p_in[None, :],
        )
    if STORE_FINAL:
        final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        tl.store(final_states_base + p[None, :] * DSTATE + n[:, None], state, mask=n_in[:, None] & p_in[None, :])


def grid(nheads, nsegments, sequences, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads * triton.cdiv(HEADDIM, BLOCK_P), nsegments, sequences
