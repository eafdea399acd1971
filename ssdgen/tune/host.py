"""The C modules that Triton builds for itself, built where no GPU is.  source, compiler -> bytes -> precompile

Triton's driver is one, and in 3.6 every signature of a kernel has a launcher of its own.  A machine that has to build
eight of them waits for its C compiler longer than for anything else.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sysconfig import get_config_var
from typing import Any

from triton.backends.nvidia import driver
from triton.runtime import build

from .errors import TuneError

DRIVER = "cuda_utils"
LAUNCHER = "__triton_launcher"
# neither a hash of the build nor names of its temporary files: the same source makes the same bytes
_FLAGS = ["-s", "-Wl,--build-id=none"]


@dataclass(frozen=True)
class HostModule:
    """key: as Triton looks it up, in hexadecimal; name: file name, which says for which Python it is."""

    key: str
    name: str
    data: bytes


def have_compiler() -> bool:
    """Whether there is a C compiler, which Triton itself would look for by these names."""
    return any(shutil.which(name) for name in ("gcc", "clang"))


def driver_module() -> HostModule:
    """Triton's own module, which it needs before its first launch.  Errors: TuneError."""
    return module(Path(driver.dirname, "driver.c").read_text(), DRIVER)


def launcher_module(source: Any, metadata: Any) -> HostModule | None:
    """The launcher of a compiled kernel, or None where Triton has one for all.  Errors: TuneError."""
    if not hasattr(driver, "make_launcher"):
        return None
    described = getattr(metadata, "tensordesc_meta", None)
    return module(driver.make_launcher(source.constants, dict(source.signature), described), LAUNCHER)


@cache
def module(text: str, name: str) -> HostModule:
    """A C source as Triton would build and name it; libcuda need not be here.  Errors: TuneError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.c")
        path.write_text(text)
        _put_libcuda(Path(folder), text)
        try:
            built = build._build(name, str(path), folder, [folder], driver.include_dirs, driver.libraries, _FLAGS)
        except (OSError, subprocess.SubprocessError) as error:
            raise TuneError(f"the C compiler failed on {name}: {error}; build without --launchers") from error
        data = Path(built).read_bytes()
    key = hashlib.sha256((text + build.platform_key()).encode()).hexdigest()
    return HostModule(key, f"{name}{get_config_var('EXT_SUFFIX')}", data)


def _put_libcuda(folder: Path, text: str) -> None:
    """A library of the driver's name with the functions that the source calls, to link against: the GPU's has them."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", text)))
    stub = folder / "stub.c"
    stub.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    command = [shutil.which("gcc") or "clang", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(stub)]
    try:
        subprocess.run([*command, "-o", str(folder / "libcuda.so.1")], check=True, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise TuneError(f"the C compiler failed: {error}; build without --launchers") from error
