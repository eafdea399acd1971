"""What a pack holds, and its manifest.  sources, records, compiled kernels -> {path: bytes} -> wheel"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runtime.packs import KIND, MANIFEST, SCHEMA
from .records import DIRECTIONS, Identity, Record, kernel_of, records_to_json

# modules of Python lie below it, so that the pack alone gives `import mamba2_ops`
SOURCES = "sources"


@dataclass(frozen=True)
class Host:
    """A C module of Triton's.  key: under which Triton looks for it; name: file name, for one version of Python."""

    key: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Code:
    """A compiled kernel.

    key: `mamba2_ops.precompiled.key_of`; triton: version, "3.6"; launcher: None if Triton has one for all.
    """

    key: str
    kernel: str
    arch: str
    triton: str
    cubin: bytes
    metadata: bytes
    launcher: Host | None = None


@dataclass(frozen=True)
class Contents:
    """What goes into a pack.

    name: "h200"; version: of the distribution.  sources: {path: text} of the package `mamba2_ops`.  records: of each
    GPU.  drivers: {Triton's version: its own module}.  versions: of what made the pack; commit: of the checkout, or
    None; dirty: whether the checkout had changes that are in no commit, or None without a checkout.
    """

    name: str
    version: str
    gpus: tuple[str, ...]
    sources: Mapping[str, str]
    records: Iterable[tuple[Identity, tuple[Record, ...]]]
    code: tuple[Code, ...] = ()
    drivers: Mapping[str, Host] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None


def files(contents: Contents) -> dict[str, bytes]:
    """{path below the pack's folder: bytes}, the manifest included; the same for the same contents."""
    found = {f"{SOURCES}/mamba2_ops/{path}": text.encode() for path, text in contents.sources.items()}
    validation: list[dict[str, Any]] = []
    for identity, records in contents.records:
        folder = f"tuned/{identity.folder}"
        found[f"{folder}/gpu.json"] = _json(identity.to_json())
        for direction in DIRECTIONS:
            if own := [record for record in records if record.direction == direction]:
                found[f"{folder}/{kernel_of(direction)}.json"] = _json(records_to_json(own, direction))
                validation += [_validation(identity, record) for record in own]
    code, hosts = {}, {host.key: host for host in contents.drivers.values()}
    for each in contents.code:
        stem = f"code/{each.arch}/{each.kernel}_{each.key[:16]}"
        found[f"{stem}.cubin"], found[f"{stem}.json"] = each.cubin, each.metadata
        code[each.key] = {
            "kernel": each.kernel,
            "arch": each.arch,
            "triton": each.triton,
            "cubin": f"{stem}.cubin",
            "metadata": f"{stem}.json",
        }
        if each.launcher:
            hosts[each.launcher.key] = each.launcher
            code[each.key]["launcher"] = each.launcher.key
    for host in hosts.values():
        found[_host_path(host)] = host.data
    manifest = {
        "kind": KIND,
        "schema": SCHEMA,
        "name": contents.name,
        "version": contents.version,
        "gpus": sorted(contents.gpus),
        "fingerprint": json.loads(contents.sources["manifest.json"])["fingerprint"],
        "versions": dict(contents.versions),
        "provenance": {"commit": contents.commit, "dirty": contents.dirty},
        "validation": validation,
        "code": code,
        "host": {host.key: {"name": host.name, "file": _host_path(host)} for host in hosts.values()},
        "driver": {version: host.key for version, host in contents.drivers.items()},
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in found.items()},
    }
    return dict(sorted({**found, MANIFEST: _json(manifest)}.items()))


def _validation(identity: Identity, record: Record) -> dict[str, Any]:
    """How a record is known to be right: the error that was found when it was measured, and what it may be."""
    entry = record.to_json()
    return {
        "gpu": identity.gpu,
        "direction": record.direction,
        **{name: entry[name] for name in ("problem", "provenance", "error", "error_limit", "time_us")},
    }


def _host_path(host: Host) -> str:
    return f"host/{host.key[:16]}/{host.name}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
