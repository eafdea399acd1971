"""Putting a checked pack into an environment.  Opened -> pip -> site-packages"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from .wheel import Opened


class InstallError(RuntimeError):
    """pip did not install the pack; the message holds what it said."""


def install(pack: Opened, file_name: str) -> None:
    """Install exactly the bytes that were checked, in the environment of this Python.  Errors: InstallError."""
    with tempfile.TemporaryDirectory() as folder:
        # a copy: whoever can write the file might have changed it since
        copy = Path(folder, file_name)
        copy.write_bytes(pack.raw)
        # torch and triton are there or are not; a pack does not choose their versions
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", "--no-index", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise InstallError(f"pip could not install {file_name}:\n{said}")


def unpack(pack: Opened, folder: Path) -> None:
    """Write the members of a checked wheel below a folder, which a search path then finds as if it were installed."""
    with zipfile.ZipFile(BytesIO(pack.raw)) as archive:
        # every name was checked to stay inside
        archive.extractall(folder)
