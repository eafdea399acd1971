"""A pack as a wheel: written byte for byte the same, read without trust.  {path: bytes} <-> a .whl file

What a wheel may hold is little: the pack's folder, whose manifest lists every file; one line of search path, so that
`mamba2_ops` is found where nothing better is; and the four files of its metadata.  Anything else is refused unread.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.packs import GROUP, LARGEST_MANIFEST, MANIFEST, problem_with, problem_with_path
from .build import SOURCES

# larger than any pack: what claims to be more is a bomb
MOST_FILES = 20_000
LARGEST_FILE = 256 * 2**20
LARGEST_TOTAL = 2 * 2**30

# the first moment that a zip file can name
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt")


class PackFileError(ValueError):
    """A file is no pack, or not the pack that it says it is.  Nothing of it was used."""


class PackNameError(ValueError):
    """A name that a pack cannot have."""


@dataclass(frozen=True)
class Opened:
    """A wheel that was read and checked.  files: {path below the pack's folder: bytes}."""

    name: str
    manifest: dict[str, Any]
    files: dict[str, bytes]
    raw: bytes


def folder_of(name: str) -> str:
    """The module name of a pack.  Errors: PackNameError."""
    if not _NAME.fullmatch(name):
        raise PackNameError(
            f"a pack cannot be called {name!r}; use small letters, digits and single underscores: h200_serving"
        )
    return f"ssdgen_pack_{name}"


def file_name(name: str, version: str, tag: str) -> str:
    return f"{folder_of(name)}-{version}-{tag}.whl"


def write(name: str, version: str, tag: str, files: dict[str, bytes]) -> bytes:
    """The wheel of a pack's files.  tag: "py3-none-any", or with the platform.  Errors: PackNameError."""
    folder = folder_of(name)
    info = f"{folder}-{version}.dist-info"
    members = {f"{folder}/{path}": data for path, data in files.items()}
    members |= {member: text.encode() for member, text in _around(name, version, tag).items()}
    members[f"{info}/RECORD"] = _record(members, f"{info}/RECORD").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        # metadata last, as the format recommends
        for member in sorted(members, key=lambda member: (member.startswith(info), member)):
            entry = zipfile.ZipInfo(member, _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # the attributes are Unix's, wherever this runs
            archive.writestr(entry, members[member])
    return buffer.getvalue()


def read(path: Path) -> Opened:
    """Read a wheel, check it whole and run nothing of it.  Errors: PackFileError, naming the file and what is wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PackFileError(f"cannot read {path}: {error.strerror}; name a pack's .whl file") from error
    try:
        members = _members(raw)
        return _checked(members, raw, path.name)
    except PackFileError as error:
        raise PackFileError(f"{path} is refused: {error}; build or fetch it again") from error
    # zipfile raises these for what is cut short, and the last for ways of packing that it does not know
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise PackFileError(f"{path} is refused: {error or type(error).__name__}; build or fetch it again") from error


def _members(raw: bytes) -> dict[str, bytes]:
    """{path: bytes} of a zip file whose names all stay inside."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_FILES:
            raise PackFileError(f"it has {len(entries)} files; a pack has at most {MOST_FILES}")
        if sum(entry.file_size for entry in entries) > LARGEST_TOTAL:
            raise PackFileError(f"it would unpack to more than {LARGEST_TOTAL} bytes")
        folded: set[str] = set()
        for entry in entries:
            # as it stands in the file: ZipInfo cuts a name at a null
            if problem := problem_with_path(entry.orig_filename):
                raise PackFileError(problem)
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise PackFileError(f"{entry.filename!r} is a link or no ordinary file")
            if entry.filename.lower() in folded:
                raise PackFileError(f"{entry.filename!r} is in it twice")
            folded.add(entry.filename.lower())
            if entry.file_size > LARGEST_FILE:
                raise PackFileError(f"{entry.filename!r} would unpack to more than {LARGEST_FILE} bytes")
            with archive.open(entry) as file:
                # no more than was announced, whatever the stream holds; the sum is checked at its end
                found[entry.filename] = file.read(entry.file_size + 1)
            if len(found[entry.filename]) != entry.file_size:
                raise PackFileError(f"{entry.filename!r} is not as long as it says")
    return found


def _checked(members: dict[str, bytes], raw: bytes, file: str) -> Opened:
    manifests = [path for path in members if path.count("/") == 1 and path.endswith(f"/{MANIFEST}")]
    if len(manifests) != 1:
        raise PackFileError(f"it has {len(manifests)} files {MANIFEST} where a pack of ssdgen's has one")
    folder = manifests[0].split("/")[0]
    name = folder.removeprefix("ssdgen_pack_")
    if len(members[manifests[0]]) > LARGEST_MANIFEST:
        raise PackFileError(f"its {MANIFEST} is larger than {LARGEST_MANIFEST} bytes")
    manifest = json.loads(members[manifests[0]])
    if problem := problem_with(manifest):
        raise PackFileError(problem)
    if not _NAME.fullmatch(name) or folder != folder_of(name) or manifest.get("name") != name:
        raise PackFileError(f"its folder is {folder!r} and its name {manifest.get('name')!r}, which do not agree")
    files = {path.partition("/")[2]: data for path, data in members.items() if path.startswith(f"{folder}/")}
    del files[MANIFEST]
    for path, digest in manifest["files"].items():
        if path not in files:
            raise PackFileError(f"{path!r} is in the manifest and not in the pack")
        if hashlib.sha256(files[path]).hexdigest() != digest:
            raise PackFileError(f"{path!r} is not what the manifest says")
    if foreign := sorted(set(files) - set(manifest["files"])):
        raise PackFileError(f"{foreign[0]!r} is in the pack and not in the manifest")
    _check_around(members, manifest, name, folder, file)
    return Opened(name, manifest, files, raw)


def _check_around(members: dict[str, bytes], manifest: dict[str, Any], name: str, folder: str, file: str) -> None:
    """What lies beside the pack's folder is word for word what `write` puts there: a line of it might run."""
    version = manifest.get("version")
    info = f"{folder}-{version}.dist-info"
    wheel = members.get(f"{info}/WHEEL", b"").decode()
    tag = next((line[5:] for line in wheel.splitlines() if line.startswith("Tag: ")), "")
    if not isinstance(version, str) or not re.fullmatch(r"[\w.]+-[\w.]+-[\w.]+", tag):
        raise PackFileError(f"it has no metadata of version {version!r}")
    beside = {path: data for path, data in members.items() if not path.startswith(f"{folder}/")}
    expected = {path: text.encode() for path, text in _around(name, version, tag).items()}
    rest = {path: data for path, data in members.items() if path != f"{info}/RECORD"}
    expected[f"{info}/RECORD"] = _record(rest, f"{info}/RECORD").encode()
    # RECORD last: it differs whenever another one does
    for path in sorted(beside.keys() | expected.keys(), key=lambda path: (path.endswith("/RECORD"), path)):
        if path not in expected:
            raise PackFileError(f"{path!r} does not belong in a pack")
        if beside.get(path) != expected[path]:
            raise PackFileError(f"{path!r} is missing or not as ssdgen writes it")
    if file != file_name(name, version, tag):
        raise PackFileError(f"its file name should be {file_name(name, version, tag)!r}")


def _around(name: str, version: str, tag: str) -> dict[str, str]:
    """{path: text} beside the pack's folder."""
    folder = folder_of(name)
    info = f"{folder}-{version}.dist-info"
    distribution = folder.replace("_", "-")
    pure = "true" if tag.endswith("-any") else "false"
    return {
        # after everything that is installed: the search path ends with the sources of packs
        f"{folder}.pth": f"{folder}/{SOURCES}\n",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            f"Summary: Kernels, records and compiled code of ssdgen: {name}\nRequires-Python: >=3.10\n"
            "Requires-Dist: torch\nRequires-Dist: triton>=3.6; sys_platform == 'linux'\n"
        ),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: ssdgen\nRoot-Is-Purelib: {pure}\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[{GROUP}]\n{name} = {folder}\n",
    }


def _record(members: dict[str, bytes], own: str) -> str:
    """The list of files with their digests that installers check and uninstall by."""

    def digest(data: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

    lines = [f"{path},sha256={digest(data)},{len(data)}" for path, data in sorted(members.items())]
    return "\n".join([*lines, f"{own},,"]) + "\n"
