"""Which names of devices and of records mean the same GPU, and which records fit a problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssdgen.runtime.match import Gpu, fits, is_same
from ssdgen.runtime.problem import Problem
from ssdgen.runtime.records import BACKWARD, GpuRecords, Record


@pytest.mark.parametrize(
    ("device", "recorded", "same"),
    [
        ("NVIDIA H200", "NVIDIA H200", True),
        ("NVIDIA H200", "H200", True),
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA H100 80GB HBM3", "H100", True),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090", False),
        ("NVIDIA L40S", "L40", False),
        ("NVIDIA H200", "NVIDIA", False),
        ("NVIDIA H200", "", False),
    ],
)
def test_which_names_mean_the_same_gpu(device: str, recorded: str, same: bool) -> None:
    assert is_same(Gpu(device, "sm90", 1), GpuRecords(Path(), recorded, "sm90", ())) is same
    assert not is_same(Gpu(device, "sm90", 1), GpuRecords(Path(), recorded, "sm80", ()))


@pytest.mark.parametrize(
    ("sizes", "fit"),
    [
        ((4, 4096, 128, 64, 128, 8), True),
        # one head of a group, a head without another one, and two walks of one head
        ((8, 2048, 32, 64, 128, 32), False),
        ((8, 2048, 9, 64, 128, 3), False),
        ((8, 2048, 8, 32, 128, 8), False),
    ],
)
def test_walks_that_come_in_pairs_fit_an_even_number(sizes: tuple[int, ...], fit: bool) -> None:
    tuned = Problem(4, 4096, 128, 64, 128, 8, "bfloat16")
    for consumers in (0, 2):
        config = {"schedule": "walk", "kernels": {"reverse_walk": {"consumers": consumers}}}
        record = Record(tuned, config, True, 1.0, direction=BACKWARD)
        assert fits(Problem(*sizes, "bfloat16"), record, BACKWARD) is (fit or not consumers)
    wide = Record(Problem(4, 4096, 32, 128, 128, 32, "bfloat16"), config, True, 1.0, direction=BACKWARD)
    assert fits(wide.problem, wide, BACKWARD)
