"""One program makes the step sizes of one chunk and their running log-decay, for a block of heads.

log_decay[h, j] = Min(0, A[h, j])/log(2)
dA_cs[h, j] = running sum of log_decay[h, j] over j
"""

import triton
import triton.language as tl

from .functions import maximum, minimum, softplus


@triton.jit
def dt_cumsum_gated(
    dt_raw_ptr,  # [batch, seqlen, nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    A_ptr,  # [batch, seqlen, nheads]
    dt_ptr,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    stride_dt_raw_batch: tl.int64,
    stride_dt_raw_seqlen: tl.int64,
    stride_dt_raw_nheads: tl.int64,
    stride_A_batch: tl.int64,
    stride_A_seqlen: tl.int64,
    stride_A_nheads: tl.int64,
    seqlen,
    nheads,
    padded,
    dt_min,
    dt_max,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    DT_SOFTPLUS: tl.constexpr,
):
    head0 = tl.program_id(0) * BLOCK_H
    row0 = tl.cast(tl.program_id(1) * CHUNK, tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    row = tl.arange(0, CHUNK)
    head = tl.arange(0, BLOCK_H)
    row_in = row < seqlen - row0
    head_in = head < nheads - head0
    if HAS_DT_BIAS:
        dt_bias = tl.load(dt_bias_ptr + head0 + head, mask=head_in, other=0.0).to(tl.float32)  # [BLOCK_H]
    dt_base = dt_raw_ptr + b * stride_dt_raw_batch + row0 * stride_dt_raw_seqlen + head0 * stride_dt_raw_nheads
    dt = tl.load(
        dt_base + row[:, None] * stride_dt_raw_seqlen + head[None, :] * stride_dt_raw_nheads,
        mask=row_in[:, None] & head_in[None, :],
        other=0.0,
    )
    dt = dt.to(tl.float32)
    if HAS_DT_BIAS:
        dt = dt + dt_bias[None, :]
    if DT_SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(row_in[:, None], minimum(dt_max, maximum(dt_min, dt)), 0.0)
    tl.store(
        dt_ptr + b * nheads * padded + head0 * padded + row0 + head[None, :] * padded + row[:, None],
        dt,
        mask=head_in[None, :],
    )
    A_base = A_ptr + b * stride_A_batch + row0 * stride_A_seqlen + head0 * stride_A_nheads
    A = tl.load(
        A_base + row[:, None] * stride_A_seqlen + head[None, :] * stride_A_nheads,
        mask=row_in[:, None] & head_in[None, :],
        other=0.0,
    )
    A = A.to(tl.float32)
    log_decay = minimum(A, 0.0) * 1.4426950408889634
    dA_cs = tl.cumsum(log_decay, axis=0)
    tl.store(
        dA_cs_ptr + b * nheads * padded + head0 * padded + row0 + head[None, :] * padded + row[:, None],
        dA_cs,
        mask=head_in[None, :],
    )


def grid(batch, nheads, padded, CHUNK, BLOCK_H, **_):
    """Programs along each axis."""
    return triton.cdiv(nheads, BLOCK_H), padded // CHUNK, batch
