"""One program walks the chunks of a segment for one head, the state in registers; it writes the state a segment leaves
behind and its total decay.

right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
x_weighted[h, j, p] = right_decay[h, j]*x[j, p]
local_state[h, p, n] = sum over j of x_weighted[h, j, p] * B[h, j, n]
state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
total_whole[h] = dA_last[h] + total[h]
total_out[h] = Piecewise((total_whole[h], Eq(seq_before, seq_last)), (-oo, True))    if HAS_SEQ_IDX
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def segment_state_multi_expand(
    x_ptr,  # [batch, seqlen, ngroups, headdim]
    B_ptr,  # [batch, seqlen, nheads, dstate]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    summary_ptr,  # [batch, nsegments, nheads, headdim, dstate]
    total_ptr,  # [batch, nsegments, nheads]
    stride_x_batch: tl.int64,
    stride_x_seqlen: tl.int64,
    stride_x_ngroups: tl.int64,
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_nheads: tl.int64,
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
    head = tl.cast(tl.program_id(0) // p_blocks, tl.int64)
    group = head // (nheads // ngroups)
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
    state = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    total = 0.0
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    dt_base = dt_ptr + (b * nheads + head) * padded
    x_base = x_ptr + b * stride_x_batch + group * stride_x_ngroups + p0
    B_base = B_ptr + b * stride_B_batch + head * stride_B_nheads
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in = row < stop - row0
        dA_cs = tl.load(dA_cs_base + row0 + row)  # [CHUNK]
        dA_last = tl.load(dA_cs_base + row0 + CHUNK - 1)
        dt = tl.load(dt_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        x = tl.load(
            x_base + row0 * stride_x_seqlen + row[:, None] * stride_x_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        if HAS_SEQ_IDX:
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        B = tl.load(
            B_base + row0 * stride_B_seqlen + row[:, None] * stride_B_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
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
        total = dA_last + total
        if HAS_SEQ_IDX:
            total = tl.where(seq_before == seq_last, total, float("-inf"))
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], state, mask=n_in[:, None] & p_in[None, :])
    if p0 == 0:
        tl.store(total_ptr + (b * nsegments + segment) * nheads + head, total)


def grid(batch, nheads, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads * triton.cdiv(HEADDIM, BLOCK_P), nsegments, batch
