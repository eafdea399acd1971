"""A machine for benchmarks that measure on a GPU: the CPU, with a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Cpu:
    """Calls are made, so that what a benchmark times must run; what they take, `us` says."""

    device = "cpu"

    def __init__(self, us: Callable[[], float] = lambda: 100.0) -> None:
        self.us = us
        self.calls = 0

    def environment(self) -> dict[str, str]:
        return {"gpu": "none", "torch": torch.__version__}

    def wait(self) -> None: ...

    def tidy(self) -> None: ...

    def _made(self, call: Callable[[], object]) -> float:
        with torch.no_grad():
            call()
        self.calls += 1
        return self.us()

    def gpu_us(self, call: Callable[[], object]) -> tuple[float, str]:
        return self._made(call), "a test"

    def eager_us(self, call: Callable[[], object]) -> tuple[float, float]:
        return self._made(call), self.us() / 2

    def span_us(self, call: Callable[[], object], calls: int) -> float:
        return self._made(call)

    def extra_mb(self, call: Callable[[], object]) -> float:
        self._made(call)
        return 1.0

    def kernels(self, call: Callable[[], object]) -> dict[str, tuple[int, float]]:
        self._made(call)
        return {"ampere_bf16_gemm": (2, 60.0), "chunk_scan": (1, 30.0), "mystery": (1, 10.0)}
