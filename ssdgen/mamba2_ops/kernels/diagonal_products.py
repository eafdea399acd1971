"""One program multiplies C and B of each token of a chunk, for one group.

CB_products[j, n] = B[j, n]*C[j, n]
CB_diagonal[j] = sum over n of CB_products[j, n]
"""

import triton
import triton.language as tl


@triton.jit
def diagonal_products(
    B_ptr,  # [batch, seqlen, ngroups, dstate]
    C_ptr,  # [batch, seqlen, ngroups, dstate]
    CB_diagonal_ptr,  # [batch, ngroups, padded]
    stride_B_batch: tl.int64,
    stride_B_seqlen: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_seqlen: tl.int64,
    stride_C_ngroups: tl.int64,
    seqlen,
    ngroups,
    padded,
    DSTATE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    group = tl.cast(tl.program_id(0), tl.int64)
    row0 = tl.cast(tl.program_id(1) * CHUNK, tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    row = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    row_in = row < seqlen - row0
    n_in = n < DSTATE
    B_base = B_ptr + b * stride_B_batch + row0 * stride_B_seqlen + group * stride_B_ngroups
    B = tl.load(B_base + row[:, None] * stride_B_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    C_base = C_ptr + b * stride_C_batch + row0 * stride_C_seqlen + group * stride_C_ngroups
    C = tl.load(C_base + row[:, None] * stride_C_seqlen + n[None, :], mask=row_in[:, None] & n_in[None, :], other=0.0)
    CB_products = B.to(tl.float32) * C.to(tl.float32)
    CB_diagonal = tl.sum(CB_products, axis=1)
    tl.store(CB_diagonal_ptr + (b * ngroups + group) * padded + row0 + row, CB_diagonal)


def grid(batch, ngroups, padded, CHUNK, **_):
    """Programs along each axis."""
    return ngroups, padded // CHUNK, batch
