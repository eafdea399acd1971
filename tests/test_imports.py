"""The layers are real: every import in ssdgen/ is one that tests/layers.toml allows."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along below 3.11
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LAYERS = tomllib.loads((ROOT / "tests" / "layers.toml").read_text())
EXTRA = LAYERS.pop("extra")
PACKAGE = ROOT / "ssdgen"
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "_alias" not in path.parts)

# what reaches outside the process
TOUCHES_FILES = {"os", "pathlib", "shutil", "tempfile", "subprocess", "socket", "glob", "fcntl", "multiprocessing"}
# the version and nothing else may stand in the package's own __init__
FREE = {"__init__.py"}


def part_of(path: Path) -> str:
    """The part that a file under ssdgen/ belongs to: its folder, or its own name."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that the file imports, inside functions too."""
    package = ["ssdgen", *path.parts[:-1]]
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            # `from . import name` and `from ssdgen import name`: the name is the module
            if module == ["ssdgen"] or not node.module:
                yield from (".".join([*module, alias.name]) for alias in node.names)
            else:
                yield ".".join(module)


def refused(path: Path, name: str) -> str | None:
    """Why the file may not import this name, or None."""
    part = part_of(path)
    rules = LAYERS[part]
    head, *rest = name.split(".")
    if head == "ssdgen":
        target = rest[0] if rest else ""
        allowed = {part, "__version__", *rules["ssdgen"]}
        return None if target in allowed else f"{part} may import {sorted(allowed)} of ssdgen"
    if head in sys.stdlib_module_names:
        return f"{part} may not touch files or processes" if head in TOUCHES_FILES and not rules["files"] else None
    allowed = {*rules["others"], *EXTRA.get(path.as_posix(), ())}
    return None if head in allowed else f"{path} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.as_posix() not in FREE], ids=str)
def test_imports_only_what_its_layer_may(path: Path) -> None:
    assert part_of(path) in LAYERS, f"tests/layers.toml says nothing of {part_of(path)}"
    wrong = {name: why for name in imported(path) if (why := refused(path, name))}
    assert not wrong


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) in LAYERS and len(path.parts) > 1], ids=str)
def test_opens_no_file_where_the_layer_may_not(path: Path) -> None:
    if LAYERS[part_of(path)]["files"]:
        return
    calls = [node.func for node in ast.walk(ast.parse((PACKAGE / path).read_text())) if isinstance(node, ast.Call)]
    assert "open" not in {func.id for func in calls if isinstance(func, ast.Name)}


def test_the_layers_have_an_order() -> None:
    """No two parts may import each other, not even through others."""
    done: set[str] = set()
    waiting = dict(LAYERS)
    while waiting:
        ready = [part for part, rules in waiting.items() if set(rules["ssdgen"]) <= done]
        assert ready, f"these parts import one another in a circle: {sorted(waiting)}"
        done.update(ready)
        for part in ready:
            del waiting[part]


def test_generated_package_uses_relative_imports_only() -> None:
    for path in SOURCES:
        if part_of(path) in ("runtime", "mamba2_ops"):
            tree = ast.parse((PACKAGE / path).read_text())
            names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
            names += [
                node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
            ]
            assert not [name for name in names if name.split(".")[0] in ("ssdgen", "mamba2_ops")], path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("spec/dims.py", "torch"),
        ("spec/dims.py", "ssdgen.plan.ir"),
        ("emit/package.py", "pathlib"),
        ("plan/lower.py", "numpy"),
        ("pack/store.py", "ssdgen.tune.study"),
    ],
)
def test_a_forbidden_import_is_refused(path: str, name: str) -> None:
    assert refused(Path(path), name)
