"""Ways to time a call on a CUDA GPU, the same for everything that is compared.  -> forward"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def _graph(body: Call) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def _replay_ms(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Median GPU time of one replay."""
    graph.replay()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for begin, end in pairs:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


class ColdGpuTimer:
    """GPU time of one call with a cold L2: replays of graphs of (flush, call), less replays of (flush) alone.

    The flush reads a buffer of four times the L2.  It does not write: the dirty lines would be written back during the
    call, and a short call would be charged for them.
    """

    def __init__(self, replays: int = 15) -> None:
        l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._buffer = torch.ones(4 * max(l2_bytes, 2**24) // 4, device="cuda")
        self._sink = torch.zeros((), device="cuda")
        self._replays = replays
        self._flush_ms: dict[int, float] = {}

    def _flush(self) -> None:
        torch.sum(self._buffer, out=self._sink, dim=0)

    def _graph_ms(self, call: Call | None, repeats: int) -> float:
        def body() -> None:
            for _ in range(repeats):
                self._flush()
                if call is not None:
                    call()

        graph = _graph(body)
        milliseconds = _replay_ms(graph, self._replays)
        graph.reset()
        return milliseconds

    def _call_ms(self, call: Call, repeats: int) -> float:
        if repeats not in self._flush_ms:
            # outside a capture first: loading a module is not allowed in one
            self._flush()
            self._flush_ms[repeats] = self._graph_ms(None, repeats)
        return (self._graph_ms(call, repeats) - self._flush_ms[repeats]) / repeats

    def __call__(self, call: Call) -> float:
        """Microseconds.  The call must have run before: a capture can neither compile nor tune."""
        with torch.no_grad():
            once = max(self._call_ms(call, 1), 1e-3)
            # about two milliseconds of work in one graph leave little noise after the subtraction
            repeats = max(1, min(20, int(2 / once)))
            return 1e3 * (self._call_ms(call, repeats) if repeats > 1 else once)


def eager_us(call: Call, calls: int = 20, batches: int = 9) -> tuple[float, float]:
    """(wall time per call, host time to enqueue one call), microseconds: medians over batches of `calls` calls."""
    wall, host = [], []
    with torch.no_grad():
        for _ in range(batches):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            enqueued = time.perf_counter()
            torch.cuda.synchronize()
            wall.append(time.perf_counter() - begin)
            host.append(enqueued - begin)
    return 1e6 * statistics.median(wall) / calls, 1e6 * statistics.median(host) / calls


def events_us(call: Call, calls: int) -> float:
    """Median GPU time of a call between two events, microseconds: for calls so long that no gap counts."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    with torch.no_grad():
        for begin, end in pairs:
            begin.record()
            call()
            end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def copy_tbs(gigabytes: int = 4, repeats: int = 20) -> float:
    """Device-to-device copy, TB/s, bytes read plus bytes written: the ceiling for everything bound by memory.

    The faster of torch's copy, which in a CUDA graph may be the copy engine's, and of a kernel that multiplies by one:
    on an H200 the engine moves 2.8 TB/s and kernels of ours over 4.
    """
    source = torch.ones(gigabytes * 2**28, device="cuda")
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.mul(source, 1, out=target))
    for way in ways:
        way()
    milliseconds = min(_replay_ms(_graph(way), repeats) for way in ways)
    return 2 * source.numel() * source.element_size() / milliseconds / 1e9


def matmul_tflops(size: int = 8192, repeats: int = 50) -> float:
    """Dense bf16 matrix product on random data, TFLOP/s: the ceiling for everything bound by the tensor cores."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = a @ b
    milliseconds = _replay_ms(_graph(lambda: torch.mm(a, b, out=out)), repeats)
    return 2 * size**3 / milliseconds / 1e9
