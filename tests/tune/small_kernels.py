"""Kernels to compile in tests: a product along a loop, one that needs too much, and one that is wrong."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def single_pass_small(
    x_ptr, B_desc, y_ptr, seqlen, stride: tl.int64, scale, z_ptr, ROWS: tl.constexpr, P: tl.constexpr
):
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, P)
    total = tl.zeros((P, P), dtype=tl.float32)
    for start in range(0, seqlen, ROWS):
        mask = (start + rows < seqlen)[:, None]
        x = tl.load(x_ptr + (start + rows)[:, None] * stride + columns[None, :], mask=mask, other=0.0)
        total += tl.dot(tl.trans(x), B_desc.load([start, 0])) * scale
    tl.store(y_ptr + columns[:, None] * P + columns[None, :], total.to(tl.bfloat16))


@triton.jit
def broken(y_ptr, ROWS: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, ROWS), no_such_name)  # noqa: F821
