"""One program adds up what chunks have left for one head, always in the same order."""

import triton
import triton.language as tl


@triton.jit
def sum_heads(
    d_A_ptr,  # [nparts, nheads], if NEEDS_A
    d_dt_bias_ptr,  # [nparts, nheads], if NEEDS_DT_BIAS
    d_D_ptr,  # [nrows, nheads, headdim], if NEEDS_D
    d_A_sum_ptr,  # [nheads], if NEEDS_A
    d_dt_bias_sum_ptr,  # [nheads], if NEEDS_DT_BIAS
    d_D_sum_ptr,  # [nheads], if D_BY_HEAD
    d_D_rows_ptr,  # [nheads, headdim], if D_BY_CHANNEL
    nheads,
    nparts,
    nrows,
    HEADDIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NEEDS_A: tl.constexpr,
    NEEDS_DT_BIAS: tl.constexpr,
    NEEDS_D: tl.constexpr,
    D_BY_HEAD: tl.constexpr,
    D_BY_CHANNEL: tl.constexpr,
):
    head = tl.cast(tl.program_id(0), tl.int64)
    t = tl.arange(0, BLOCK_T)
    trips = tl.cast(tl.cdiv(nparts, BLOCK_T), tl.int32)
    if NEEDS_A:
        d_A_total = tl.zeros([BLOCK_T], dtype=tl.float32)
        for trip in range(trips):
            t0 = tl.cast(trip * BLOCK_T, tl.int64)
            t_in = t < nparts - t0
            d_A_part = tl.load(d_A_ptr + head + t0 * nheads + t * nheads, mask=t_in, other=0.0)  # [BLOCK_T]
            d_A_total = d_A_part + d_A_total
        d_A_all = tl.sum(d_A_total, axis=0)
        tl.store(d_A_sum_ptr + head, d_A_all)
    if NEEDS_DT_BIAS:
        d_dt_bias_total = tl.zeros([BLOCK_T], dtype=tl.float32)
        for trip in range(trips):
            t0 = tl.cast(trip * BLOCK_T, tl.int64)
            t_in = t < nparts - t0
            d_dt_bias_part = tl.load(d_dt_bias_ptr + head + t0 * nheads + t * nheads, mask=t_in, other=0.0)  # [BLOCK_T]
            d_dt_bias_total = d_dt_bias_part + d_dt_bias_total
        d_dt_bias_all = tl.sum(d_dt_bias_total, axis=0)
        tl.store(d_dt_bias_sum_ptr + head, d_dt_bias_all)
    if NEEDS_D:
        r = tl.arange(0, BLOCK_R)
        p = tl.arange(0, BLOCK_P)
        p_in = p < HEADDIM
        d_D_total = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
        turns = tl.cast(tl.cdiv(nrows, BLOCK_R), tl.int32)
        for turn in range(turns):
            r0 = tl.cast(turn * BLOCK_R, tl.int64)
            r_in = r < nrows - r0
            d_D_part_base = d_D_ptr + head * HEADDIM
            d_D_part = tl.load(
                d_D_part_base + r0 * nheads * HEADDIM + r[:, None] * nheads * HEADDIM + p[None, :],
                mask=r_in[:, None] & p_in[None, :],
                other=0.0,
            )
            d_D_total = d_D_part + d_D_total
        d_D_row = tl.sum(d_D_total, axis=0)
        if D_BY_CHANNEL:
            tl.store(d_D_rows_ptr + head * HEADDIM + p, d_D_row, mask=p_in)
        if D_BY_HEAD:
            d_D_all = tl.sum(d_D_row, axis=0)
            tl.store(d_D_sum_ptr + head, d_D_all)


def grid(nheads, **_):
    """Programs along each axis."""
    return nheads, 1
