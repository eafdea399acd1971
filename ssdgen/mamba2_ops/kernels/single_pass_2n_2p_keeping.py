"""One program walks all chunks of a sequence for one head, the state in registers; it writes y, and the final state.

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
def single_pass_2n_2p_keeping(
    x_ptr,  # [batch, seqlen, nheads, headdim]
    B_ptr,  # [batch, seqlen, ngroups, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    entering_ptr,  # [batch, nsegments, nheads, headdim, dstate], if HAS_ENTERING
    y_ptr,  # [batch, seqlen, nheads, headdim]
    final_states_ptr,  # [batch, nheads, headdim, dstate], if STORE_FINAL
    states_ptr,  # [batch, nchunks, nheads, headdim, dstate]
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_nheads: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_ngroups: tl.int64,
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
    nchunks,
    padded,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N_0: tl.constexpr,
    BLOCK_N_1: tl.constexpr,
    BLOCK_P_0: tl.constexpr,
    BLOCK_P_1: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_ENTERING: tl.constexpr,
    STORE_FINAL: tl.constexpr,
):
    head = tl.cast(tl.program_id(0), tl.int64)
    group = head // (nheads // ngroups)
    segment = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    start = segment * segment_len
    stop = tl.minimum(start + segment_len, seqlen)
    chunks = tl.cast(tl.cdiv(stop - start, CHUNK), tl.int32)
    row = tl.arange(0, CHUNK)
    n_0 = tl.arange(0, BLOCK_N_0)
    n_1 = tl.arange(0, BLOCK_N_1)
    p_0 = tl.arange(0, BLOCK_P_0)
    p_1 = tl.arange(0, BLOCK_P_1)
    n_0_in = n_0 < DSTATE
    n_1_in = n_1 < DSTATE - BLOCK_N_0
    p_0_in = p_0 < HEADDIM
    p_1_in = p_1 < HEADDIM - BLOCK_P_0
    if HAS_ENTERING:
        state_0_0_base = entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE
        state_0_0 = tl.load(
            state_0_0_base + p_0[None, :] * DSTATE + n_0[:, None], mask=n_0_in[:, None] & p_0_in[None, :], other=0.0
        )
        state_0_0 = state_0_0.to(tl.float32)
        state_0_1_base = (
            entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
        )
        state_0_1 = tl.load(
            state_0_1_base + p_1[None, :] * DSTATE + n_0[:, None], mask=n_0_in[:, None] & p_1_in[None, :], other=0.0
        )
        state_0_1 = state_0_1.to(tl.float32)
        state_1_0_base = entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + BLOCK_N_0
        state_1_0 = tl.load(
            state_1_0_base + p_0[None, :] * DSTATE + n_1[:, None], mask=n_1_in[:, None] & p_0_in[None, :], other=0.0
        )
        state_1_0 = state_1_0.to(tl.float32)
        state_1_1_base = (
            entering_ptr
            + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE
            + BLOCK_P_0 * DSTATE
            + BLOCK_N_0
        )
        state_1_1 = tl.load(
            state_1_1_base + p_1[None, :] * DSTATE + n_1[:, None], mask=n_1_in[:, None] & p_1_in[None, :], other=0.0
        )
        state_1_1 = state_1_1.to(tl.float32)
    else:
        state_0_0 = tl.zeros([BLOCK_N_0, BLOCK_P_0], dtype=tl.float32)
        state_0_1 = tl.zeros([BLOCK_N_0, BLOCK_P_1], dtype=tl.float32)
        state_1_0 = tl.zeros([BLOCK_N_1, BLOCK_P_0], dtype=tl.float32)
        state_1_1 = tl.zeros([BLOCK_N_1, BLOCK_P_1], dtype=tl.float32)
    if HAS_D:
        D_0 = tl.load(D_ptr + head * stride_D_nheads + p_0 * stride_D_headdim, mask=p_0_in, other=0.0).to(tl.float32)
        D_1 = tl.load(
            D_ptr + head * stride_D_nheads + BLOCK_P_0 * stride_D_headdim + p_1 * stride_D_headdim,
            mask=p_1_in,
            other=0.0,
        )
        D_1 = D_1.to(tl.float32)
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    C_0_base = C_ptr + b * stride_C_batch + group * stride_C_ngroups
    B_0_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups
    C_1_base = C_ptr + b * stride_C_batch + group * stride_C_ngroups + BLOCK_N_0
    B_1_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups + BLOCK_N_0
    dt_base = dt_ptr + (b * nheads + head) * padded
    x_0_base = x_ptr + b * stride_x_batch + head * stride_x_nheads
    x_1_base = x_ptr + b * stride_x_batch + head * stride_x_nheads + BLOCK_P_0
    state_0_0_base = states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE
    state_0_1_base = states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
    state_1_0_base = states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE + BLOCK_N_0
    state_1_1_base = (
        states_ptr + b * nchunks * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE + BLOCK_N_0
    )
    y_0_base = y_ptr + b * seqlen * nheads * HEADDIM + head * HEADDIM
    y_1_base = y_ptr + b * seqlen * nheads * HEADDIM + head * HEADDIM + BLOCK_P_0
    for step in range(chunks):
        row0 = start + step * CHUNK
        chunk = segment * (segment_len // CHUNK) + step
        row_in = row < stop - row0
        dA_cs = tl.load(dA_cs_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        C_0 = tl.load(
            C_0_base + row0 * stride_C_seqlen + row[:, None] * stride_C_seqlen + n_0[None, :],
            mask=row_in[:, None] & n_0_in[None, :],
            other=0.0,
        )
        B_0 = tl.load(
            B_0_base + row0 * stride_B_seqlen + row[:, None] * stride_B_seqlen + n_0[None, :],
            mask=row_in[:, None] & n_0_in[None, :],
            other=0.0,
        )
        C_1 = tl.load(
            C_1_base + row0 * stride_C_seqlen + row[:, None] * stride_C_seqlen + n_1[None, :],
            mask=row_in[:, None] & n_1_in[None, :],
            other=0.0,
        )
        B_1 = tl.load(
            B_1_base + row0 * stride_B_seqlen + row[:, None] * stride_B_seqlen + n_1[None, :],
            mask=row_in[:, None] & n_1_in[None, :],
            other=0.0,
        )
        dt = tl.load(dt_base + row0 + row)  # [CHUNK]
        x_0 = tl.load(
            x_0_base + row0 * stride_x_seqlen + row[:, None] * stride_x_seqlen + p_0[None, :],
            mask=row_in[:, None] & p_0_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_0_base = z_ptr + b * stride_z_batch + head * stride_z_nheads
            z_0 = tl.load(
                z_0_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p_0[None, :],
                mask=row_in[:, None] & p_0_in[None, :],
                other=0.0,
            )
        x_1 = tl.load(
            x_1_base + row0 * stride_x_seqlen + row[:, None] * stride_x_seqlen + p_1[None, :],
            mask=row_in[:, None] & p_1_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_1_base = z_ptr + b * stride_z_batch + head * stride_z_nheads + BLOCK_P_0
            z_1 = tl.load(
                z_1_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p_1[None, :],
                mask=row_in[:, None] & p_1_in[None, :],
                other=0.0,
            )
        dA_last = tl.load(dA_cs_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        tl.store(
            state_0_0_base + chunk * nheads * HEADDIM * DSTATE + p_0[None, :] * DSTATE + n_0[:, None],
            state_0_0,
            mask=n_0_in[:, None] & p_0_in[None, :],
        )
        tl.store(
            state_0_1_base + chunk * nheads * HEADDIM * DSTATE + p_1[None, :] * DSTATE + n_0[:, None],
            state_0_1,
            mask=n_0_in[:, None] & p_1_in[None, :],
        )
        tl.store(
            state_1_0_base + chunk * nheads * HEADDIM * DSTATE + p_0[None, :] * DSTATE + n_1[:, None],
            state_1_0,
            mask=n_1_in[:, None] & p_0_in[None, :],
        )
        tl.store(
            state_1_1_base + chunk * nheads * HEADDIM * DSTATE + p_1[None, :] * DSTATE + n_1[:, None],
            state_1_1,
            mask=n_1_in[:, None] & p_1_in[None, :],
        )
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = tl.where(seq_before == seq, left_decay, 0.0)
        # diagonal block: what the rows before give, inside the chunk
        CB = tl.dot(C_0, tl.trans(B_0), input_precision=PRECISION)
        CB = tl.dot(C_1, tl.trans(B_1), acc=CB, input_precision=PRECISION)
        scores = tl.where(row[:, None] >= row[None, :], CB * dt[None, :] * decay(dA_cs[:, None] - dA_cs[None, :]), 0.0)
        if HAS_SEQ_IDX:
            scores = tl.where(seq[:, None] == seq[None, :], scores, 0.0)
        # left factor: what the entering state gives to every row
        y_0 = tl.dot(C_0, state_0_0.to(DOT), input_precision=PRECISION)
        y_0 = tl.dot(C_1, state_1_0.to(DOT), acc=y_0, input_precision=PRECISION)
        y_0 = y_0 * left_decay[:, None]
        y_0 = tl.dot(scores.to(DOT), x_0, acc=y_0, input_precision=PRECISION)
        if HAS_D:
            y_0 = y_0 + x_0.to(tl.float32) * D_0[None, :]
        if HAS_Z:
            y_0 = y_0 * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
        y_1 = tl.dot(C_0, state_0_1.to(DOT), input_precision=PRECISION)
        y_1 = tl.dot(C_1, state_1_1.to(DOT), acc=y_1, input_precision=PRECISION)
        y_1 = y_1 * left_decay[:, None]
        y_1 = tl.dot(scores.to(DOT), x_1, acc=y_1, input_precision=PRECISION)
        if HAS_D:
            y_1 = y_1 + x_1.to(tl.float32) * D_1[None, :]
        if HAS_Z:
            y_1 = y_1 * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
        right_decay = dt * decay(dA_last - dA_cs)
        if HAS_SEQ_IDX:
            right_decay = tl.where(seq_last == seq, right_decay, 0.0)
        x_weighted_0 = x_0.to(tl.float32) * right_decay[:, None]
        # centre and right factor: the state that leaves the chunk
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = tl.where(seq_before == seq_last, centre_decay, 0.0)
        state_0_0 = state_0_0 * centre_decay
        state_0_0 = tl.dot(tl.trans(B_0), x_weighted_0.to(DOT), acc=state_0_0, input_precision=PRECISION)
        x_weighted_1 = x_1.to(tl.float32) * right_decay[:, None]
        state_0_1 = state_0_1 * centre_decay
        state_0_1 = tl.dot(tl.trans(B_0), x_weighted_1.to(DOT), acc=state_0_1, input_precision=PRECISION)
        state_1_0 = state_1_0 * centre_decay
        state_1_0 = tl.dot(tl.trans(B_1), x_weighted_0.to(DOT), acc=state_1_0, input_precision=PRECISION)
        state_1_1 = state_1_1 * centre_decay
        state_1_1 = tl.dot(tl.trans(B_1), x_weighted_1.to(DOT), acc=state_1_1, input_precision=PRECISION)
        tl.store(
            y_0_base + row0 * nheads * HEADDIM + row[:, None] * nheads * HEADDIM + p_0[None, :],
            y_0,
            mask=row_in[:, None] & p_0_in[None, :],
        )
        tl.store(
            y_1_base + row0 * nheads * HEADDIM + row[:, None] * nheads * HEADDIM + p_1[None, :],
            y_1,
            mask=row_in[:, None] & p_1_in[None, :],
        )
    if STORE_FINAL:
        final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE
        tl.store(
            final_states_base + p_0[None, :] * DSTATE + n_0[:, None], state_0_0, mask=n_0_in[:, None] & p_0_in[None, :]
        )
        final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
        tl.store(
            final_states_base + p_1[None, :] * DSTATE + n_0[:, None], state_0_1, mask=n_0_in[:, None] & p_1_in[None, :]
        )
        final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE + BLOCK_N_0
        tl.store(
            final_states_base + p_0[None, :] * DSTATE + n_1[:, None], state_1_0, mask=n_1_in[:, None] & p_0_in[None, :]
        )
        final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE + BLOCK_N_0
        tl.store(
            final_states_base + p_1[None, :] * DSTATE + n_1[:, None], state_1_1, mask=n_1_in[:, None] & p_1_in[None, :]
        )


def grid(batch, nheads, nsegments, **_):
    """Programs along each axis."""
    return nheads, nsegments, batch
