"""What this machine compiled before, found by keys that cost nothing.  key -> files in Triton's cache -> precompiled

Triton finds a kernel in its cache by a hash of all of Triton, which takes longer than loading it.  So where Triton has
compiled one, a list of its files is put into the same cache under the key that a pack would have for it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any

# kinds of files that a kernel is made of again
_ENDS = (".json", ".cubin")


def files(key: str, name: str) -> dict[str, str] | None:
    """{file name: path} of a kernel that was kept and is still there; None otherwise.  name: the kernel's."""
    with suppress(OSError):
        found = _manager(key).get_group(f"{name}.json") or {}
        kept = {file: path for file, path in found.items() if file.endswith(_ENDS)}
        if len(kept) == len(_ENDS):
            return kept
    return None


def keep(key: str, compiled: Any) -> None:
    """Remember where the files of a compiled kernel are.  Nothing happens where the cache cannot be written."""
    group = {file: str(path) for file, path in compiled.metadata_group.items() if file.endswith(_ENDS)}
    with suppress(OSError):
        _manager(key).put_group(f"{compiled.name}.json", group)


def _manager(key: str) -> Any:
    """Triton's manager of one folder in its cache.  Unlike a pack's, code here is of one build of Triton and ptxas."""
    import triton
    from triton.runtime.cache import get_cache_manager

    parts = (key, triton.__version__, os.environ.get("TRITON_PTXAS_PATH", ""))
    return get_cache_manager(hashlib.sha256("\n".join(parts).encode()).hexdigest())
