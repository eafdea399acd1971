"""Which names of devices and of records mean the same GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssdgen.runtime.match import Gpu, is_same
from ssdgen.runtime.records import GpuRecords


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
