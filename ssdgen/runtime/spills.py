"""Registers that a kernel spills, kept in the L1 cache.  launching -> spills -> NVIDIA's driver

L1 and shared memory are one piece of memory, which the driver divides for each kernel.  Where a kernel asks for more
than 48 KB of shared memory, Triton has the driver set aside all there is: on Hopper that leaves 28 of 256 KB for L1.
The spilled registers of a program of the backward pass are more, and reading one back then waits for L2, ten times as
long.  Where one program alone fits a multiprocessor, more shared memory than it asks for is of no use to anybody.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

import torch

# of the driver's CUfunc_cache: no more shared memory than a program needs
_PREFER_L1 = 2
# what the driver takes of a multiprocessor's shared memory for each program, bytes
_RESERVED = 1024

_asked: set[int] = set()


def keep_near(compiled: Any) -> None:
    """Ask for a large L1 cache once, for a kernel that spills and of which one program fits a multiprocessor.

    compiled: what Triton has loaded on the current device, None in the interpreter; before it is loaded it tells of no
    spills.  It is a hint: a driver that refuses is not asked again.
    """
    function, spilled = getattr(compiled, "function", None), getattr(compiled, "n_spills", 0)
    if not spilled or function in _asked or torch.version.hip:
        return
    _asked.add(function)
    if 2 * (compiled.metadata.shared + _RESERVED) > _shared_memory(torch.cuda.current_device()):
        # a driver under another name is Triton's to find
        with suppress(OSError):
            _driver().cuFuncSetCacheConfig(ctypes.c_void_p(function), _PREFER_L1)


@cache
def _shared_memory(device: int) -> int:
    """Of a multiprocessor, bytes."""
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
