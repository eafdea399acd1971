"""Scalar functions of the layer for the kernels that are specialised by warps, which are written in Gluon."""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def minimum(a, b):
    """The smaller of a and b; a NaN stays a NaN."""
    return gl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@gluon.jit
def maximum(a, b):
    """The larger of a and b; a NaN stays a NaN."""
    return gl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@gluon.jit
def decay(log2_decay):
    """2 ** log2_decay, never above 1: a difference of running sums can come out slightly positive."""
    return gl.exp2(minimum(log2_decay, 0.0))


@gluon.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + gl.exp(-x))


@gluon.jit
def leading(value, dtype: gl.constexpr):
    """What the first of a number's two terms takes, the rest being the second: as much of it as `dtype` holds.

    Of bfloat16 that is the upper half of the bits, one instruction; to convert there and back takes a slower pipe.
    """
    if dtype == gl.bfloat16:
        return (value.to(gl.uint32, bitcast=True) & 0xFFFF0000).to(gl.float32, bitcast=True)
    return value.to(dtype).to(gl.float32)


@gluon.jit
def softplus(x):
    """log(1 + exp(x)) without overflow for large x and without losing small results for very negative x."""
    u = gl.exp(-gl.abs(x))
    w = 1.0 + u
    # log(1 + u) = u where 1 + u rounds to 1, else log(w) corrected by the rounding of w
    log1p = gl.where(w == 1.0, u, gl.log(w) * (u / gl.where(w == 1.0, 1.0, w - 1.0)))
    return maximum(x, 0.0) + log1p


@gluon.jit
def _plus(a, b):
    return a + b


@gluon.jit
def running_sum(x):
    """Sums of a vector from its start up to each entry, that one included."""
    return gl.associative_scan(x, 0, _plus)
