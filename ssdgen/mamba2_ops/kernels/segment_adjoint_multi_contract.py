"""One program walks the chunks of a segment for one head from the last to the first, the adjoint of the state in
registers; it writes what a segment adds to the adjoint of the state that enters it.

left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_state_y_state[h, p, n] = sum over i of d_y_state[h, i, p] * C[h, i, n]
d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def segment_adjoint_multi_contract(
    C_ptr,  # [batch, seqlen, nheads, dstate]
    d_y_ptr,  # [batch, seqlen, nheads, headdim]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    summary_ptr,  # [batch, nsegments, nheads, headdim, dstate]
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_nheads: tl.int64,
    stride_d_y_batch: tl.int64,
    stride_d_y_seqlen: tl.int64,
    stride_d_y_nheads: tl.int64,
    stride_z_batch: tl.int64,
    stride_z_seqlen: tl.int64,
    stride_z_nheads: tl.int64,
    seqlen,
    nheads,
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
    HAS_Z: tl.constexpr,
):
    p_blocks = tl.cdiv(HEADDIM, BLOCK_P)
    p0 = tl.program_id(0) % p_blocks * BLOCK_P
    head = tl.cast(tl.program_id(0) // p_blocks, tl.int64)
    segment = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    first = segment * (segment_len // CHUNK)
    stop = tl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = tl.cast(tl.cdiv(stop - segment * segment_len, CHUNK), tl.int32)
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    n_in = n < DSTATE
    p_in = p < HEADDIM - p0
    d_state = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    d_y_base = d_y_ptr + b * stride_d_y_batch + head * stride_d_y_nheads + p0
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    C_base = C_ptr + b * stride_C_batch + head * stride_C_nheads
    for step in range(chunks):
        chunk = first + chunks - 1 - step
        row0 = chunk * CHUNK
        row_in = row < stop - row0
        d_y = tl.load(
            d_y_base + row0 * stride_d_y_seqlen + row[:, None] * stride_d_y_seqlen + p[None, :],
            mask=row_in[:, None] & p_in[None, :],
            other=0.0,
        )
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads + p0
            z = tl.load(
                z_base + row0 * stride_z_seqlen + row[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in[:, None] & p_in[None, :],
                other=0.0,
            )
        dA_cs = tl.load(dA_cs_base + row0 + row)  # [CHUNK]
        if HAS_SEQ_IDX:
            seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
            seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        dA_last = tl.load(dA_cs_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, stop) - 1)
        C = tl.load(
            C_base + row0 * stride_C_seqlen + row[:, None] * stride_C_seqlen + n[None, :],
            mask=row_in[:, None] & n_in[None, :],
            other=0.0,
        )
        d_y_skip = d_y
        if HAS_Z:
            d_y_skip = d_y.to(tl.float32) * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = tl.where(seq_before == seq, left_decay, 0.0)
        d_y_state = d_y_skip.to(tl.float32) * left_decay[:, None]
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = tl.where(seq_before == seq_last, centre_decay, 0.0)
        d_state = d_state * centre_decay
        d_state = tl.dot(tl.trans(C), d_y_state.to(DOT), acc=d_state, input_precision=PRECISION)
    summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
    tl.store(summary_base + p[None, :] * DSTATE + n[:, None], d_state, mask=n_in[:, None] & p_in[None, :])


def grid(batch, nheads, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads * triton.cdiv(HEADDIM, BLOCK_P), nsegments, batch
