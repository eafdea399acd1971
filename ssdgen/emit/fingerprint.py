"""What emitted code means, as a short text that comments and layout do not change.  source -> fingerprint -> records"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import sympy

from ..plan import catalogue, parts
from ..spec.functions import slope_by_share
from ..spec.layer import Layer
from . import kernel as kernels
from .environment import render
from .formula import FormulaPrinter

LENGTH = 16
# modules that kernels import
FUNCTIONS = (
    "functions",
    "warpgroup_functions",
    "storage_functions",
    "gate_functions",
    "layout_functions",
    "word_functions",
    "loop_functions",
)


def functions_of(names: Iterable[str]) -> dict[str, str]:
    """{name: text} of modules that kernels import; a derivative in them is that of the description."""
    u, share = sympy.symbols("u share", real=True)
    slope = FormulaPrinter(()).print(slope_by_share(u, share))
    return {name: render(f"kernels/{name}.py.jinja", silu2_slope=slope) for name in names}


@lru_cache(maxsize=1024)  # packages of other sizes hold the same kernels
def of_source(source: str) -> str:
    """Fingerprint of a Python source: of its statements without comments, docstrings and layout.

    The tree's own dump is no use: it has other fields in every version of Python.
    """
    tree = ast.parse(source)
    for node in (tree, *_functions(tree)):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:LENGTH]


def _functions(node: ast.Module | ast.FunctionDef) -> Iterator[ast.FunctionDef]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            yield child
            yield from _functions(child)


def of_kernels(modules: dict[str, str], functions: Mapping[str, str]) -> dict[str, str]:
    """{kernel: fingerprint} of kernel modules by name; the functions that it imports count as part of each.

    functions: {name: source} of the modules that they are in, `functions` and `warpgroup_functions` first.
    """
    shared, specialised, *others = functions
    prints = {name: of_source(source) for name, source in functions.items()}
    found = {}
    for name, source in modules.items():
        imported = [prints[specialised if f".{specialised}" in source else shared]]
        imported += [prints[other] for other in others if f".{other}" in source]
        found[name] = of_source("\n".join((source, *map(repr, imported), "")))
    return found


def of_package(layer: Layer | None = None) -> dict[str, str]:
    """{kernel: fingerprint} of the kernels that a package for `layer` (default: Mamba-2's) holds."""
    layer = layer or Layer()
    modules: dict[str, str] = {}
    for own, every in catalogue.everything(layer):
        modules |= kernels.modules(every, own)
    modules |= {name: kernels.module(kernel, graph) for name, (kernel, graph) in parts.kernels().items()}
    return of_kernels(modules, functions_of(FUNCTIONS))
