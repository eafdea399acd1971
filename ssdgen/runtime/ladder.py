"""Where records may lie, in the order in which they count.  environment and folders -> steps -> select"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import packs
from .errors import RecordError
from .records import IDENTITY, GpuRecords, read_root

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """One place of the ladder.  name: as a warning calls it."""

    name: str
    root: Path

    def read(self) -> tuple[GpuRecords, ...]:
        return read_root(self.root)


def steps() -> tuple[Step, ...]:
    """$SSDGEN_TUNED, the user's cache, installed packs, the records that came with the package.

    Errors: RecordError for a SSDGEN_TUNED that is no folder; PackError for a pack that is not what its manifest says.
    """
    found = []
    if tuned := os.environ.get("SSDGEN_TUNED"):
        if not Path(tuned).is_dir():
            raise RecordError(f"SSDGEN_TUNED is {tuned!r}, which is no folder; name one with records, or unset it")
        found.append(Step(f"SSDGEN_TUNED ({tuned})", Path(tuned)))
    found.append(Step("the user cache", user_cache()))
    for pack in packs.installed():
        pack.check_records()
        found.append(Step(f"the installed pack {pack.name}", pack.records))
    if root := bundled_root(PACKAGE):
        found.append(Step("the bundled records", root))
    return tuple(found)


def user_cache() -> Path:
    """$XDG_CACHE_HOME/ssdgen/tuned, by default ~/.cache/ssdgen/tuned; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    # a relative path is to be ignored, says the XDG base directory specification
    if not base or not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "ssdgen", "tuned")


def bundled_root(package: Path) -> Path | None:
    """The records that belong to a copy of the package: inside it, beside it, in ssdgen's data, in the checkout."""
    places = [package / "tuned", package.parent / "tuned", package.parent / "_data" / "tuned"]
    if package.parent.name == "ssdgen":
        places.append(package.parent.parent / "tuned")
    return next((place for place in places if any(place.glob(f"*/{IDENTITY}"))), None)


@cache
def current_fingerprint() -> Any:
    """What `manifest.json` in the package says of its kernels ("fingerprint"), or None without a manifest.

    Errors: RecordError for a manifest that is no JSON object.
    """
    path = PACKAGE / "manifest.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}; install the package again") from error
    if not isinstance(data, dict):
        raise RecordError(f"{path} holds a {type(data).__name__}; it must be an object: install the package again")
    return data.get("fingerprint")
