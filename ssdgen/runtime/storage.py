"""How a state is stored: formats, scales, and rounding to nearest or at random.  -> decode_fallback

The same in PyTorch as the kernels have it, bit for bit but for what fp32 arithmetic itself rounds: random bits come
from Philox and depend on the seed and on the place of an element, not on who computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
FORMATS = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
    FLOAT8: "float8_e4m3fn",
}
# what kernels call a format where the GPU has instructions for it, and NVIDIA's capability from which on it has
NATIVE = {FLOAT8: "float8e4nv", torch.int8: "int8_of_word"}
_NATIVE_FROM = {FLOAT8: 89, torch.int8: 70}
# the largest stored number of a format that has a scale for each row of dstate
LARGEST = {torch.int8: 127.0, FLOAT8: 448.0}
# least |state| of a row that its scale is made for: the scale's inverse stays finite
SMALLEST = 1e-30

# fewer than seven do not pass the known tests of randomness, more only cost time
ROUNDS = 7
_LOW = 0xFFFFFFFF
_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


# of the GPU that tensors on "meta" stand for, see `planned_for`
_planned: ContextVar[int | str | None] = ContextVar("planned", default=None)


@contextmanager
def planned_for(capability: int | str) -> Iterator[None]:
    """Tensors on "meta" stand for those on a GPU: NVIDIA's by compute capability, 90, others by a name, "gfx942"."""
    before = _planned.set(capability)
    try:
        yield
    finally:
        _planned.reset(before)


def format_on(device: torch.device, dtype: torch.dtype) -> str:
    """The name by which kernels for a device know a format."""
    if dtype not in NATIVE:
        return FORMATS[dtype]
    capability = _planned.get() if device.type == "meta" else None
    if device.type == "cuda" and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    native = isinstance(capability, int) and capability >= _NATIVE_FROM[dtype]
    return NATIVE[dtype] if native else FORMATS[dtype]


def restore(stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The state as numbers of `dtype`.  stored: [..., headdim, dstate]; scale: [..., headdim] or None."""
    state = stored.to(dtype)
    return state if scale is None else state * scale.to(dtype).unsqueeze(-1)


def store(state: Tensor, dtype: torch.dtype, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(stored, scale) of a state in fp32 or fp64, [rows, nheads, headdim, dstate]; scale: None but for 8 bits.

    noise: random bits of each element (see `noise`), or None: round to nearest.
    """
    if dtype not in LARGEST:
        return _narrow(state, dtype, noise), None
    scale = state.abs().amax(-1).clamp(min=SMALLEST) * (1.0 / LARGEST[dtype])
    return _narrow(state * (1.0 / scale).unsqueeze(-1), dtype, noise), scale.float()


def noise(dtype: torch.dtype, seed: Tensor, rows: Tensor, dstate: int, token: int) -> Tensor:
    """Random bits for every element, [*rows.shape, dstate], int64: 8 of them for 8-bit formats, else 16.

    seed: one int64; rows: number of each row of dstate, (slot * nheads + head) * headdim + p; token: position in the
    call.  A call of Philox gives 128 bits: for 16 neighbours along dstate, or 8.  A tile of dstate that is narrower
    than that has a call for each element.
    """
    width = 8 if dtype in LARGEST else 16
    together = 128 // width
    found = []
    first = 0
    for tile in _tiles(dstate):
        column = torch.arange(tile, device=rows.device)
        if tile < together:
            words = _philox(seed, rows.unsqueeze(-1), first + column, token, 1)[0]
            found.append(words & ((1 << width) - 1))
        else:
            blocks = torch.arange(first // together, (first + tile) // together, device=rows.device)
            words = torch.stack(_philox(seed, rows.unsqueeze(-1), blocks, token, 0), dim=-1)
            shifts = torch.arange(0, 32, width, device=rows.device)
            found.append(((words.unsqueeze(-1) >> shifts) & ((1 << width) - 1)).flatten(-3))
        first += tile
    return torch.cat(found, dim=-1)[..., :dstate]


def _tiles(dstate: int) -> tuple[int, ...]:
    """Widths of the tiles of dstate that the kernels have: the largest power of two, and what covers the rest."""
    whole = 1 << (dstate.bit_length() - 1)
    return (whole,) if whole == dstate else (whole, 1 << (dstate - whole - 1).bit_length())


def _narrow(value: Tensor, dtype: torch.dtype, bits: Tensor | None) -> Tensor:
    """Numbers in another format, rounded to nearest, or up or down at random by how near each is."""
    if dtype is torch.int8:
        if bits is not None:
            value = value + (bits.to(value.dtype) * (1.0 / 256) - 0.498046875)
        # a row with a NaN has it in its scale
        return value.nan_to_num(0.0).round().to(torch.int8)
    if dtype is FLOAT8:
        return _float8(value.float(), bits)
    if bits is None or dtype not in (torch.bfloat16, torch.float16):
        return value.to(dtype)
    value = value.float()
    if dtype is torch.bfloat16:
        rounded = ((value.view(torch.int32).long() & _LOW) + bits) & 0xFFFF0000
    else:
        # the exponent of fp16 in the bits of fp32: what is subnormal there is so here, and a step is 2**13 everywhere
        magnitude = (value.abs() * 2.0**-112).view(torch.int32).long()
        return _signed(value, ((magnitude + (bits >> 3)) >> 13).clamp(max=0x7C00), 16).view(torch.float16)
    return torch.where(value.isnan(), value, _int32(rounded).view(torch.float32)).to(torch.bfloat16)


def _float8(value: Tensor, bits: Tensor | None) -> Tensor:
    # the exponent of e4m3 in the bits of fp32: a step is 2**20 everywhere, among subnormal numbers too
    magnitude = (value.abs() * 2.0**-120).view(torch.int32).long()
    up = 0x80000 if bits is None else (bits << 12) + 0x800
    return _signed(value, ((magnitude + up) >> 20) & 0x7F, 8).view(FLOAT8)


def _signed(value: Tensor, magnitude: Tensor, width: int) -> Tensor:
    """Bits of a number with the sign of `value`, as an integer of `width` bits; a NaN has all bits of the magnitude."""
    whole = (1 << (width - 1)) - 1
    magnitude = torch.where(value.isnan(), whole, magnitude)
    signed = magnitude - (value.signbit().long() << (width - 1))
    return signed.to(torch.int8 if width == 8 else torch.int16)


def _int32(bits: Tensor) -> Tensor:
    """The 32 low bits as a signed integer."""
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)


def _philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: int, c3: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits for each counter (Salmon et al., Parallel random numbers, 2011), as int64."""
    keys = (seed & _LOW, (seed >> 32) & _LOW)
    c0, c1 = torch.broadcast_tensors(c0 & _LOW, c1)
    x0, x1, x2, x3 = c0, c1, torch.full_like(c0, c2), torch.full_like(c0, c3)
    for number in range(ROUNDS):
        k0, k1 = ((key + number * step) & _LOW for key, step in zip(keys, _WEYL, strict=True))
        (high0, low0), (high1, low1) = _product(x0, _MULTIPLIERS[0]), _product(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
    return x0, x1, x2, x3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two words; int64 holds no more than 63 bits, so half of it at a time."""
    low, high = word * (multiplier & 0xFFFF), word * (multiplier >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
