"""What a call does on the GPU: its kernels and the memory that it needs.  -> training"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


def kernels(call: Call, calls: int = 5) -> tuple[int, float]:
    """(kernels, copies and fills that one call launches, the sum of their times in microseconds), with a warm L2."""
    events = _events(call, calls, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    return round(len(events) / calls), sum(event.time_range.elapsed_us() for event in events) / calls


def by_name(call: Call, calls: int = 1) -> dict[str, tuple[int, float]]:
    """{kernel: (launches, the sum of their times in microseconds)} of one call, copies and fills included."""
    found: dict[str, list[float]] = {}
    # without what the host does: a step of a whole model has so many events that reading them takes minutes
    for event in _events(call, calls, [ProfilerActivity.CUDA]):
        found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return {name: (round(len(times) / calls), sum(times) / calls) for name, times in found.items()}


def _events(call: Call, calls: int, activities: list[ProfilerActivity]) -> list:
    call()
    torch.cuda.synchronize()
    with profile(activities=activities) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    events = [event for event in found.events() or [] if event.device_type == DeviceType.CUDA]
    # ranges that a profiler draws around kernels are on the device too, and have no kernel's name
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]
    if not events:
        raise RuntimeError("the profiler saw nothing on the GPU; it may need CUPTI, or permission to count")
    return events


def extra_mb(call: Call) -> float:
    """The most memory that a call held at a time beside what was there before, in 1e6 bytes; its results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def recover() -> None:
    """After a capture that failed: it may leave its own stream current."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()
