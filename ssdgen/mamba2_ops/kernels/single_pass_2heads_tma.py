"""One program walks all chunks of a sequence for 2 heads, the state in registers; it writes y, and the final state.

CB[i, j] = sum over n of C[i, n] * B[j, n]
scores_whole[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j])*CB[i, j]*dt[h, j], i >= j), (0, True))
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[h, j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[h, i, p] + y_ssm[h, i, p]    if HAS_D
y[h, i, p] = sigmoid(z[h, i, p])*y_skip[h, i, p]*z[h, i, p]    if HAS_Z
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
local_state[h, p, n] = sum over j of x_weighted[h, j, p] * B[j, n]
state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def single_pass_2heads_tma(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    C_desc,  # [batch, ngroups, seqlen, dstate]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    entering_ptr,  # [batch, nsegments, nheads, headdim, dstate], if HAS_ENTERING
    y_desc,  # [batch, nheads, seqlen, headdim]
    final_states_ptr,  # [batch, nheads, headdim, dstate], if STORE_FINAL
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
    HAS_ENTERING: tl.constexpr,
    STORE_FINAL: tl.constexpr,
):
    p_blocks = tl.cdiv(HEADDIM, BLOCK_P)
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    head_0 = tl.cast(tl.program_id(0) // p_blocks * 2, tl.int64)
    head_1 = head_0 + 1
    group = head_0 // (nheads // ngroups)
    segment = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    start = segment * segment_len
    stop = tl.minimum(start + segment_len, seqlen)
    chunks = tl.cast(tl.cdiv(stop - start, CHUNK), tl.int32)
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    n_in = n < DSTATE
    p_in = p < HEADDIM - p0
    if HAS_ENTERING:
        state_h0_base = entering_ptr + ((b * nsegments + segment) * nheads + head_0) * HEADDIM * DSTATE + p0 * DSTATE
        state_h0 = tl.load(
            state_h0_base + p[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_in[None, :], other=0.0
        )
        state_h0 = state_h0.to(tl.float32)
        state_h1_base = entering_ptr + ((b * nsegments + segment) * nheads + head_1) * HEADDIM * DSTATE + p0 * DSTATE
        state_h1 = tl.load(
            state_h1_base + p[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_in[None, :], other=0.0
        )
        state_h1 = state_h1.to(tl.float32)
    else:
        state_h0 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
        state_h1 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    if HAS_D:
        D_h0 = tl.load(
            D_ptr + head_0 * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim, mask=p_in, other=0.0
        )
        D_h0 = D_h0.to(tl.float32)
        D_h1 = tl.load(
            D_ptr + head_1 * stride_D_nheads + p0 * stride_D_headdim + p * stride_D_headdim, mask=p_in, other=0.0
        )
        D_h1 = D_h1.to(tl.float32)
    dA_cs_h0_base = dA_cs_ptr + (b * nheads + head_0) * padded
    dA_cs_h1_base = dA_cs_ptr + (b * nheads + head_1) * padded
    dt_h0_base = dt_ptr + (b * nheads + head_0) * padded
    dt_h1_base = dt_ptr + (b * nheads + head_1) * padded
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in = row < stop - row0
        dA_cs_h0 = tl.load(dA_cs_h0_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        dA_cs_h1 = tl.load(dA_cs_h1_base + row0 + row)  # [CHUNK]
        C = C_desc.load([tl.cast(b, tl.int32), tl.cast(group, tl.int32), tl.cast(row0, tl.int32), 0])
        C = C.reshape(CHUNK, BLOCK_N)
        B = B_desc.load([tl.cast(b, tl.int32), tl.cast(group, tl.int32), tl.cast(row0, tl.int32), 0])
        B = B.reshape(CHUNK, BLOCK_N)
        dt_h0 = tl.load(dt_h0_base + row0 + row)  # [CHUNK]
        x_h0 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_0, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h0 = x_h0.reshape(CHUNK, BLOCK_P)
        if HAS_Z:
            z_h0_base = z_ptr + b * stride_z_batch + head_0 * stride_z_nheads + p0
            z_h0 = tl.load(
                z_h0_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        dt_h1 = tl.load(dt_h1_base + row0 + row)  # [CHUNK]
        x_h1 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_1, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h1 = x_h1.reshape(CHUNK, BLOCK_P)
        if HAS_Z:
            z_h1_base = z_ptr + b * stride_z_batch + head_1 * stride_z_nheads + p0
            z_h1 = tl.load(
                z_h1_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        dA_last_h0 = tl.load(dA_cs_h0_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        dA_last_h1 = tl.load(dA_cs_h1_base + row0 + CHUNK - 1)
        left_decay_h0 = decay(dA_cs_h0)
        if HAS_SEQ_IDX:
            left_decay_h0 = tl.where(seq_before == seq, left_decay_h0, 0.0)
        left_decay_h1 = decay(dA_cs_h1)
        if HAS_SEQ_IDX:
            left_decay_h1 = tl.where(seq_before == seq, left_decay_h1, 0.0)
        # diagonal block: what the rows before give, inside the chunk
        CB = tl.dot(C, tl.trans(B), input_precision=PRECISION)
        scores_h0 = tl.where(
            row[:, None] >= row[None, :], CB * dt_h0[None, :] * decay(dA_cs_h0[:, None] - dA_cs_h0[None, :]), 0.0
        )
        if HAS_SEQ_IDX:
            scores_h0 = tl.where(seq[:, None] == seq[None, :], scores_h0, 0.0)
        # left factor: what the entering state gives to every row
        y_h0 = tl.dot(C, state_h0.to(DOT), input_precision=PRECISION)
        y_h0 = y_h0 * left_decay_h0[:, None]
        y_h0 = tl.dot(scores_h0.to(DOT), x_h0, acc=y_h0, input_precision=PRECISION)
        if HAS_D:
            y_h0 = y_h0 + x_h0.to(tl.float32) * D_h0[None, :]
        if HAS_Z:
            y_h0 = y_h0 * z_h0.to(tl.float32) * tl.sigmoid(z_h0.to(tl.float32))
        scores_h1 = tl.where(
            row[:, None] >= row[None, :], CB * dt_h1[None, :] * decay(dA_cs_h1[:, None] - dA_cs_h1[None, :]), 0.0
        )
        if HAS_SEQ_IDX:
            scores_h1 = tl.where(seq[:, None] == seq[None, :], scores_h1, 0.0)
        y_h1 = tl.dot(C, state_h1.to(DOT), input_precision=PRECISION)
        y_h1 = y_h1 * left_decay_h1[:, None]
        y_h1 = tl.dot(scores_h1.to(DOT), x_h1, acc=y_h1, input_precision=PRECISION)
        if HAS_D:
            y_h1 = y_h1 + x_h1.to(tl.float32) * D_h1[None, :]
        if HAS_Z:
            y_h1 = y_h1 * z_h1.to(tl.float32) * tl.sigmoid(z_h1.to(tl.float32))
        right_decay_h0 = dt_h0 * decay(dA_last_h0 - dA_cs_h0)
        if HAS_SEQ_IDX:
            right_decay_h0 = tl.where(seq_last == seq, right_decay_h0, 0.0)
        x_weighted_h0 = x_h0.to(tl.float32) * right_decay_h0[:, None]
        # centre and right factor: the state that leaves the chunk
        centre_decay_h0 = decay(dA_last_h0)
        if HAS_SEQ_IDX:
            centre_decay_h0 = tl.where(seq_before == seq_last, centre_decay_h0, 0.0)
        state_h0 = state_h0 * centre_decay_h0
        state_h0 = tl.dot(tl.trans(B), x_weighted_h0.to(DOT), acc=state_h0, input_precision=PRECISION)
        right_decay_h1 = dt_h1 * decay(dA_last_h1 - dA_cs_h1)
        if HAS_SEQ_IDX:
            right_decay_h1 = tl.where(seq_last == seq, right_decay_h1, 0.0)
        x_weighted_h1 = x_h1.to(tl.float32) * right_decay_h1[:, None]
        centre_decay_h1 = decay(dA_last_h1)
        if HAS_SEQ_IDX:
            centre_decay_h1 = tl.where(seq_before == seq_last, centre_decay_h1, 0.0)
        state_h1 = state_h1 * centre_decay_h1
        state_h1 = tl.dot(tl.trans(B), x_weighted_h1.to(DOT), acc=state_h1, input_precision=PRECISION)
        y_desc.store(
            [tl.cast(b, tl.int32), tl.cast(head_0, tl.int32), tl.cast(row0, tl.int32), p0],
            y_h0.to(y_desc.dtype).reshape(1, 1, CHUNK, BLOCK_P),
        )
        y_desc.store(
            [tl.cast(b, tl.int32), tl.cast(head_1, tl.int32), tl.cast(row0, tl.int32), p0],
            y_h1.to(y_desc.dtype).reshape(1, 1, CHUNK, BLOCK_P),
        )
    if STORE_FINAL:
        final_states_base = final_states_ptr + (b * nheads + head_0) * HEADDIM * DSTATE + p0 * DSTATE
        tl.store(final_states_base + p[None, :] * DSTATE + n[:, None], state_h0, mask=n_in[:, None] & p_in[None, :])
        final_states_base = final_states_ptr + (b * nheads + head_1) * HEADDIM * DSTATE + p0 * DSTATE
        tl.store(final_states_base + p[None, :] * DSTATE + n[:, None], state_h1, mask=n_in[:, None] & p_in[None, :])


def grid(batch, nheads, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads // 2 * triton.cdiv(HEADDIM, BLOCK_P), nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "C": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "y": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
    }
