"""The known GPUs: names, aliases, devices."""

from __future__ import annotations

import pytest

from ssdgen import gpus
from ssdgen.gpus import UnknownGpuError


def test_names_are_all_different() -> None:
    names = [name for gpu in gpus.KNOWN for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    assert {gpu.name for gpu in gpus.KNOWN} >= {"h200", "h100", "a100", "l40s", "rtx3090", "t4", "b200", "mi300x"}


@pytest.mark.parametrize(
    ("name", "found"), [("h200", "h200"), ("H200", "h200"), ("4090", "rtx4090"), ("MI300", "mi300x")]
)
def test_found_by_name_and_alias(name: str, found: str) -> None:
    assert gpus.find(name).name == found


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownGpuError) as caught:
        gpus.find("h20")
    assert "'h20'" in str(caught.value)
    assert all(name in str(caught.value) for gpu in gpus.KNOWN for name in (gpu.name, *gpu.aliases))


@pytest.mark.parametrize(
    ("device", "found"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla T4", "t4"),
        ("Tesla T40", None),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("", None),
    ],
)
def test_which_device_is_which(device: str, found: str | None) -> None:
    gpu = gpus.of_device(device)
    assert (gpu.name if gpu else None) == found


@pytest.mark.parametrize("gpu", gpus.KNOWN, ids=lambda gpu: gpu.name)
def test_the_data_is_plausible(gpu: gpus.Gpu) -> None:
    assert gpus.of_device(gpu.device_names[0]) is gpu
    assert gpu.folder == f"{gpu.arch}_{gpu.name}"
    assert 48 * 1024 <= gpu.smem_per_cta <= gpu.smem_per_sm <= 256 * 1024
    assert 0.2 < gpu.copy_tbs < 10 and 40 < gpu.bf16_tflops < 3000
    assert gpu.arch == (gpu.capability if gpu.backend == "hip" else f"sm{gpu.capability}")


def test_the_h200_as_it_was_measured() -> None:
    h200 = gpus.find("h200")
    assert (h200.copy_tbs, h200.bf16_tflops, h200.sms, h200.smem_per_cta) == (4.27, 790, 132, 232448)
