"""One program walks the chunks of a segment for 4 heads, the state in registers; it writes the state a segment leaves
behind and its total decay.

right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
local_state[h, p, n] = sum over j of x_weighted[h, j, p] * B[j, n]
state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
total_whole[h] = dA_last[h] + total[h]
total_out[h] = Piecewise((total_whole[h], Eq(seq_before, seq_last)), (-oo, True))    if HAS_SEQ_IDX
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def segment_state_4heads_tma(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    summary_ptr,  # [batch, nsegments, nheads, headdim, dstate]
    total_ptr,  # [batch, nsegments, nheads]
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
):
    p_blocks = tl.cdiv(HEADDIM, BLOCK_P)
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    head_0 = tl.cast(tl.program_id(0) // p_blocks * 4, tl.int64)
    head_1 = head_0 + 1
    head_2 = head_0 + 2
    head_3 = head_0 + 3
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
    state_h0 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    state_h1 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    state_h2 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    state_h3 = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    total_h0 = 0.0
    total_h1 = 0.0
    total_h2 = 0.0
    total_h3 = 0.0
    dA_cs_h0_base = dA_cs_ptr + (b * nheads + head_0) * padded
    dt_h0_base = dt_ptr + (b * nheads + head_0) * padded
    dA_cs_h1_base = dA_cs_ptr + (b * nheads + head_1) * padded
    dt_h1_base = dt_ptr + (b * nheads + head_1) * padded
    dA_cs_h2_base = dA_cs_ptr + (b * nheads + head_2) * padded
    dt_h2_base = dt_ptr + (b * nheads + head_2) * padded
    dA_cs_h3_base = dA_cs_ptr + (b * nheads + head_3) * padded
    dt_h3_base = dt_ptr + (b * nheads + head_3) * padded
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in = row < stop - row0
        dA_cs_h0 = tl.load(dA_cs_h0_base + row0 + row)  # [CHUNK]
        dA_last_h0 = tl.load(dA_cs_h0_base + row0 + CHUNK - 1)
        dt_h0 = tl.load(dt_h0_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        x_h0 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_0, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h0 = x_h0.reshape(CHUNK, BLOCK_P)
        if HAS_SEQ_IDX:
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        B = B_desc.load([tl.cast(b, tl.int32), tl.cast(group, tl.int32), tl.cast(row0, tl.int32), 0])
        B = B.reshape(CHUNK, BLOCK_N)
        dA_cs_h1 = tl.load(dA_cs_h1_base + row0 + row)  # [CHUNK]
        dA_last_h1 = tl.load(dA_cs_h1_base + row0 + CHUNK - 1)
        dt_h1 = tl.load(dt_h1_base + row0 + row)  # [CHUNK]
        x_h1 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_1, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h1 = x_h1.reshape(CHUNK, BLOCK_P)
        dA_cs_h2 = tl.load(dA_cs_h2_base + row0 + row)  # [CHUNK]
        dA_last_h2 = tl.load(dA_cs_h2_base + row0 + CHUNK - 1)
        dt_h2 = tl.load(dt_h2_base + row0 + row)  # [CHUNK]
        x_h2 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_2, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h2 = x_h2.reshape(CHUNK, BLOCK_P)
        dA_cs_h3 = tl.load(dA_cs_h3_base + row0 + row)  # [CHUNK]
        dA_last_h3 = tl.load(dA_cs_h3_base + row0 + CHUNK - 1)
        dt_h3 = tl.load(dt_h3_base + row0 + row)  # [CHUNK]
        x_h3 = x_desc.load([tl.cast(b, tl.int32), tl.cast(head_3, tl.int32), tl.cast(row0, tl.int32), p0])
        x_h3 = x_h3.reshape(CHUNK, BLOCK_P)
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
        right_decay_h2 = dt_h2 * decay(dA_last_h2 - dA_cs_h2)
        if HAS_SEQ_IDX:
            right_decay_h2 = tl.where(seq_last == seq, right_decay_h2, 0.0)
        x_weighted_h2 = x_h2.to(tl.float32) * right_decay_h2[:, None]
        centre_decay_h2 = decay(dA_last_h2)
        if HAS_SEQ_IDX:
            centre_decay_h2 = tl.where(seq_before == seq_last, centre_decay_h2, 0.0)
        state_h2 = state_h2 * centre_decay_h2
        state_h2 = tl.dot(tl.trans(B), x_weighted_h2.to(DOT), acc=state_h2, input_precision=PRECISION)
        right_decay_h3 = dt_h3 * decay(dA_last_h3 - dA_cs_h3)
        if HAS_SEQ_IDX:
            right_decay_h3 = tl.where(seq_last == seq, right_decay_h3, 0.0)
        x_weighted_h3 = x_h3.to(tl.float32) * right_decay_h3[:, None]
        centre_decay_h3 = decay(dA_last_h3)
        if HAS_SEQ_IDX:
            centre_decay_h3 = tl.where(seq_before == seq_last, centre_decay_h3, 0.0)
        state_h3 = state_h3 * centre_decay_h3
        state_h3 = tl.dot(tl.trans(B), x_weighted_h3.to(DOT), acc=state_h3, input_precision=PRECISION)
        total_h0 = dA_last_h0 + total_h0
        if HAS_SEQ_IDX:
            total_h0 = tl.where(seq_before == seq_last, total_h0, float("-inf"))
        total_h1 = dA_last_h1 + total_h1
        if HAS_SEQ_IDX:
            total_h1 = tl.where(seq_before == seq_last, total_h1, float("-inf"))
        total_h2 = dA_last_h2 + total_h2
        if HAS_SEQ_IDX:
            total_h2 = tl.where(seq_before == seq_last, total_h2, float("-inf"))
        total_h3 = dA_last_h3 + total_h3
        if HAS_SEQ_IDX:
            total_h3 = tl.where(seq_before == seq_last, total_h3, float("-inf"))
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head_0) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], state_h0, mask=n_in[:, None] & p_in[None, :])
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head_1) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], state_h1, mask=n_in[:, None] & p_in[None, :])
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head_2) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], state_h2, mask=n_in[:, None] & p_in[None, :])
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head_3) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], state_h3, mask=n_in[:, None] & p_in[None, :])
    if p0 == 0:
        tl.store(total_ptr + (b * nsegments + segment) * nheads + head_0, total_h0)
        tl.store(total_ptr + (b * nsegments + segment) * nheads + head_1, total_h1)
        tl.store(total_ptr + (b * nsegments + segment) * nheads + head_2, total_h2)
        tl.store(total_ptr + (b * nsegments + segment) * nheads + head_3, total_h3)


def grid(batch, nheads, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads // 4 * triton.cdiv(HEADDIM, BLOCK_P), nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
    }
