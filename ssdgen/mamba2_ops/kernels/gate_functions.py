"""The sigmoid of the kernels that are bound by how many instructions they issue."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), as the square of 1 / sqrt(1 + exp(-x)): five instructions, where a quotient takes eleven."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def silu2_slope(u):
    """The derivative by u of x / (1 + exp(-x)) at x = -log(2) u, where the exponential is 2 ** u."""
    root = tl.rsqrt(1.0 + tl.exp2(u))
    share = root * root
    return ((u - share * u) * 0.48045301391820144 - 0.6931471805599453) * share
