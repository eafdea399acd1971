"""The files in tuned/: read with a check, written whole or not at all.  records <-> <root>/<arch>_<gpu>/*.json"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .records import (
    DIRECTIONS,
    FORWARD,
    MEASURED,
    Direction,
    Identity,
    Record,
    RecordError,
    better,
    identity_from_json,
    kernel_of,
    records_from_json,
    records_to_json,
)

try:
    import fcntl
except ImportError:  # not on Windows, where two tuners on one folder must take turns by themselves
    fcntl = None


class StoreError(OSError):
    """A file cannot be written; the message names it and says what to do.  Nothing is left half-written."""


def records_path(folder: Path, direction: Direction = FORWARD) -> Path:
    return folder / f"{kernel_of(direction)}.json"


def identity_path(folder: Path) -> Path:
    return folder / "gpu.json"


def read(folder: Path, direction: Direction = FORWARD) -> tuple[Record, ...]:
    """The records of one pass in a GPU's folder; none if there is no file.  Errors: RecordError, naming the file."""
    path = records_path(folder, direction)
    data = _parse(path)
    return () if data is None else records_from_json(data, str(path), direction)


def read_identity(folder: Path) -> Identity | None:
    """Which GPU the folder is of; None if there is no file.  Errors: RecordError, naming the file."""
    path = identity_path(folder)
    data = _parse(path)
    return None if data is None else identity_from_json(data, str(path))


def save(root: Path, identity: Identity, new: Iterable[Record], current: dict[str, str]) -> list[Record]:
    """Merge records into a GPU's folder and write what changed.  Returns those of `new` that were kept.

    root: the folder that holds one folder per GPU.  current: {kernel: fingerprint} of all emitted kernels of today.
    Errors: RecordError for a file that is there and cannot be read, and nothing is written; StoreError.
    """
    folder = root / identity.folder
    with _alone(folder):
        known = {d: {record.problem: record for record in read(folder, d)} for d in DIRECTIONS}
        standing = read_identity(folder)
        kept = []
        for record in new:
            old = known[record.direction].get(record.problem)
            if old is not None and better(old, record, current) is old:
                continue
            known[record.direction][record.problem] = record
            kept.append(record)
        # a prediction says nothing of the driver and clocks that measured records were made with
        if standing is None or any(record.provenance == MEASURED for record in kept):
            _write_json(identity_path(folder), identity.to_json())
        for direction in DIRECTIONS:
            if any(record.direction == direction for record in kept):
                _write_json(records_path(folder, direction), records_to_json(known[direction].values(), direction))
    return kept


def check_writable(root: Path, folder_name: str) -> None:
    """Find out before hours of work whether their result can be stored.  Errors: StoreError."""
    folder = root / folder_name
    with _alone(folder):
        write_text(folder / ".ssdgen-check", "")
        with suppress(OSError):
            (folder / ".ssdgen-check").unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it finds the old text or the new.  Errors: StoreError."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder: a rename does not cross file systems
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            # a full disk may show only here, and a power cut must not leave an empty file behind the new name
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write {path}: {reason}; free some space or make the folder writable, or name another with --out"
        ) from error
    finally:
        # after a success the name is gone; after anything else, an interrupt too, no trace stays
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _parse(path: Path) -> Any:
    """The JSON value of a file, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}; make it readable, or name another folder") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise RecordError(f"{path} is not JSON ({error}); restore it or remove it: nothing was overwritten") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other tuners of the same GPU between reading and writing.  Errors: StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    except OSError as error:
        raise StoreError(f"cannot use the folder {folder}: {error.strerror}; name another with --out") from error
    try:
        if fcntl and descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
