"""Tuned records as they lie on disk, read and checked.  a folder per GPU -> GpuRecords -> select

A root (`tuned/`) holds one folder per GPU, `<arch>_<gpu>/`, with `gpu.json` (which GPU, which versions) and one file of
records for each pass: `ssd_forward.json`, `ssd_backward.json`, `ssd_decode.json`, `ssd_replay.json`, and those of the
layer's other parts, `ssd_conv_*.json` and `ssd_norm_*.json`.  `tuned/schema.json` describes them; here only what the
look-up uses is checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RecordError
from .problem import Problem

SCHEMA = 1
IDENTITY = "gpu.json"
FORWARD, BACKWARD, DECODE, REPLAY = "forward", "backward", "decode", "replay"
# of a convolution whose channels lie side by side or, tile, whose positions do; of new tokens one by one
CONV_FORWARD, CONV_BACKWARD = "conv_forward", "conv_backward"
CONV_TILE_FORWARD, CONV_TILE_BACKWARD, CONV_UPDATE = "conv_tile_forward", "conv_tile_backward", "conv_update"
NORM_FORWARD, NORM_BACKWARD = "norm_forward", "norm_backward"
CONV = (CONV_FORWARD, CONV_BACKWARD, CONV_TILE_FORWARD, CONV_TILE_BACKWARD, CONV_UPDATE)
NORM = (NORM_FORWARD, NORM_BACKWARD)
PARTS = (*CONV, *NORM)
DIRECTIONS = (FORWARD, BACKWARD, DECODE, REPLAY, *PARTS)
FILES = {direction: f"ssd_{direction}.json" for direction in DIRECTIONS}

SIZES = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups")


@dataclass(frozen=True)
class Record:
    """The best known config for one pass of one problem on one GPU.

    time_us: GPU time of one call in microseconds.  measured: timed on that GPU, not predicted from compiled code.
    fingerprint: of the kernels that were timed, as the file has it, or None.  direction: the pass, one of DIRECTIONS.
    """

    problem: Problem
    config: dict[str, Any]
    measured: bool
    time_us: float
    fingerprint: Any = None
    direction: str = FORWARD


@dataclass(frozen=True)
class GpuRecords:
    """The records of one GPU.  name: as the driver reports the device, "NVIDIA H200"; arch: "sm90" or "gfx942"."""

    folder: Path
    name: str
    arch: str
    records: tuple[Record, ...]


def read_root(root: Path) -> tuple[GpuRecords, ...]:
    """Every GPU of a root, by folder name; empty if there is no such folder.  A root may also be one GPU's folder.

    Errors: RecordError, naming the file.
    """
    if (root / IDENTITY).is_file():
        return (read_folder(root),)
    try:
        folders = sorted(path.parent for path in root.glob(f"*/{IDENTITY}"))
    except OSError as error:
        raise RecordError(f"cannot list {root}: {error.strerror}; make it readable or name another folder") from error
    return tuple(read_folder(folder) for folder in folders)


def read_folder(folder: Path) -> GpuRecords:
    """One GPU's folder.  A folder without records is allowed: a study has begun and found nothing yet.

    Errors: RecordError, naming the file.
    """
    identity = _load(folder / IDENTITY)
    name = _field(identity, "name", str, folder / IDENTITY, "")
    arch = _field(identity, "arch", str, folder / IDENTITY, "")
    records: list[Record] = []
    for direction, file in FILES.items():
        if (path := folder / file).is_file():
            entries = _field(_load(path), "records", list, path, "")
            records += [_record(entry, path, i, direction) for i, entry in enumerate(entries)]
    return GpuRecords(folder, name, arch, tuple(records))


def _load(path: Path) -> dict[str, Any]:
    """A file's JSON object, of a schema that this version reads."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}; restore it or remove its folder") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise RecordError(f"{path} is not JSON: {error}; restore it or remove it, and tune again") from error
    if not isinstance(data, dict):
        raise RecordError(f"{path} holds a {type(data).__name__}; it must be an object")
    if (schema := data.get("schema")) != SCHEMA:
        raise RecordError(f"{path} has schema {schema!r}; this version reads {SCHEMA}: tune again, or update ssdgen")
    return data


def _record(entry: Any, path: Path, index: int, direction: str) -> Record:
    where = f" of record {index}"
    if not isinstance(entry, dict):
        raise RecordError(f"{path}: record {index} is a {type(entry).__name__}; it must be an object")
    # a record that does not say is of the forward pass, which was there first
    if (given := entry.get("direction", FORWARD)) != direction:
        raise RecordError(
            f"{path}: the direction{where} is {given!r}; in this file it must be {direction!r}: tune again"
        )
    sizes = _field(entry, "problem", dict, path, where)
    values = [_field(sizes, size, int, path, where) for size in SIZES]
    if min(values) < 1:
        raise RecordError(f"{path}: the problem{where} has a size of {min(values)}; sizes are at least 1")
    dtype = _field(sizes, "dtype", str, path, where)
    layout = _field(sizes, "layout", str, path, where) if "layout" in sizes else ""
    config = _field(entry, "config", dict, path, where)
    _field(config, "schedule", str, path, where)
    kernels = _field(config, "kernels", dict, path, where)
    for kernel in kernels:
        _field(kernels, kernel, dict, path, where)
    provenance = _field(entry, "provenance", str, path, where)
    if provenance not in ("measured", "predicted"):
        raise RecordError(f"{path}: provenance{where} is {provenance!r}; it must be 'measured' or 'predicted'")
    time_us = float(_field(entry, "time_us", (int, float), path, where))
    if not 0 < time_us < float("inf"):
        raise RecordError(f"{path}: time_us{where} is {time_us}; it must be positive and finite")
    problem = Problem(*values, dtype=dtype, layout=layout)
    return Record(problem, config, provenance == "measured", time_us, entry.get("fingerprint"), direction)


def _field(data: dict[str, Any], key: str, kind: type | tuple[type, ...], path: Path, where: str) -> Any:
    """A required entry of the right kind.  bool is an int to Python and not to us."""
    value = data.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        got = repr(value) if key in data else "missing"
        raise RecordError(f"{path}: {key!r}{where} is {got}; it must be {names}: restore the file or tune again")
    return value
