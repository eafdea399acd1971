"""GPUs that are here but not in the table: their own limits, and somebody else's rates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ssdgen import gpus
from ssdgen.tune import device
from ssdgen.tune.errors import TuneError


def properties(major: int, minor: int, sms: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(major=major, minor=minor, multi_processor_count=sms, L2_cache_size=6 * 2**20, **more)


def test_another_gpu_of_a_known_architecture() -> None:
    a6000 = device.unknown("NVIDIA RTX A6000", properties(8, 6, 84, shared_memory_per_block_optin=101376))
    assert (a6000.name, a6000.arch, a6000.capability, a6000.sms) == ("rtx_a6000", "sm86", 86, 84)
    assert a6000.smem_per_cta == 101376 and a6000.device_names == ("NVIDIA RTX A6000",)
    known = gpus.find("rtx3090")
    assert a6000.copy_tbs == pytest.approx(known.copy_tbs * 84 / 82)


def test_the_nearest_of_several() -> None:
    l4 = device.unknown("NVIDIA L4", properties(8, 9, 58))
    assert l4.bf16_tflops == pytest.approx(gpus.find("rtx4090").bf16_tflops * 58 / 128)
    assert l4.folder == "sm89_l4"


def test_an_architecture_between_known_ones() -> None:
    orin = device.unknown("NVIDIA Orin", properties(8, 7, 16))
    assert (orin.arch, orin.capability) == ("sm87", 87) and orin.smem_per_cta == gpus.find("rtx3090").smem_per_cta


def test_an_architecture_that_has_nothing_in_common() -> None:
    with pytest.raises(TuneError, match=r"ssdgen/gpus\.py"):
        device.unknown("Quadro K6000", properties(3, 5, 15))


def test_names_of_folders() -> None:
    assert device.slug("NVIDIA GeForce RTX 4090 Laptop GPU") == "rtx_4090_laptop"
    assert device.slug("AMD Instinct MI250X") == "instinct_mi250x"


def test_who_a_prediction_is_for() -> None:
    identity = device.predicted_identity(gpus.find("a100"))
    assert identity.folder == "sm80_a100" and identity.driver is None and identity.clocks_mhz == {}
    assert gpus.of_device(identity.name) is gpus.find("a100")
