"""Kernels of a first call are compiled and loaded side by side, and nothing of that is seen by the launches."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime import _async_compile

from ssdgen.mamba2_ops import compiling, precompiled

WAIT_S = 20


class Code:
    """Compiled; its launcher is built when it is asked for."""

    def __init__(self) -> None:
        self.loaded = False

    @property
    def run(self) -> None:
        self.loaded = True


class Kernel:
    """As `triton.jit` makes them, as far as compiling goes.  compile: what a compiler does."""

    def __init__(self, compile: Any = Code) -> None:
        self.compile, self.code, self.asked = compile, None, []
        self.known: dict[str, Code] = {}
        self.device_caches = {0: (self.known, "and more")}

    def warmup(self, *args: Any, grid: tuple[int, int, int], **options: Any) -> Any:
        self.asked.append((args, grid, options))
        mode = _async_compile.active_mode.get()
        assert mode is not None
        return mode.submit(id(self), self.compile, self._found)

    def _found(self, code: Code) -> None:
        self.code = code


def launch(kernel: Any) -> Any:
    return SimpleNamespace(kernel=kernel, grid=(3, 2, 1), args={"x_ptr": 1, "CHUNK": 64}, options={"num_warps": 4})


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one, and two processors."""
    monkeypatch.setattr(compiling, "_processors", lambda: 2)
    for name, found in (("is_initialized", True), ("is_current_stream_capturing", False), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(precompiled, "find", lambda kernel, args, options: getattr(kernel, "of_a_pack", None))


def test_compilers_run_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def compiler() -> Code:
        both.wait(WAIT_S)
        return Code()

    kernels = [Kernel(compiler), Kernel(compiler)]
    compiling.side_by_side(map(launch, kernels))
    assert all(kernel.code is not None and kernel.code.loaded for kernel in kernels)
    assert all(kernel.asked == [((1, 64), (3, 2, 1), {"num_warps": 4})] for kernel in kernels)
    # nobody else's kernels are compiled in threads afterwards
    assert _async_compile.active_mode.get() is None


def test_what_fails_is_left_to_its_launch() -> None:
    def broken() -> Code:
        raise RuntimeError("no such instruction")

    kernels = [Kernel(broken), Kernel()]
    compiling.side_by_side(map(launch, kernels))
    assert kernels[0].code is None and kernels[1].code is not None


def test_what_is_there_is_left_alone() -> None:
    there, of_a_pack, *new = (Kernel() for _ in range(4))
    there.known["for other arguments"] = Code()
    of_a_pack.of_a_pack = Code()  # type: ignore[attr-defined]
    compiling.side_by_side(map(launch, [there, of_a_pack, *new, SimpleNamespace()]))
    assert of_a_pack.asked == [] == there.asked
    assert all(kernel.code is not None for kernel in new)


@pytest.mark.parametrize("reason", ["one processor", "no GPU", "capture", "one kernel", "another mode"])
def test_where_it_brings_nothing_it_does_nothing(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "one processor":
        monkeypatch.setattr(compiling, "_processors", lambda: 1)
    elif reason == "no GPU":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    elif reason == "capture":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernels = [Kernel() for _ in range(1 if reason == "one kernel" else 2)]
    token = _async_compile.active_mode.set(object() if reason == "another mode" else None)  # type: ignore[arg-type]
    try:
        compiling.side_by_side(map(launch, kernels))
    finally:
        _async_compile.active_mode.reset(token)
    assert all(kernel.asked == [] for kernel in kernels)
