"""A small pack for the tests: sources, one record and a compiled kernel that is only bytes."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from pathlib import Path
from typing import Any

from ssdgen.pack import build, wheel
from ssdgen.pack.build import Code, Contents, Host
from ssdgen.pack.records import MEASURED, Identity, Record
from ssdgen.plan.problem import Problem

NAME, VERSION, TAG = "h200", "0.1.0", "py3-none-any"
FOLDER = "ssdgen_pack_h200"
INFO = f"{FOLDER}-{VERSION}.dist-info"
IDENTITY = Identity("sm90", "h200", "NVIDIA H200", "570", "2.11", "3.6.0", {})
PROBLEM = Problem(8, 2048, 80, 64, 128, 1, "bfloat16")
CONFIG = {"schedule": "single_pass", "chunk": 64, "kernels": {"single_pass": {"num_warps": 4}}}
RECORD = Record(PROBLEM, CONFIG, MEASURED, 50.0, 1.0, 100.0, 0.001, 0.005, {"single_pass": "00"}, "11")
KEY = hashlib.sha256(b"a kernel").hexdigest()
LAUNCHER = Host(hashlib.sha256(b"a launcher").hexdigest(), "launcher.so", b"not run")


def contents(**changes: Any) -> Contents:
    code = Code(KEY, "single_pass", "sm90", "3.6", b"cubin", b'{"name": "single_pass"}', LAUNCHER)
    sources = {
        "__init__.py": "raise SystemExit('imported')\n",
        "manifest.json": '{"fingerprint": {"single_pass": "00"}}',
    }
    plain: dict[str, Any] = {
        "name": NAME,
        "version": VERSION,
        "gpus": ("h200",),
        "sources": sources,
        "records": [(IDENTITY, (RECORD,))],
        "code": (code,),
        "versions": {"ssdgen": "0.1.0"},
        "commit": "0" * 40,
        "dirty": False,
    }
    return Contents(**{**plain, **changes})


def files(**changes: Any) -> dict[str, bytes]:
    return build.files(contents(**changes))


def put(folder: Path, data: bytes | None = None) -> Path:
    """The wheel as a file, under the name that it must have."""
    path = folder / wheel.file_name(NAME, VERSION, TAG)
    path.write_bytes(wheel.write(NAME, VERSION, TAG, files()) if data is None else data)
    return path


def members(data: bytes | None = None) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data or wheel.write(NAME, VERSION, TAG, files()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(entries: dict[str, bytes], mode: dict[str, int] | None = None, twice: str = "") -> bytes:
    """A zip file of these members.  mode: file type by name; twice: a member that is there a second time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name in [*entries, *([twice] if twice else [])]:
            info = zipfile.ZipInfo(name)
            info.external_attr = ((mode or {}).get(name, stat.S_IFREG) | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, entries[name])
    return buffer.getvalue()


def signed(changed: dict[str, bytes]) -> bytes:
    """A zip file whose manifest and RECORD agree with changed files: what only the other checks can find."""
    folder = f"{FOLDER}/"
    manifest = json.loads(changed[f"{folder}pack.json"])
    inside = {name.removeprefix(folder): data for name, data in changed.items() if name.startswith(folder)}
    del inside["pack.json"]
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in inside.items()}
    changed[f"{folder}pack.json"] = json.dumps(manifest).encode()
    del changed[f"{INFO}/RECORD"]
    changed[f"{INFO}/RECORD"] = wheel._record(changed, f"{INFO}/RECORD").encode()
    return archive(changed)
