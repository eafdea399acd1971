"""The GPU that is measured on, and the file that results go to.  timing, profiling -> machine -> growth, memory, others

Programs take it as an argument, so that their tests run them on a CPU with another clock.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import profiling, report, timing

ROOT = Path(__file__).resolve().parent.parent
# a call as long as this reads more than the L2 holds, and the gaps between its launches are nothing beside it
LONG_US = 2e4

Call = Callable[[], object]


class DeviceLost(Exception):
    """A kernel broke the GPU's context: nothing more can be measured in this process."""


class Gpu:
    """The current CUDA device."""

    device = "cuda"

    def __init__(self) -> None:
        self._timer: timing.ColdGpuTimer | None = None

    def environment(self) -> dict[str, str]:
        return report.environment()

    def wait(self) -> None:
        torch.cuda.synchronize()

    def tidy(self) -> None:
        """Give memory that is free back to the device."""
        torch.cuda.empty_cache()

    def gpu_us(self, call: Call) -> tuple[float, str]:
        """(microseconds, how): in a CUDA graph with a cold L2, or between events where a call is long or has no graph.

        The call must have run before.
        """
        if timing.events_us(call, 1) > LONG_US:
            return timing.events_us(call, 3), "events"
        self._timer = self._timer or timing.ColdGpuTimer()
        try:
            return self._timer(call), "graph, cold L2"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            check_lost(error)
            profiling.recover()
        return timing.events_us(call, 9), "events"

    def eager_us(self, call: Call) -> tuple[float, float]:
        """(wall time, host time) per call, microseconds."""
        return timing.eager_us(call)

    def span_us(self, call: Call, calls: int) -> float:
        """Median time of a call between two events, gaps included: what a training loop sees."""
        return timing.events_us(call, calls)

    def extra_mb(self, call: Call) -> float:
        """The most memory of a call beside what was there before, its results included, 1e6 bytes."""
        return profiling.extra_mb(call)

    def kernels(self, call: Call) -> dict[str, tuple[int, float]]:
        """{name: (launches, microseconds)} of one call."""
        return profiling.by_name(call)


def check_lost(error: Exception) -> None:
    """Errors: DeviceLost where nothing works after it."""
    text = str(error)
    if any(mark in text for mark in ("illegal memory access", "misaligned address", "unspecified launch failure")):
        raise DeviceLost(text.splitlines()[0]) from error


def attempt(what: Callable[[], dict[str, Any]], machine: Gpu) -> dict[str, Any]:
    """What it returns, or {"failed": reason}; memory is tidied then.

    Errors: DeviceLost.
    """
    try:
        return what()
    except torch.OutOfMemoryError:
        reason = "out of memory"
    except Exception as error:  # whatever a peer refuses with: the other candidates go on
        check_lost(error)
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    machine.tidy()
    return {"failed": reason}


class Document:
    """A JSON file that is whole at every moment: a run that is cut off keeps what it measured."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        unfinished = self.path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(self.content, indent=2, sort_keys=True) + "\n")
        os.replace(unfinished, self.path)


def results_path(name: str, gpu: str) -> Path:
    """Where a benchmark's results go unless --out says otherwise."""
    return ROOT / "benchmarks" / "results" / f"{name}_{report.slug(gpu)}.json"


def parser(about: str, name: str, budget: float, peers: bool = True, resume: bool = True) -> argparse.ArgumentParser:
    """The options that benchmarks share.  peers, resume: whether this one has them."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("--out", type=Path, help=f"JSON file to write; default: benchmarks/results/{name}_GPU.json")
    made.add_argument("--quick", action="store_true", help="few and small cases")
    if peers:
        made.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    made.add_argument(
        "--budget",
        type=float,
        default=budget,
        metavar="SECONDS",
        help=f"start nothing new after this long ({budget:g})",
    )
    if resume:
        made.add_argument(
            "--resume", action="store_true", help="keep what the file already has from this GPU and versions"
        )
    return made


def earlier(path: Path, here: dict[str, str], part: Callable[[dict], dict] = dict) -> list[dict[str, Any]]:
    """Rows that a run with the same GPU and versions has left in the file, but for those that were left out or failed.

    part: of the file's content, what has the environment and the "rows".
    """
    if not path.exists():
        return []
    found = part(json.loads(path.read_text()))
    if any(found.get(name) != value for name, value in here.items()):
        return []
    return [row for row in found["rows"] if not {"skipped", "failed"} & set(row)]
