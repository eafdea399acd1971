"""GPU time of a call.  call -> Timing -> bench"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

Call = Callable[[], object]
Mode = Literal["graph", "eager"]
L2 = Literal["cold", "warm"]

# a probe this much slower than the best so far cannot win, and the rest of its repeats are saved
HOPELESS = 1.3
PROBES, REPEATS = 5, 25


@dataclass(frozen=True)
class Timing:
    """time_us: median in microseconds; spread_us: interquartile range; repeats: how many times it was measured."""

    time_us: float
    spread_us: float
    repeats: int


def summarise(samples_us: Sequence[float]) -> Timing:
    """Median and interquartile range of times in microseconds, at least one."""
    if len(samples_us) == 1:
        return Timing(samples_us[0], 0.0, 1)
    low, middle, high = statistics.quantiles(samples_us, n=4, method="inclusive")
    return Timing(middle, high - low, len(samples_us))


def measure(sample: Callable[[int], list[float]], best_us: float | None = None) -> Timing:
    """Time a candidate, and stop early if it is far from the best.

    sample(n): n times in microseconds.  best_us: of the best candidate so far.
    """
    samples = sample(PROBES)
    if best_us is None or statistics.median(samples) < HOPELESS * best_us:
        samples += sample(REPEATS)
    return summarise(samples)


class Timer(Protocol):
    """Prepares a call for timing: the result, called with n, times it n times, in microseconds."""

    def sampler(self, call: Call) -> Callable[[int], list[float]]: ...


class GpuTimer:
    """Times calls on the current GPU.

    mode: "graph" times the replay of a captured call, which is what the GPU needs; "eager" the wall time of a call as
    Python makes it.  l2: "cold" empties the L2 cache before every repeat, as the rest of a model would have done.
    """

    def __init__(self, mode: Mode = "graph", l2: L2 = "cold", l2_bytes: int = 0) -> None:
        self._mode, self._cold = mode, l2 == "cold"
        # read, not written: written lines would go back to memory during the call, which would be charged for them
        self._flush = torch.ones(max(4 * l2_bytes, 2**26) // 4 if self._cold else 1, device="cuda")
        self._sink = torch.zeros((), device="cuda")

    def sampler(self, call: Call) -> Callable[[int], list[float]]:
        """A function of n that times the call n times, in microseconds."""
        # a capture can neither compile nor load a kernel
        call()
        if self._mode == "eager":
            return lambda count: [self._eager_us(call) for _ in range(count)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        return lambda count: self._replays_us(graph.replay, count)

    def _replays_us(self, replay: Call, count: int) -> list[float]:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for begin, end in pairs:
            # it also keeps the GPU busy while the host enqueues what follows, so that no launch is waited for
            self._empty_l2()
            begin.record()
            replay()
            end.record()
        torch.cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) for begin, end in pairs]

    def _eager_us(self, call: Call) -> float:
        self._empty_l2()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - begin)

    def _empty_l2(self) -> None:
        if self._cold:
            torch.sum(self._flush, dim=0, out=self._sink)
