"""Mamba-3's package as text: kernels, launches, PyTorch path and public call.  plan.mamba3 -> {path: text}"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..plan import mamba3
from ..plan.ir import Kernel
from ..spec.decompose import chunk_graph
from ..spec.mamba3 import LAYER, TOKEN_OUTPUTS, entering_graph, tokens_graph
from . import fingerprint, torch_code
from . import kernel as kernels
from .environment import render

# what the launches need of every package's runtime
RUNTIME = (
    "direct.py",
    "errors.py",
    "kept.py",
    "kernel_shapes.py",
    "compiling.py",
    "launching.py",
    "packs.py",
    "precompiled.py",
    "scratch.py",
    "spills.py",
    "tiles.py",
)
# modules that its kernels import
FUNCTIONS = (*fingerprint.FUNCTIONS, "angle_functions")


def package(*, runtime: Mapping[str, str]) -> dict[str, str]:
    """{path: text} of a package that needs torch and triton only.  runtime: {file name: text}, more than is used."""
    modules = {name: kernels.module(kernel, graph) for name, (kernel, graph) in mamba3.every().items()}
    functions = fingerprint.functions_of(FUNCTIONS)
    texts = {name: runtime[name] for name in RUNTIME}
    imported = [name for name in functions if any(f"from .{name} import" in text for text in modules.values())]
    texts |= {f"kernels/{name}.py": functions[name] for name in imported}
    texts |= {f"kernels/{name}.py": text for name, text in modules.items()}
    texts |= {
        "__init__.py": render("mamba3/__init__.py.jinja"),
        "interface.py": render("mamba3/interface.py.jinja"),
        "launch.py": render(
            "mamba3/launch.py.jinja",
            modules=sorted(modules),
            dims=[
                (table, _dims([kernel for kernel, _ in kernels_of().values()]))
                for table, kernels_of in (
                    ("BEFORE_DIMS", mamba3.before),
                    # where both have a tensor, strides are asked for by the plain kernels alone
                    ("CHUNK_DIMS", lambda: {**mamba3.by_warps(), **mamba3.chunks()}),
                    ("TOKEN_DIMS", mamba3.token),
                )
            ],
            vectors=mamba3.VECTORS,
        ),
        "reference.py": render("mamba3/reference.py.jinja", functions=_functions()),
        "kernels/__init__.py": render("kernels/__init__.py.jinja", names=sorted(modules)),
        "manifest.json": _manifest(fingerprint.of_kernels(modules, functions)),
    }
    return dict(sorted(texts.items()))


def _functions() -> list[str]:
    """The graphs as functions of the PyTorch path."""
    tokens = "Steps and operands of a run of tokens, for the heads of a group; r: pairs of state dimensions."
    entering = "The state that the first chunk takes."
    chunk = "One chunk, rows i and columns j, from the state that enters it."
    return [
        torch_code.function(tokens_graph(), "tokens", tokens, TOKEN_OUTPUTS, {"HAS_D": "D_head is not None"}),
        torch_code.function(entering_graph(), "entering", entering, ("state_in",), {}),
        torch_code.function(chunk_graph(LAYER), "one_chunk", chunk, ("y", "state_out"), {"HAS_Z": "z is not None"}),
    ]


def _dims(every: list[Kernel]) -> list[tuple[str, str]]:
    """(tensor, its dimensions as text) of every tensor that has stride parameters."""
    strided = {t.name: t.dims for kernel in every for t in kernel.tensors if t.stride_parameters()}
    return [(name, ", ".join(f'"{dim}"' for dim in dims)) for name, dims in sorted(strided.items())]


def _manifest(fingerprints: dict[str, str]) -> str:
    content = {
        "layer": {
            "family": LAYER.family.name,
            "layout": LAYER.layout.name,
            "discretisation": LAYER.discretisation.name,
        },
        "variant": "mamba3",
        "fingerprint": fingerprints,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


__all__ = ["package"]
