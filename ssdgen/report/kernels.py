"""Where the time of a call goes, kernel by kernel: measured or predicted.  Record -> Split -> page"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..gpus import Gpu
from ..pack.records import MEASURED, PREDICTED, Record
from ..tune.passes import PASSES
from ..tune.predict import Compiler

CALLS = 5


@dataclass(frozen=True)
class Split:
    """One record's call.  kernels: (name, microseconds) in the order of their launches."""

    record: Record
    kernels: tuple[tuple[str, float], ...]
    provenance: Literal["measured", "predicted"]

    @property
    def total_us(self) -> float:
        return sum(us for _, us in self.kernels)


def predicted(records: Iterable[Record], gpu: Gpu) -> list[Split]:
    """By compiling each record's launches for the GPU and the model of their time.  Errors: CompileError."""
    found = []
    for record in records:
        report = Compiler(gpu, record.direction).report(record.problem, record.config)
        kernels = tuple((launch.code.name, launch.estimate.us) for launch in report.launches)
        found.append(Split(record, kernels, PREDICTED))
    return found


def measured(records: Iterable[Record]) -> list[Split]:
    """On the current GPU with torch's profiler, L2 warm.  Errors: RuntimeError where the profiler sees nothing."""
    found = []
    for record in records:
        it = PASSES[record.direction]
        given = it.draw(record.problem, "cuda", 0, False)
        it.run(record.config, given, False)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(CALLS):
                it.run(record.config, given, False)
            torch.cuda.synchronize()
        times: dict[str, float] = {}
        for event in seen.events() or []:
            # ranges that a profiler draws around kernels are on the device too
            if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                times[event.name] = times.get(event.name, 0.0) + event.time_range.elapsed_us() / CALLS
        if not times:
            raise RuntimeError("the profiler saw nothing on the GPU; it may need CUPTI, or permission to count")
        found.append(Split(record, tuple(times.items()), MEASURED))
        del given
        torch.cuda.empty_cache()
    return found
