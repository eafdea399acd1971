"""The sigmoid of the kernels that are bound by how many instructions they issue."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), as the square of 1 / sqrt(1 + exp(-x)): five instructions, where a quotient takes eleven."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root
