"""Scalar functions of the layer in forms that stay right at the ends of the number range."""

import triton
import triton.language as tl


@triton.jit
def minimum(a, b):
    """The smaller of a and b; a NaN stays a NaN."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(a, b):
    """The larger of a and b; a NaN stays a NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def decay(log2_decay):
    """2 ** log2_decay, never above 1: a difference of running sums can come out slightly positive."""
    return tl.exp2(minimum(log2_decay, 0.0))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow for large x and without losing small results for very negative x."""
    u = tl.exp(-tl.abs(x))
    w = 1.0 + u
    # log(1 + u) = u where 1 + u rounds to 1, else log(w) corrected by the rounding of w
    log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    return maximum(x, 0.0) + log1p
