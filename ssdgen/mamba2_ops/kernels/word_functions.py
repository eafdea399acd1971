"""Numbers of 16 bits two to a word, while a loop carries them from trip to trip.

A compiler gives each of them a register of its own there, and takes the words apart that they were loaded in.
"""

import triton
import triton.language as tl


@triton.jit
def in_words(numbers):
    """Numbers [n] of 16 bits as words [n / 2] of 32, the first of two in the low half; others as they are."""
    if numbers.dtype.primitive_bitwidth == 16:
        bits = numbers.to(tl.uint16, bitcast=True).to(tl.uint32)
        low, high = tl.split(bits.reshape([numbers.shape[0] // 2, 2]))
        numbers = low | (high << 16)
    return numbers


@triton.jit
def from_words(words, DTYPE: tl.constexpr):
    """What `in_words` made of numbers of a dtype, as fp32."""
    if DTYPE.primitive_bitwidth == 16:
        if DTYPE == tl.bfloat16:
            low = (words << 16).to(tl.float32, bitcast=True)
            high = (words & 0xFFFF0000).to(tl.float32, bitcast=True)
        else:
            low = (words & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)
            high = (words >> 16).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)
        words = tl.join(low, high).reshape([words.shape[0] * 2])
    return words.to(tl.float32)
