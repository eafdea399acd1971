"""The templates as text, from a checkout or from an installed wheel.  files -> emit.environment"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..emit import environment

_PACKAGE = Path(__file__).resolve().parent.parent


class TemplatesError(OSError):
    """The templates that ssdgen is installed with are not there."""


def data_folder(name: str) -> Path:
    """A folder of data that comes with ssdgen: beside the package in a checkout, inside it in a wheel.

    Errors: TemplatesError.
    """
    # the wheel's first: next to an installed package there may lie anybody's folder called templates
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise TemplatesError(f"no folder {name!r} in or beside {_PACKAGE}; install ssdgen again")


@cache
def read() -> dict[str, str]:
    """{path below the folder of templates, with slashes: text}."""
    folder = data_folder("templates")
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


# modules of ssdgen/plan that launchers go by too
_RULES = ("slices", "tiles")


@cache
def runtime_sources() -> dict[str, str]:
    """{file name: text} of what goes into every generated package unchanged: ssdgen/runtime, and two rules of plans."""
    paths = [*sorted((_PACKAGE / "runtime").glob("*.py")), *(_PACKAGE / "plan" / f"{name}.py" for name in _RULES)]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def load() -> None:
    """Hand the templates to `emit`, which reads no files itself."""
    environment.use(read())
