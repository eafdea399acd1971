"""Kernels that have to be compiled, side by side.  launches -> compiling -> Triton

The first call in a new form compiles each of its kernels where it is launched: one after the other, on one processor.
Most of that time is the compiler's own, of LLVM, of ptxas and, for Triton 3.6, of a C compiler, and none of them waits
for Python.  So before the first launch they are all started in threads.  What fails here fails once more at its launch,
where the error belongs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

import torch

from . import precompiled


class Compilable(Protocol):
    """What is read of a launch."""

    @property
    def kernel(self) -> Any: ...
    @property
    def grid(self) -> tuple[int, int, int]: ...
    @property
    def args(self) -> dict[str, Any]: ...
    @property
    def options(self) -> dict[str, Any]: ...


def side_by_side(launches: Iterable[Compilable]) -> None:
    """Compile and load those kernels of launches that the current device has no code of, where these are several.

    Nothing is launched.  Triton's own cache, in memory and on disk, has them afterwards.  A kernel with code for other
    arguments is left to its launch: to look for more would cost every call in a new form.
    """
    processors = _processors()
    if processors < 2 or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return
    waiting = [launch for launch in launches if _is_new(launch)]
    if len(waiting) < 2:
        return
    from triton.runtime import _async_compile

    if _async_compile.active_mode.get() is not None:
        # someone else compiles side by side already
        return
    device = torch.cuda.current_device()
    with ThreadPoolExecutor(
        min(processors, len(waiting)), initializer=torch.cuda.set_device, initargs=(device,)
    ) as pool:
        with _async_compile.AsyncCompileMode(pool, ignore_errors=True):
            begun = [_begun(launch) for launch in waiting]
        # code is loaded, and a launcher built for it, when it is asked for first; no launch may find that half done
        wait([pool.submit(_load, kernel) for kernel in begun if hasattr(kernel, "result")])


def _is_new(launch: Compilable) -> bool:
    """Whether there is no code of a kernel yet, and Triton is to find or to make it: not an interpreter, nor a pack."""
    kernel = launch.kernel
    if not hasattr(kernel, "device_caches"):
        return False
    compiled, *_ = kernel.device_caches[torch.cuda.current_device()]
    return not compiled and precompiled.find(kernel, launch.args, launch.options) is None


def _begun(launch: Compilable) -> Any:
    """What will be a kernel; None where it cannot even begin."""
    with suppress(Exception):
        return launch.kernel.warmup(*launch.args.values(), grid=launch.grid, **launch.options)
    return None


def _load(kernel: Any) -> None:
    with suppress(Exception):
        _ = kernel.result().run


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
