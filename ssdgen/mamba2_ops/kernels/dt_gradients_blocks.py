"""One program makes the gradients of the step sizes of one chunk, for a block of heads, from what the programs for
tiles of headdim and of dstate left.

dt_biased[h, j] = dt_bias[h] + dt_raw[h, j]    if HAS_DT_BIAS
dt_positive[h, j] = softplus(dt_biased[h, j])    if DT_SOFTPLUS
dt[h, j] = Min(dt_max, Max(dt_min, dt_positive[h, j]))
log_decay[h, j] = A[h]*dt[h, j]/log(2)
dA_cs[h, j] = running sum of log_decay[h, j] over j
dA_last[h] = last dA_cs[h, j]
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
centre_decay_whole[h] = 2**Min(0, dA_last[h])
d_centre_decay_whole[h] = Piecewise((d_centre_decay[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
d_right_decay_whole[h, j] = Piecewise((d_right_decay[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
d_dA_last_right_decay_terms[h, j] = d_right_decay_whole[h, j]*right_decay_whole[h, j]
d_dA_last_right_decay[h] = sum over j of d_dA_last_right_decay_terms[h, j]
d_left_decay_whole[h, i] = Piecewise((d_left_decay[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
d_dA_cs_scores_columns[h, j] = d_dt_scores[h, j]*dt[h, j]
d_dA_last_scaled[h] = centre_decay_whole[h]*d_centre_decay_whole[h] + d_dA_last_right_decay[h]
d_dA_cs_scaled[h, j] = -d_dA_cs_scores_columns[h, j] + d_dA_cs_scores_rows[h, j] +
    d_left_decay_whole[h, j]*left_decay_whole[h, j] - d_right_decay_whole[h, j]*right_decay_whole[h, j]
d_log_decay_dA_cs[h, j] = running sum of d_dA_cs_scaled[h, j] over j from its end
d_log_decay_scaled[h, j] = d_dA_last_scaled[h] + d_log_decay_dA_cs[h, j]
d_A_terms[h, j] = d_log_decay_scaled[h, j]*dt[h, j]
d_A[h] = sum over j of d_A_terms[h, j]
d_dt[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*d_right_decay_whole[h, j] + A[h]*d_log_decay_scaled[h, j] +
    d_dt_scores[h, j]
d_dt_positive[h, j] = Piecewise((d_dt[h, j], Eq(dt_positive[h, j], Min(dt_max, Max(dt_min, dt_positive[h, j])))), (0,
    True))
d_dt_biased[h, j] = sigmoid(dt_biased[h, j])*d_dt_positive[h, j]    if DT_SOFTPLUS
d_dt_bias[h] = sum over j of d_dt_biased[h, j]
d_dt_raw[h, j] = d_dt_biased[h, j]
"""

import triton
import triton.language as tl

from .functions import decay, maximum, minimum, softplus


@triton.jit
def dt_gradients_blocks(
    dt_raw_ptr,  # [batch, seqlen, nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    A_ptr,  # [nheads]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    d_dA_cs_scores_rows_ptr,  # [p_blocks, batch, nheads, padded]
    d_dt_scores_ptr,  # [p_blocks, batch, nheads, padded]
    d_right_decay_ptr,  # [p_blocks, batch, nheads, padded]
    d_left_decay_ptr,  # [n_blocks, batch, nheads, padded]
    d_centre_decay_ptr,  # [n_blocks, batch, nchunks, nheads]
    d_dt_ptr,  # [batch, seqlen, nheads]
    d_A_ptr,  # [batch, nchunks, nheads], if NEEDS_A
    d_dt_bias_ptr,  # [batch, nchunks, nheads], if NEEDS_DT_BIAS
    stride_dt_raw_batch: tl.int64,
    stride_dt_raw_seqlen: tl.int64,
    stride_dt_raw_nheads: tl.int64,
    batch,
    seqlen,
    nheads,
    nchunks,
    padded,
    p_blocks,
    n_blocks,
    dt_min,
    dt_max,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_SEQ_IDX: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
    NEEDS_A: tl.constexpr,
    NEEDS_DT_BIAS: tl.constexpr,
):
    head0 = tl.program_id(0) * BLOCK_H
    chunk = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    row0 = chunk * CHUNK
    row = tl.arange(0, CHUNK)
    head = tl.arange(0, BLOCK_H)
    row_in = row < seqlen - row0
    head_in = head < nheads - head0
    A = tl.load(A_ptr + head0 + head, mask=head_in, other=0.0).to(tl.float32)  # [BLOCK_H]
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head0 + head, mask=head_in, other=0.0).to(tl.float32)  # [BLOCK_H]
    d_dA_cs_scores_rows = tl.zeros([CHUNK, BLOCK_H], dtype=tl.float32)
    d_dt_scores = tl.zeros([CHUNK, BLOCK_H], dtype=tl.float32)
    d_right_decay = tl.zeros([CHUNK, BLOCK_H], dtype=tl.float32)
    d_dA_cs_scores_rows_base = d_dA_cs_scores_rows_ptr + b * nheads * padded + head0 * padded + row0
    d_dt_scores_base = d_dt_scores_ptr + b * nheads * padded + head0 * padded + row0
    d_right_decay_base = d_right_decay_ptr + b * nheads * padded + head0 * padded + row0
    for block in range(p_blocks):
        part = tl.cast(block, tl.int64)
        d_dA_cs_scores_rows_part = tl.load(
            d_dA_cs_scores_rows_base + part * batch * nheads * padded + head[None, :] * padded + row[:, None],
            mask=head_in[None, :],
            other=0.0,
        )
        d_dA_cs_scores_rows = d_dA_cs_scores_rows + d_dA_cs_scores_rows_part
        d_dt_scores_part = tl.load(
            d_dt_scores_base + part * batch * nheads * padded + head[None, :] * padded + row[:, None],
            mask=head_in[None, :],
            other=0.0,
        )
        d_dt_scores = d_dt_scores + d_dt_scores_part
        d_right_decay_part = tl.load(
            d_right_decay_base + part * batch * nheads * padded + head[None, :] * padded + row[:, None],
            mask=head_in[None, :],
            other=0.0,
        )
        d_right_decay = d_right_decay + d_right_decay_part
    d_left_decay = tl.zeros([CHUNK, BLOCK_H], dtype=tl.float32)
    d_centre_decay = tl.zeros([BLOCK_H], dtype=tl.float32)
    d_left_decay_base = d_left_decay_ptr + b * nheads * padded + head0 * padded + row0
    d_centre_decay_base = d_centre_decay_ptr + b * nchunks * nheads + chunk * nheads + head0
    for block in range(n_blocks):
        part = tl.cast(block, tl.int64)
        d_left_decay_part = tl.load(
            d_left_decay_base + part * batch * nheads * padded + head[None, :] * padded + row[:, None],
            mask=head_in[None, :],
            other=0.0,
        )
        d_left_decay = d_left_decay + d_left_decay_part
        d_centre_decay_part = tl.load(
            d_centre_decay_base + part * batch * nchunks * nheads + head, mask=head_in, other=0.0
        )
        d_centre_decay = d_centre_decay + d_centre_decay_part
    dt_raw_base = dt_raw_ptr + b * stride_dt_raw_batch + row0 * stride_dt_raw_seqlen + head0 * stride_dt_raw_nheads
    dt_raw = tl.load(
        dt_raw_base + row[:, None] * stride_dt_raw_seqlen + head[None, :] * stride_dt_raw_nheads,
        mask=row_in[:, None] & head_in[None, :],
        other=0.0,
    )
    dt_raw = dt_raw.to(tl.float32)
    if HAS_SEQ_IDX:
        seq_before = tl.load(seq_idx_ptr + b * seqlen + tl.maximum(row0 - 1, 0))
        seq_last = tl.load(seq_idx_ptr + b * seqlen + tl.minimum(row0 + CHUNK, seqlen) - 1)
        seq = tl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)  # [CHUNK]
    dt_biased = dt_raw
    if HAS_DT_BIAS:
        dt_biased = dt_bias[None, :] + dt_raw
    dt_positive = dt_biased
    if DT_SOFTPLUS:
        dt_positive = softplus(dt_biased)
    dt = tl.where(row_in[:, None], minimum(dt_max, maximum(dt_min, dt_positive)), 0.0)
    log_decay = dt * A[None, :] * 1.4426950408889634
    dA_cs = tl.cumsum(log_decay, axis=0)
    dA_last = tl.sum(log_decay, axis=0)
    centre_decay = decay(dA_last)
    if HAS_SEQ_IDX:
        d_centre_decay = tl.where(seq_before == seq_last, d_centre_decay, 0.0)
        d_right_decay = tl.where(seq_last == seq[:, None], d_right_decay, 0.0)
    right_decay = dt * decay(dA_last[None, :] - dA_cs)
    d_dA_last_right_decay_terms = d_right_decay * right_decay
    d_dA_last_right_decay = tl.sum(d_dA_last_right_decay_terms, axis=0)
    d_dA_last_scaled = d_dA_last_right_decay + centre_decay * d_centre_decay
    d_dA_cs_scores_columns = d_dt_scores * dt
    if HAS_SEQ_IDX:
        d_left_decay = tl.where(seq_before == seq[:, None], d_left_decay, 0.0)
    left_decay = decay(dA_cs)
    d_dA_cs_scaled = (
        d_dA_cs_scores_rows + d_left_decay * left_decay - d_dA_cs_scores_columns - d_right_decay * right_decay
    )
    d_log_decay_dA_cs = tl.cumsum(d_dA_cs_scaled, axis=0, reverse=True)
    d_log_decay_scaled = d_dA_last_scaled[None, :] + d_log_decay_dA_cs
    d_dt = tl.where(
        row_in[:, None],
        d_dt_scores + d_right_decay * decay(dA_last[None, :] - dA_cs) + d_log_decay_scaled * A[None, :],
        0.0,
    )
    d_dt = tl.where(dt_positive == minimum(dt_max, maximum(dt_min, dt_positive)), d_dt, 0.0)
    if DT_SOFTPLUS:
        d_dt = d_dt * tl.sigmoid(dt_biased)
    d_dt = d_dt
    tl.store(
        d_dt_ptr + b * seqlen * nheads + row0 * nheads + head0 + row[:, None] * nheads + head[None, :],
        d_dt,
        mask=row_in[:, None] & head_in[None, :],
    )
    if NEEDS_A:
        d_A_terms = d_log_decay_scaled * dt
        d_A = tl.sum(d_A_terms, axis=0)
        tl.store(d_A_ptr + (b * nchunks + chunk) * nheads + head0 + head, d_A, mask=head_in)
    if NEEDS_DT_BIAS:
        d_dt_bias = tl.sum(d_dt, axis=0)
        tl.store(d_dt_bias_ptr + (b * nchunks + chunk) * nheads + head0 + head, d_dt_bias, mask=head_in)


def grid(batch, nheads, nchunks, BLOCK_H, **_):
    """Programs along each axis."""
    return triton.cdiv(nheads, BLOCK_H), nchunks, batch
