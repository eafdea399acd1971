"""Generated source on disk.  {path: text} -> a folder"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .store import StoreError, write_text

# a generated package has it, and a folder of somebody's own work has not
MARKER = "manifest.json"


def write(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write every file that differs, and return these.  texts: {path below folder, with slashes: text}.

    The folder may be new, empty, or one that holds an earlier copy of the same files; files that are not in `texts`
    stay.  Errors: StoreError, also where the folder holds other things only.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise StoreError(f"{folder} holds other files and no generated package; name a new or empty folder")
    written = []
    for name, text in sorted(texts.items()):
        path = folder / PurePosixPath(name)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
            written.append(path)
    return written
