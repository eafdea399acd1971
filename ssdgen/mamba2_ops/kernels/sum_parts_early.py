"""One program adds up the parts of one gradient of a tile of channels, always in the same order."""

import triton
import triton.language as tl


@triton.jit
def sum_parts_early(
    parts_ptr,  # [nparts, sums, dim]
    d_weight_ptr,  # [dim, width]
    d_bias_ptr,  # [dim], if HAS_BIAS
    nparts,
    sums,
    dim,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    d0 = tl.program_id(0) * BLOCK_D
    column = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    d_in = d < dim - d0
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    trips = tl.cast(tl.cdiv(nparts, BLOCK_T), tl.int32)
    tl.extra.cuda.gdc_wait()
    parts_base = parts_ptr + column * dim + d0
    for trip in range(trips):
        t0 = tl.cast(trip * BLOCK_T, tl.int64)
        t_in = t < nparts - t0
        part = tl.load(
            parts_base + t0 * sums * dim + t[:, None] * sums * dim + d[None, :],
            mask=t_in[:, None] & d_in[None, :],
            other=0.0,
        )
        total = part + total
    summed = tl.sum(total, axis=0)
    if column < width:
        tl.store(d_weight_ptr + d0 * width + column + d * width, summed, mask=d_in)
    if HAS_BIAS:
        if column == width:
            tl.store(d_bias_ptr + d0 + d, summed, mask=d_in)


def grid(dim, columns, BLOCK_D, **_):
    """Programs along each axis."""
    return triton.cdiv(dim, BLOCK_D), columns
