"""Installed packs as data: found by entry point, checked, never imported.  metadata -> Pack -> ladder, precompiled

A pack is a folder with `pack.json`, which lists every file with its SHA-256, records below `tuned/` and compiled
kernels.  It holds no code that runs at discovery: the entry point names the folder and nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import PackError

GROUP = "ssdgen.packs"
MANIFEST = "pack.json"
KIND = "ssdgen pack"
SCHEMA = 1

# larger than the manifest of any pack; what is larger is not read
LARGEST_MANIFEST = 16 * 2**20

_DIGEST = re.compile(r"[0-9a-f]{64}")


# compared by identity: a manifest has no hash
@dataclass(frozen=True, eq=False)
class Pack:
    """An installed pack whose manifest was read.  name: that of its entry point; files: {path below root: SHA-256}."""

    name: str
    root: Path
    manifest: dict[str, Any]

    @property
    def files(self) -> dict[str, str]:
        return self.manifest["files"]

    @property
    def records(self) -> Path:
        """The folder of its records, which need not exist."""
        return self.root / "tuned"

    def read(self, path: str) -> bytes:
        """A file's bytes.  Errors: PackError where it is missing, or not what the manifest says."""
        if path not in self.files:
            raise PackError(f"the pack {self.name} does not list {path!r}; {_mend(self.name)}")
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise PackError(
                f"the pack {self.name} misses {self.root / path}: {error.strerror}; {_mend(self.name)}"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.files[path]:
            raise PackError(f"{self.root / path} is not what the manifest of {self.name} says; {_mend(self.name)}")
        return data

    def check_records(self) -> None:
        """Read every file below `tuned/` once.  Errors: PackError, also for a file that is not listed."""
        listed = {path for path in self.files if path.startswith("tuned/")}
        there = {path.relative_to(self.root).as_posix() for path in self.records.rglob("*") if path.is_file()}
        if foreign := sorted(there - listed):
            raise PackError(f"{self.root / foreign[0]} is not in the manifest of {self.name}; {_mend(self.name)}")
        for path in sorted(listed):
            self.read(path)


@cache
def installed() -> tuple[Pack, ...]:
    """Every installed pack, by name; read once per process.  Errors: PackError."""
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return tuple(read(root_of(point.name, point.value), point.name) for point in found)


def root_of(name: str, value: str) -> Path:
    """The folder that an entry point names by the module of that name, which is not imported.  Errors: PackError."""
    named = f"the pack {name} (entry point {value}, group {GROUP})"
    # finding a module inside another one would import the outer one
    spec = find_spec(value) if value.isidentifier() else None
    places = list(spec.submodule_search_locations or ()) if spec else []
    root = next((Path(place) for place in places if Path(place, MANIFEST).is_file()), None)
    if root is None:
        raise PackError(f"{named} names no folder with a {MANIFEST}: it is none of ssdgen's; {_mend(name)}")
    return root


def read(root: Path, name: str) -> Pack:
    """The pack in a folder.  Errors: PackError, naming the file and what is wrong with it."""
    path = root / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise PackError(f"{path} is larger than {LARGEST_MANIFEST} bytes; {_mend(name)}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PackError(f"cannot read {path}: {error.strerror}; {_mend(name)}") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise PackError(f"{path} is not JSON ({error}); {_mend(name)}") from error
    if problem := problem_with(data):
        raise PackError(f"{path}: {problem}; {_mend(name)}")
    return Pack(name, root, data)


def problem_with(manifest: Any) -> str | None:
    """What is wrong with a parsed manifest as far as a reader relies on it, or None."""
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return f"it is no manifest of an {KIND}"
    if manifest.get("schema") != SCHEMA:
        return f"it has schema {manifest.get('schema')!r} and this version reads {SCHEMA}: update ssdgen or the pack"
    files = manifest.get("files")
    if not isinstance(files, dict):
        return "it lists no files"
    for path, digest in files.items():
        if problem := problem_with_path(path):
            return problem
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return f"the digest of {path!r} is {digest!r}, which is no SHA-256"
    for section, needed in (("code", ("kernel", "arch", "triton", "cubin", "metadata")), ("host", ("name", "file"))):
        entries = manifest.get(section, {})
        if not isinstance(entries, dict):
            return f"{section!r} is no object"
        for key, entry in entries.items():
            if not isinstance(entry, dict) or not all(isinstance(entry.get(word), str) for word in needed):
                return f"the entry {key!r} of {section!r} needs {', '.join(needed)}"
            if not _DIGEST.fullmatch(key):
                return f"{key!r} of {section!r} is no SHA-256"
            # the first word becomes the name of a file in Triton's cache
            if problem_with_path(entry[needed[0]]) or "/" in entry[needed[0]]:
                return f"{entry[needed[0]]!r} of {section!r} is no name"
    return None


def problem_with_path(path: Any) -> str | None:
    """Why a name may not be that of a file in a pack, or None: it must stay inside, and mean one file everywhere."""
    if not isinstance(path, str) or not path or len(path) > 200:
        return f"{path!r} is no name of a file"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\:]", path):
        return f"the file name {path!r} leaves the pack or is not the same everywhere"
    return None


def _mend(name: str) -> str:
    return f"install it again with `ssdgen pack install FILE.whl`, or `pip uninstall ssdgen-pack-{name}`"
