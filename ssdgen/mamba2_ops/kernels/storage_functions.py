"""Formats that states are stored in: to fp32 and back, rounded to nearest or at random.

The bits of 8-bit floats are taken apart here for GPUs that have no instructions for them, with the same results.
"""

import triton
import triton.language as tl


@triton.jit
def widen(stored, FORMAT: tl.constexpr):
    """Stored numbers as fp32."""
    if FORMAT == "float8e4nv":
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    if FORMAT == "float8_e4m3fn":
        # the exponent moves to the place that fp32 has it at, and from its bias of 7 to 127; the sign is all bits above
        bits = (stored.to(tl.int8, bitcast=True).to(tl.int32) << 20) & -0x78100000
        return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
    if FORMAT == "int8_of_word":
        return bytes_of_words(stored).to(tl.float32)
    if FORMAT == "bfloat16":
        # the same as a conversion, which compilers make in one instruction more for every second number
        return (stored.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return stored.to(tl.float32)


@triton.jit
def bytes_of_words(stored):
    """int8 as int32, by one of NVIDIA's instructions for each byte of a word: the sign is that byte's, three times.

    The conversion from int32 to fp32 goes at half of the full rate, the one from int8 at an eighth.
    """
    return tl.inline_asm_elementwise(
        """
        prmt.b32 $0, $4, 0, 0x8880;
        prmt.b32 $1, $4, 0, 0x9991;
        prmt.b32 $2, $4, 0, 0xAAA2;
        prmt.b32 $3, $4, 0, 0xBBB3;
        """,
        constraints="=r,=r,=r,=r,r",
        args=[stored],
        dtype=tl.int32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def narrow(value, row, column: tl.constexpr, token, seed, FORMAT: tl.constexpr, RANDOM: tl.constexpr):
    """fp32 numbers [BLOCK_P, BLOCK_N] in a format; `row` is the number of the first row, `column` that of a column."""
    WIDTH: tl.constexpr = 16 if FORMAT == "bfloat16" or FORMAT == "float16" else 8
    noise = random_bits(value.shape[0], value.shape[1], row, column, token, seed, WIDTH) if RANDOM else 0
    if FORMAT == "int8" or FORMAT == "int8_of_word":
        stored = to_int8(value, noise, RANDOM)
    elif FORMAT == "float8e4nv" and not RANDOM:
        stored = value.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    elif FORMAT == "float8e4nv" or FORMAT == "float8_e4m3fn":
        stored = to_float8(value, noise, RANDOM)
    elif FORMAT == "bfloat16":
        stored = to_bfloat16(value, noise) if RANDOM else value.to(tl.bfloat16)
    elif FORMAT == "float16":
        stored = to_float16(value, noise) if RANDOM else value.to(tl.float16)
    else:
        stored = value
    return stored


@triton.jit
def to_int8(value, noise, RANDOM: tl.constexpr):
    """Numbers of -127 to 127 as integers.  noise: 8 random bits of each.  A row with a NaN has it in its scale."""
    if RANDOM:
        value += noise.to(tl.float32) * 0.00390625 - 0.498046875
    # a number of this size has its integer part in its last bits, rounded to nearest
    return (value + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)  # 1.5 * 2 ** 23


@triton.jit
def to_float8(value, noise, RANDOM: tl.constexpr):
    """Numbers of -448 to 448 as the bytes of e4m3.  noise: 8 random bits of each.  A row with a NaN: as in to_int8."""
    # the exponent of the format in the bits of fp32: a step is 2 ** 20 everywhere, among subnormal numbers too
    bits = (value * 7.52316384526264e-37).to(tl.uint32, bitcast=True)  # 2 ** -120
    bits += (noise << 12) + 0x800 if RANDOM else 0x80000
    return (((bits >> 20) & 0x7F) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def to_bfloat16(value, noise):
    """Rounded up or down by 16 random bits of each number."""
    rounded = (value.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
    return tl.where(value == value, rounded.to(tl.float32, bitcast=True), value).to(tl.bfloat16)


@triton.jit
def to_float16(value, noise):
    """Rounded up or down by 13 of 16 random bits of each number; too large ones are infinite."""
    # the exponent of the format in the bits of fp32: a step is 2 ** 13 everywhere, among subnormal numbers too
    magnitude = (tl.abs(value) * 1.925929944387236e-34).to(tl.uint32, bitcast=True)  # 2 ** -112
    magnitude = tl.minimum((magnitude + (noise >> 3)) >> 13, 0x7C00)
    magnitude = tl.where(value == value, magnitude, 0x7FFF)
    sign = (value.to(tl.uint32, bitcast=True) >> 16) & 0x8000
    return (magnitude | sign).to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def random_bits(ROWS: tl.constexpr, COLUMNS: tl.constexpr, row, column: tl.constexpr, token, seed, WIDTH: tl.constexpr):
    """WIDTH random bits for each element of a tile [ROWS, COLUMNS], by seven rounds of Philox.

    They depend on the seed and on the place of an element, not on the tile: one call makes those of 128 / WIDTH
    neighbours along a row, or of a single one in a tile that is narrower.
    """
    TOGETHER: tl.constexpr = 128 // WIDTH
    MASK: tl.constexpr = (1 << WIDTH) - 1
    rows = (row + tl.arange(0, ROWS)).to(tl.uint32)
    if COLUMNS < TOGETHER:
        zero = tl.zeros([ROWS, COLUMNS], dtype=tl.uint32)
        columns = (column + tl.arange(0, COLUMNS)).to(tl.uint32)
        words, _, _, _ = tl.philox(seed, zero + rows[:, None], zero + columns[None, :], zero + token, zero + 1, 7)
        noise = words & MASK
    else:
        BLOCKS: tl.constexpr = COLUMNS // TOGETHER
        zero = tl.zeros([ROWS, BLOCKS], dtype=tl.uint32)
        blocks = (column // TOGETHER + tl.arange(0, BLOCKS)).to(tl.uint32)
        a, b, c, d = tl.philox(seed, zero + rows[:, None], zero + blocks[None, :], zero + token, zero, 7)
        words = tl.join(tl.join(a, c), tl.join(b, d))  # [ROWS, BLOCKS, 2, 2], in the order a, b, c, d
        shifts = tl.arange(0, 32 // WIDTH).to(tl.uint32) * WIDTH
        noise = ((words[:, :, :, :, None] >> shifts[None, None, None, None, :]) & MASK).reshape(ROWS, COLUMNS)
    return noise
