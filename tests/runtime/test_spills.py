"""Which kernels the driver is asked to give a large L1 cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from ssdgen.runtime import spills

KB = 1024


@dataclass
class Driver:
    """Of NVIDIA's driver the one function, with what it was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def cuFuncSetCacheConfig(self, function, config: int) -> int:
        self.asked.append((function.value, config))
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(spills, "_driver", lambda: found)
    monkeypatch.setattr(spills, "_asked", set())
    monkeypatch.setattr(spills, "_shared_memory", lambda device: 228 * KB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return found


def loaded(function: int, shared: int, spilled: int) -> SimpleNamespace:
    return SimpleNamespace(function=function, n_spills=spilled, metadata=SimpleNamespace(shared=shared))


def test_a_kernel_that_spills_and_fills_a_multiprocessor_alone_is_asked_for_once(driver: Driver) -> None:
    kernel = loaded(7, 174 * KB, 70)
    spills.keep_near(kernel)
    spills.keep_near(kernel)
    assert driver.asked == [(7, 2)]


@pytest.mark.parametrize(
    "kernel",
    [loaded(7, 174 * KB, 0), loaded(7, 113 * KB, 70), SimpleNamespace(function=None), None],
    ids=["no spills", "two programs fit", "not loaded", "interpreted"],
)
def test_others_are_left_alone(driver: Driver, kernel: SimpleNamespace | None) -> None:
    spills.keep_near(kernel)
    assert driver.asked == []


def test_amd_has_no_such_driver(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    spills.keep_near(loaded(7, 174 * KB, 70))
    assert driver.asked == []


def test_without_the_driver_nothing_is_asked(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(spills, "_driver", missing)
    spills.keep_near(loaded(7, 174 * KB, 70))
