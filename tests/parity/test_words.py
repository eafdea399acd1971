"""Numbers of 16 bits in words: none changes on the way, and no thread gives one to another."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from ssdgen.mamba2_ops.kernels.word_functions import from_words, in_words

SIZE = 256
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@triton.jit
def there_and_back(numbers_ptr, found_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    words = in_words(tl.load(numbers_ptr + place))
    tl.store(found_ptr + place, from_words(words, numbers_ptr.dtype.element_ty))


def check(dtype: torch.dtype, device: str) -> None:
    wide = dtype.itemsize == 4
    bits = torch.arange(SIZE) * (0x01000193 if wide else 257) - (2**31 if wide else 2**15)
    numbers = bits.to(BITS[dtype]).view(dtype).to(device)
    special = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).tiny / 4)
    numbers[: len(special)] = torch.tensor(special, device=device).to(dtype)
    found = torch.full((SIZE,), 7.0, device=device)
    there_and_back[(1,)](numbers, found, SIZE, num_warps=1)
    assert torch.equal(found.nan_to_num(9.0), numbers.float().nan_to_num(9.0))
    assert torch.equal(found.isnan(), numbers.isnan()) and torch.equal(found.signbit(), numbers.float().signbit())


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_the_same_numbers(dtype: torch.dtype) -> None:
    check(dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BITS)
def test_they_are_the_same_numbers_on_a_gpu(dtype: torch.dtype) -> None:
    check(dtype, "cuda")
