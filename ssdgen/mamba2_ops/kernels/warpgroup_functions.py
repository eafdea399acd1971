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
