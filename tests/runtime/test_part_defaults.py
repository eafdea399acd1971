"""What the layer's other parts run by where nobody tuned."""

from __future__ import annotations

import torch

from ssdgen.runtime.conv_defaults import default_conv
from ssdgen.runtime.norm_defaults import default_norm
from ssdgen.runtime.part_problem import of_conv, of_norm


def test_where_programs_are_few_each_has_little_to_do() -> None:
    """A row alone is spread over threads of 16 bytes; a new token's channels over twice as many programs."""

    def warps(rows: int, size: int, groups: int = 1) -> int:
        problem = of_norm(rows, groups, size, torch.bfloat16)
        return default_norm("norm_forward", problem, 132)["kernels"]["norm"]["num_warps"]

    assert [warps(1, size) for size in (16, 256, 768, 2048, 4096, 8192)] == [1, 1, 4, 8, 16, 16]
    assert (warps(132, 4096), warps(133, 4096), warps(66, 4096, 2), warps(67, 4096, 2)) == (16, 4, 16, 4)

    def channels(rows: int) -> int:
        problem = of_conv(rows, 1, 5376, 4, torch.bfloat16)
        return default_conv("conv_update", problem, 132)["kernels"]["conv_update"]["block_d"]

    assert [channels(rows) for rows in (1, 4, 16, 256)] == [32, 32, 64, 64]
