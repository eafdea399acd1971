"""What code needs, kept from one compilation to the next and shared between shapes.  Launch -> Compiled

For predictions alone: the code of a launch on a GPU depends on its sizes too, a little, and Triton keeps that itself.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import triton

from ..gpus import Gpu
from ..mamba2_ops import ladder
from ..pack import store
from . import compile
from .compile import Compiled, Launch
from .errors import CompileError
from .resources import Resources


class Remembered:
    """Compiles what it has not seen, here or in an earlier process.  folder: one small file for each kind of code."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or ladder.user_cache().parent / "resources"
        # or why a kernel does not compile
        self._known: dict[str, Resources | str] = {}

    def __call__(self, launch: Launch, gpu: Gpu) -> Compiled:
        """Errors: CompileError, the one of before if a kernel did not compile then."""
        key = key_of(launch, gpu)
        if key not in self._known:
            self._known[key] = self._read(key) or self._compiled(key, launch, gpu)
        found = self._known[key]
        if isinstance(found, str):
            raise CompileError(found)
        return compile.fitting(Compiled(launch.kernel.__name__, key, found), gpu)

    def _compiled(self, key: str, launch: Launch, gpu: Gpu) -> Resources | str:
        found: Resources | str
        try:
            found = compile.made(launch, gpu).resources
        except CompileError as error:
            found = str(error)
        # a cache that cannot be written costs time and nothing else
        with suppress(store.StoreError):
            data = found if isinstance(found, str) else vars(found)
            store.write_text(self._folder / f"{key}.json", json.dumps(data) + "\n")
        return found

    def _read(self, key: str) -> Resources | str | None:
        try:
            data = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            return data if isinstance(data, str) else Resources(**data)
        except (OSError, ValueError, TypeError):
            return None


def key_of(launch: Launch, gpu: Gpu) -> str:
    """The same text for launches whose code needs the same, but for what the sizes of a problem decide."""
    # the kernel with all that it calls
    parts = [triton.__version__, gpu.arch, gpu.warp_size, launch.kernel.cache_key, compile.shape_of(launch)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
