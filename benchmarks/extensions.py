"""CUDA extensions of peers, built from package sources where they are not installed.  -> selective_scan, split_op"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

# as the package's own build sets them; the language's standard is the one that torch's headers want
FLAGS = [
    "-O3",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
]


def build(name: str, files: list[Path], into: Path, verbose: bool = False) -> ModuleType:
    """Compile for the GPU that is here; a minute or more.  What is there already is not compiled again.

    files: sources; the folder of the first one has their headers.
    Errors: RuntimeError and OSError of the compilers, or where there are none.
    """
    from torch.utils import cpp_extension

    into.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    before = os.environ.get("TORCH_CUDA_ARCH_LIST")
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    try:
        return cpp_extension.load(
            name,
            [str(path) for path in files],
            extra_cflags=["-O3"],
            extra_cuda_cflags=FLAGS,
            extra_include_paths=[str(files[0].parent)],
            build_directory=str(into),
            verbose=verbose,
        )
    finally:
        if before is None:
            del os.environ["TORCH_CUDA_ARCH_LIST"]
        else:
            os.environ["TORCH_CUDA_ARCH_LIST"] = before


def load(name: str, variable: str, build: Callable[[Path], ModuleType]) -> tuple[ModuleType | None, str]:
    """(the extension or None, what was found or why not).  variable: of the environment, names its source folder."""
    try:
        return importlib.import_module(name), f"{name}, installed"
    except ImportError as error:
        why = str(error)
    folder = os.environ.get(variable)
    if not folder:
        return None, f"{why}; no {variable} to build it from"
    if not torch.cuda.is_available():
        return None, "no GPU to build it for"
    try:
        return build(Path(folder)), f"{name}, built from source"
    except (OSError, RuntimeError, ImportError) as error:
        return None, f"it could not be built: {(str(error).splitlines() or ['?'])[0]}"[:200]
