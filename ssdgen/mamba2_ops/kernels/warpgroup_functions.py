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
