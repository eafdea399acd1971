"""Formats that states are stored in: to fp32 and back, rounded to nearest or at random.

The bits of 8-bit floats are taken apart here, so that they are the same on GPUs that have no instruction for them.
"""

import triton
import triton.language as tl


@triton.jit
def widen(stored, FORMAT: tl.constexpr):
    """Stored numbers as fp32."""
    if FORMAT == "float8_e4m3fn":
        # the exponent moves to the place that fp32 has it at, and from its bias of 7 to 127
        bits = stored.to(tl.uint32)
        bits = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
    return stored.to(tl.float32)


@triton.jit
def narrow(value, row, column: tl.constexpr, token, seed, FORMAT: tl.constexpr, RANDOM: tl.constexpr):
    """fp32 numbers [BLOCK_P, BLOCK_N] in a format; `row` is the number of the first row, `column` that of a column."""
    if FORMAT == "float32":
        return value
    WIDTH: tl.constexpr = 8 if FORMAT == "int8" or FORMAT == "float8_e4m3fn" else 16
    if RANDOM:
        noise = random_bits(value.shape[0], value.shape[1], row, column, token, seed, WIDTH)
    bits = value.to(tl.uint32, bitcast=True)
    known = value == value
    if FORMAT == "int8":
        up = 0.5
        if RANDOM:
            up = (noise.to(tl.float32) + 0.5) * 0.00390625
        return tl.maximum(tl.minimum(tl.floor(value + up), 127.0), -127.0).to(tl.int8)
    elif FORMAT == "float8_e4m3fn":
        # the exponent of the format in the bits of fp32: a step is 2 ** 20 everywhere, among subnormal numbers too
        magnitude = tl.minimum(tl.abs(value), 448.0) * 7.52316384526264e-37  # 2 ** -120
        magnitude = magnitude.to(tl.uint32, bitcast=True)
        if RANDOM:
            magnitude = magnitude + (noise << 12) + 0x800
        else:
            magnitude = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
        magnitude = tl.where(known, magnitude >> 20, 0x7F)
        return (magnitude | ((bits >> 24) & 0x80)).to(tl.uint8)
    elif FORMAT == "bfloat16" and RANDOM:
        rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
        return tl.where(known, rounded, value).to(tl.bfloat16)
    elif FORMAT == "float16" and RANDOM:
        magnitude = (tl.abs(value) * 1.925929944387236e-34).to(tl.uint32, bitcast=True)  # 2 ** -112
        magnitude = tl.minimum((magnitude + (noise >> 3)) >> 13, 0x7C00)
        magnitude = tl.where(known, magnitude, 0x7FFF)
        return (magnitude | ((bits >> 16) & 0x8000)).to(tl.uint16).to(tl.float16, bitcast=True)
    elif FORMAT == "bfloat16":
        return value.to(tl.bfloat16)
    else:
        return value.to(tl.float16)


@triton.jit
def random_bits(ROWS: tl.constexpr, COLUMNS: tl.constexpr, row, column: tl.constexpr, token, seed, WIDTH: tl.constexpr):
    """WIDTH random bits for each element of a tile [ROWS, COLUMNS], by seven rounds of Philox.

    They depend on the seed and on the place of an element, not on the tile: one call makes those of 128 / WIDTH
    neighbours along a row, or of a single one in a tile that is narrower.
    """
    TOGETHER: tl.constexpr = 128 // WIDTH
    rows = (row + tl.arange(0, ROWS)).to(tl.uint32)
    if COLUMNS < TOGETHER:
        zero = tl.zeros([ROWS, COLUMNS], dtype=tl.uint32)
        columns = (column + tl.arange(0, COLUMNS)).to(tl.uint32)
        noise, _, _, _ = tl.philox(seed, zero + rows[:, None], zero + columns[None, :], zero + token, zero + 1, 7)
        return noise & ((1 << WIDTH) - 1)
    BLOCKS: tl.constexpr = COLUMNS // TOGETHER
    zero = tl.zeros([ROWS, BLOCKS], dtype=tl.uint32)
    blocks = (column // TOGETHER + tl.arange(0, BLOCKS)).to(tl.uint32)
    a, b, c, d = tl.philox(seed, zero + rows[:, None], zero + blocks[None, :], zero + token, zero, 7)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # [ROWS, BLOCKS, 2, 2], in the order a, b, c, d
    shifts = tl.arange(0, 32 // WIDTH).to(tl.uint32) * WIDTH
    noise = (words[:, :, :, :, None] >> shifts[None, None, None, None, :]) & ((1 << WIDTH) - 1)
    return noise.reshape(ROWS, COLUMNS)
