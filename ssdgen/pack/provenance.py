"""From which state of the sources something is made.  checkout -> commit, dirty flag, version -> build"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .. import __version__

_CHECKOUT = Path(__file__).resolve().parents[2]
# what a pack is made of
SOURCES = ("ssdgen", "templates", "tuned", "pyproject.toml")


@dataclass(frozen=True)
class Provenance:
    """commit: in full, or None outside of a checkout; dirty: whether there are changes in no commit, None likewise."""

    commit: str | None
    dirty: bool | None

    @property
    def version(self) -> str:
        """That of ssdgen, and the commit as a local part: "0.1.0+g0123abcd.dirty"."""
        if self.commit is None:
            return __version__
        return f"{__version__}+g{self.commit[:8]}{'.dirty' if self.dirty else ''}"


def of_checkout(folder: Path = _CHECKOUT) -> Provenance:
    """What git says of the folder, if it is the top of a checkout.  An installed ssdgen has its version alone."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != folder or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return Provenance(None, None)
    return Provenance(commit, bool(_git(folder, "status", "--porcelain", "--", *SOURCES)))


def _git(folder: Path, *args: str) -> str | None:
    """What git answers, or None."""
    command = ["git", "-C", str(folder), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
