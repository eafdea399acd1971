"""Statistics of times, and when a candidate is given up."""

from __future__ import annotations

import pytest
import torch

from ssdgen.tune import timing
from ssdgen.tune.timing import PROBES, REPEATS, GpuTimer, Timing


def test_median_and_interquartile_range() -> None:
    assert timing.summarise([5.0, 1.0, 2.0, 4.0, 1000.0]) == Timing(4.0, 3.0, 5)
    assert timing.summarise([7.0]) == Timing(7.0, 0.0, 1)


@pytest.mark.parametrize(("best", "repeats"), [(None, PROBES + REPEATS), (9.0, PROBES + REPEATS), (5.0, PROBES)])
def test_a_hopeless_candidate_is_given_up(best: float | None, repeats: int) -> None:
    found = timing.measure(lambda count: [10.0] * count, best)
    assert found == Timing(10.0, 0.0, repeats)


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_copy_takes_as_long_as_its_bytes(mode: timing.Mode) -> None:
    source = torch.ones(2**28, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    timer = GpuTimer(mode, "cold", 60 * 2**20)
    found = timing.measure(timer.sampler(lambda: target.copy_(source)))
    tbs = 2 * source.numel() / found.time_us / 1e6
    assert 0.1 < tbs < 10 and found.spread_us < found.time_us
