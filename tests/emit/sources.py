"""Emitted packages as text and on disk.  What the tests of emission share."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ssdgen.emit import kernel
from ssdgen.emit import package as emission
from ssdgen.pack import templates, tree
from ssdgen.plan import catalogue, parts
from ssdgen.spec.layer import Layer


@cache
def package(layer: Layer | None = None, **sizes: int) -> dict[str, str]:
    """{path: text} of the package of a layer, emitted once per process."""
    return fresh(layer, **sizes)


def fresh(layer: Layer | None = None, **sizes: int) -> dict[str, str]:
    """The same, emitted anew: for descriptions that a test has broken."""
    templates.load()
    arguments: dict[str, Any] = {"runtime": templates.runtime_sources(), **sizes}
    return emission.package(layer or Layer(), **arguments)


def kernels(layer: Layer | None = None) -> dict[str, str]:
    """{kernel: text} of a package, those of the layer's other parts left out."""
    return {name: text for name, text in every(layer).items() if name not in parts.kernels()}


def every(layer: Layer | None = None) -> dict[str, str]:
    """{kernel: text} of a package."""
    found = {Path(path).stem: text for path, text in package(layer).items() if path.startswith("kernels/")}
    return {name: text for name, text in found.items() if name not in ("__init__", *emission.FUNCTIONS)}


@cache
def consumers(layer: Layer | None = None) -> dict[str, str]:
    """Those of them that are specialised by warps, emitted without the rest of the package."""
    layer = layer or Layer()
    templates.load()
    plans = [plan for plan in (*catalogue.kernels(layer), *catalogue.backward(layer)) if plan.consumers]
    return {plan.name: kernel.module(plan, catalogue.graph(plan, layer)) for plan in plans}


def imported(texts: dict[str, str], folder: Path, name: str) -> ModuleType:
    """A package written below `folder` and imported under a name that nothing else has."""
    assert name not in sys.modules
    tree.write(texts, folder / name)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
