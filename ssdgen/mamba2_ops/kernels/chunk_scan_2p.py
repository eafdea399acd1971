"""One program makes the output of one row tile of a chunk, from the state that enters the chunk.

CB[i, j] = sum over n of C[i, n] * B[j, n]
scores_whole[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j])*CB[i, j]*dt[h, j], i >= j), (0, True))
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[h, j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[h, i, p] + y_ssm[h, i, p]    if HAS_D
y[h, i, p] = sigmoid(z[h, i, p])*y_skip[h, i, p]*z[h, i, p]    if HAS_Z
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def chunk_scan_2p(
    x_ptr,  # [batch, seqlen, nheads, headdim]
    B_ptr,  # [batch, seqlen, ngroups, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    entering_ptr,  # [batch, nsegments, nheads, headdim, dstate]
    y_ptr,  # [batch, seqlen, nheads, headdim]
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
    padded,
    HEADDIM: tl.constexpr,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P_0: tl.constexpr,
    BLOCK_P_1: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
):
    p_blocks = 1
    head = tl.cast(tl.program_id(0) // p_blocks, tl.int64)
    group = head // (nheads // ngroups)
    row_tiles = CHUNK // BLOCK_M
    chunk = tl.cast(tl.program_id(1) // row_tiles, tl.int64)
    row_tile = tl.program_id(1) % row_tiles
    b = tl.cast(tl.program_id(2), tl.int64)
    start = chunk * CHUNK
    row0 = start + row_tile * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    p_0 = tl.arange(0, BLOCK_P_0)
    p_1 = tl.arange(0, BLOCK_P_1)
    row_position = row_tile * BLOCK_M + row
    row_in = row < seqlen - row0
    n_in = n < DSTATE
    p_0_in = p_0 < HEADDIM
    p_1_in = p_1 < HEADDIM - BLOCK_P_0
    dA_cs_i = tl.load(dA_cs_ptr + (b * nheads + head) * padded + row0 + row)  # [BLOCK_M]
    if HAS_SEQ_IDX:
        seq_i = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [BLOCK_M]
        seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(start - 1, 0))
    C_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups
    C = tl.load(C_base + row[:, None] * stride_C_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    state_0_base = entering_ptr + ((b * nsegments + chunk) * nheads + head) * HEADDIM * DSTATE
    state_0 = tl.load(
        state_0_base + p_0[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_0_in[None, :], other=0.0
    )
    state_0 = state_0.to(tl.float32)
    if HAS_D:
        D_0 = tl.load(D_ptr + head * stride_D_nheads + p_0 * stride_D_headdim, mask=p_0_in, other=0.0).to(tl.float32)
    state_1_base = entering_ptr + ((b * nsegments + chunk) * nheads + head) * HEADDIM * DSTATE + BLOCK_P_0 * DSTATE
    state_1 = tl.load(
        state_1_base + p_1[None, :] * DSTATE + n[:, None], mask=n_in[:, None] & p_1_in[None, :], other=0.0
    )
    state_1 = state_1.to(tl.float32)
    if HAS_D:
        D_1 = tl.load(
            D_ptr + head * stride_D_nheads + BLOCK_P_0 * stride_D_headdim + p_1 * stride_D_headdim,
            mask=p_1_in,
            other=0.0,
        )
        D_1 = D_1.to(tl.float32)
    left_decay = decay(dA_cs_i)
    if HAS_SEQ_IDX:
        left_decay = tl.where(seq_before == seq_i, left_decay, 0.0)
    # left factor: what the entering state gives to every row
    y_0 = tl.dot(C, state_0.to(DOT), input_precision=PRECISION)
    y_0 = y_0 * left_decay[:, None]
    y_1 = tl.dot(C, state_1.to(DOT), input_precision=PRECISION)
    y_1 = y_1 * left_decay[:, None]
    B_base = B_ptr + b * stride_B_batch + group * stride_B_ngroups
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    dt_base = dt_ptr + (b * nheads + head) * padded
    x_0_base = x_ptr + b * stride_x_batch + head * stride_x_nheads
    x_1_base = x_ptr + b * stride_x_batch + head * stride_x_nheads + BLOCK_P_0
    for step in range(tl.cdiv((row_tile + 1) * BLOCK_M, BLOCK_K)):
        col0 = start + step * BLOCK_K
        col_position = step * BLOCK_K + col
        col_in = col < seqlen - col0
        B = tl.load(
            B_base + col0 * stride_B_seqlen + col[:, None] * stride_B_seqlen + n[None, :],
            mask=col_in[:, None] & n_in[None, :],
            other=0.0,
        )
        dA_cs = tl.load(dA_cs_base + col0 + col)  # [BLOCK_K]
        dt = tl.load(dt_base + col0 + col)  # [BLOCK_K]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + col0 + col, mask=col_in, other=0)  # [BLOCK_K]
        x_0 = tl.load(
            x_0_base + col0 * stride_x_seqlen + col[:, None] * stride_x_seqlen + p_0[None, :],
            mask=col_in[:, None] & p_0_in[None, :],
            other=0.0,
        )
        x_1 = tl.load(
            x_1_base + col0 * stride_x_seqlen + col[:, None] * stride_x_seqlen + p_1[None, :],
            mask=col_in[:, None] & p_1_in[None, :],
            other=0.0,
        )
        # diagonal block: what the rows before give, inside the chunk
        CB = tl.dot(C, tl.trans(B), input_precision=PRECISION)
        scores = tl.where(
            col_position[None, :] <= row_position[:, None],
            CB * dt[None, :] * decay(dA_cs_i[:, None] - dA_cs[None, :]),
            0.0,
        )
        if HAS_SEQ_IDX:
            scores = tl.where(seq[None, :] == seq_i[:, None], scores, 0.0)
        y_0 = tl.dot(scores.to(DOT), x_0, acc=y_0, input_precision=PRECISION)
        y_1 = tl.dot(scores.to(DOT), x_1, acc=y_1, input_precision=PRECISION)
    x_0_i_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen + head * stride_x_nheads
    x_0_i = tl.load(
        x_0_i_base + row[:, None] * stride_x_seqlen + p_0[None, :], mask=row_in[:, None] & p_0_in[None, :], other=0.0
    )
    if HAS_D:
        y_0 = y_0 + x_0_i.to(tl.float32) * D_0[None, :]
    if HAS_Z:
        z_0_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + head * stride_z_nheads
        z_0 = tl.load(
            z_0_base + row[:, None] * stride_z_seqlen + p_0[None, :], mask=row_in[:, None] & p_0_in[None, :], other=0.0
        )
        y_0 = y_0 * z_0.to(tl.float32) * tl.sigmoid(z_0.to(tl.float32))
    y_base = y_ptr + b * seqlen * nheads * HEADDIM + row0 * nheads * HEADDIM + head * HEADDIM
    tl.store(y_base + row[:, None] * nheads * HEADDIM + p_0[None, :], y_0, mask=row_in[:, None] & p_0_in[None, :])
    x_1_i_base = x_ptr + b * stride_x_batch + row0 * stride_x_seqlen + head * stride_x_nheads + BLOCK_P_0
    x_1_i = tl.load(
        x_1_i_base + row[:, None] * stride_x_seqlen + p_1[None, :], mask=row_in[:, None] & p_1_in[None, :], other=0.0
    )
    if HAS_D:
        y_1 = y_1 + x_1_i.to(tl.float32) * D_1[None, :]
    if HAS_Z:
        z_1_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + head * stride_z_nheads + BLOCK_P_0
        z_1 = tl.load(
            z_1_base + row[:, None] * stride_z_seqlen + p_1[None, :], mask=row_in[:, None] & p_1_in[None, :], other=0.0
        )
        y_1 = y_1 * z_1.to(tl.float32) * tl.sigmoid(z_1.to(tl.float32))
    y_base = y_ptr + b * seqlen * nheads * HEADDIM + row0 * nheads * HEADDIM + head * HEADDIM + BLOCK_P_0
    tl.store(y_base + row[:, None] * nheads * HEADDIM + p_1[None, :], y_1, mask=row_in[:, None] & p_1_in[None, :])


def grid(batch, nheads, nsegments, CHUNK, BLOCK_M, **_):
    """Programs along each axis."""
    return nheads, nsegments * (CHUNK // BLOCK_M), batch
