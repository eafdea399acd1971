"""Kernels that are there compiled, in place of a compiler.  launch -> Triton's CompiledKernel, or None -> launching

Triton finds its own cache by hashing itself, which takes longer than everything else here, and by a key that another
build of the same Triton does not share.  So a pack has keys of its own: the text of the kernel, the types and
specialisations of its arguments, the options, the target and Triton's version.  By the same keys a process finds what
an earlier one compiled on this machine (`kept`).  What is found becomes the object that Triton would have made; what
is not found, or where a person looks over Triton's shoulder, Triton compiles.

Triton also builds a small C module for itself, and 3.6 another for each signature.  A pack may hold them for the Python
that it was built with: they are put in Triton's cache before Triton looks for them.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import kept, packs
from .packs import Pack

# Versions whose compiled kernels can be made here as their compiler makes them.  Others compile.
KNOWN_TRITON = ("3.6", "3.7")
# the modules beside a kernel that it may import
_SHARED = "*functions.py"

_found: dict[tuple[int, str], Any] = {}
_loaded: set[str] = set()
_missed: set[str] = set()
# kernels that are kept for the next process; by identity, so that none is given away meanwhile
_kept: dict[int, Any] = {}
_binders: dict[tuple[int, Any], tuple[Any, Any, Any]] = {}


def find(kernel: Any, args: dict[str, Any], options: dict[str, Any]) -> Any:
    """The compiled kernel of a launch on the current device, or None.

    kernel: a kernel as `triton.jit` made it; args: its arguments by name; options: Triton's, num_warps for example.
    Errors: PackError for a pack that is not what its manifest says.
    """
    if not _can_be_found(kernel):
        return None
    prepare_driver()
    from triton.runtime.driver import driver

    device = driver.active.get_current_device()
    compiled, *_ = kernel.device_caches[device]
    # without a pack a kernel that Triton has code of in memory is left to Triton, which asks for less
    if (compiled and not _holders()) or _is_watched():
        return None
    target = driver.active.get_current_target()
    source, chosen = source_of(kernel, args, options, target)
    key = key_of(source, chosen, target)
    if key is None:
        return None
    if (device, key) not in _found:
        found = _of_a_pack(key, source) or _of_this_machine(key, source)
        if found is None:
            return None
        _found[device, key] = found
    return _found[device, key]


def keep(kernel: Any, args: dict[str, Any], options: dict[str, Any], compiled: Any) -> None:
    """Have the next process find what Triton compiled for a launch in this one.  Arguments as those of `find`."""
    if id(compiled) in _kept or not _can_be_found(kernel) or _is_watched():
        return
    from triton.runtime.driver import driver

    _kept[id(compiled)] = compiled
    target = driver.active.get_current_target()
    key = key_of(*source_of(kernel, args, options, target), target)
    if key is not None:
        kept.keep(key, compiled)


def _can_be_found(kernel: Any) -> bool:
    """Whether kernels are looked for: not where they are interpreted, of AMD, or the user wants them compiled."""
    return hasattr(kernel, "device_caches") and not torch.version.hip and not _is_off()


def _is_off() -> bool:
    return os.environ.get("SSDGEN_NO_CUBINS") == "1" or triton_version() not in KNOWN_TRITON


def source_of(kernel: Any, args: dict[str, Any], options: dict[str, Any], target: Any) -> tuple[Any, Any]:
    """What Triton would compile for a launch, and its options in full.

    Inferred by the JIT's own binder.  Tensors may be on "meta": they count as aligned, as torch's allocator makes them.
    """
    backend, bind = _binder(kernel, target)
    bound, specialization, extra = bind(**args, **options)
    chosen, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, extra)
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    source = GluonASTSource if kernel.is_gluon() else ASTSource
    return source(kernel, signature, constants, attributes), chosen


def key_of(source: Any, options: Any, target: Any) -> str | None:
    """The key of a compiled kernel in a pack; None where the text of the kernel cannot be read."""
    text = _text_of(source.fn)
    if text is None:
        return None
    parts = {
        "triton": triton_version(),
        "target": [target.backend, str(target.arch), target.warp_size],
        "kernel": source.fn.__name__,
        "text": text,
        "signature": {name: str(kind) for name, kind in source.signature.items()},
        "constants": {str(path): str(value) for path, value in source.constants.items()},
        "attributes": {str(path): str(value) for path, value in source.attrs.items()},
        "options": options.hash(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def triton_version() -> str:
    """Major and minor: what a compiled kernel and its launch have in common does not change below that."""
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def installed_triton() -> str | None:
    """The same of the Triton that is installed, which is not imported; None without one."""
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return None


def prepare_driver() -> None:
    """Spare Triton the C compiler for its own module, where a pack has it; before Triton's driver is first used."""
    for pack in _holders():
        _put_host(pack, pack.manifest.get("driver", {}).get(triton_version()))


def counts() -> dict[str, int]:
    """{"loaded", "missed"}: kernels of this process that came from a pack, and those that no pack has."""
    return {"loaded": len(_loaded), "missed": len(_missed)}


def forget() -> None:
    """Look for packs again at the next launch."""
    for each in (_found, _loaded, _missed, _kept):
        each.clear()
    _holders.cache_clear()
    _put_host.cache_clear()
    packs.installed.cache_clear()


@cache
def _holders() -> tuple[Pack, ...]:
    """Packs with compiled kernels for this Triton."""
    found = [pack for pack in packs.installed() if pack.manifest.get("code")]
    if not found or _is_off():
        return ()
    return tuple(
        pack for pack in found if any(code["triton"] == triton_version() for code in pack.manifest["code"].values())
    )


def _of_a_pack(key: str, source: Any) -> Any:
    """The compiled kernel, where a pack has it."""
    holders = _holders()
    holder = next((pack for pack in holders if key in pack.manifest["code"]), None)
    if holder is None:
        if holders:
            _missed.add(key)
        return None
    found = _load(holder, key, source)
    _loaded.add(key)
    return found


def _of_this_machine(key: str, source: Any) -> Any:
    """The compiled kernel, where an earlier process left it."""
    from triton.compiler import CompiledKernel

    files = kept.files(key, source.fn.__name__)
    return None if files is None else CompiledKernel(source, files, key)


def _load(pack: Pack, key: str, source: Any) -> Any:
    """The compiled kernel, whose files are what the manifest says."""
    from triton.compiler import CompiledKernel

    entry = pack.manifest["code"][key]
    for path in (entry["cubin"], entry["metadata"]):
        pack.read(path)
    _put_host(pack, entry.get("launcher"))
    name = entry["kernel"]
    group = {f"{name}.{end}": str(pack.root / entry[kind]) for end, kind in (("json", "metadata"), ("cubin", "cubin"))}
    return CompiledKernel(source, group, key)


@cache
def _put_host(pack: Pack, key: str | None) -> None:
    """Put a C module where Triton looks for it, unless it is there or is of another Python."""
    entry = pack.manifest.get("host", {}).get(key)
    if entry is None or key is None:
        return
    from sysconfig import get_config_var

    from triton.runtime.cache import get_cache_manager

    if not entry["name"].endswith(str(get_config_var("EXT_SUFFIX"))):
        return
    # a cache that cannot be written is Triton's to complain of
    with suppress(OSError):
        manager = get_cache_manager(key)
        if manager.get_file(entry["name"]) is None:
            manager.put(pack.read(entry["file"]), entry["name"], binary=True)


def _is_watched() -> bool:
    """Whether somebody looks at or changes what Triton compiles: then it has to compile."""
    from triton import knobs
    from triton._C.libtriton import get_cache_invalidating_env_vars

    compiling, running = knobs.compilation, knobs.runtime
    asked = (
        compiling.always_compile,
        compiling.override,
        compiling.dump_ir,
        compiling.listener,
        compiling.use_ir_loc,
        compiling.instrumentation_mode,
        running.debug,
        running.jit_cache_hook,
        running.jit_post_compile_hook,
        running.add_stages_inspection_hook,
        get_cache_invalidating_env_vars(),
    )
    return any(asked)


def _binder(kernel: Any, target: Any) -> tuple[Any, Any]:
    """Triton's backend for the target, and its function that infers types.  Remembered by identity.

    The hash of a kernel is that of its text and takes milliseconds.
    """
    key = id(kernel), target
    if key not in _binders:
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        backend = make_backend(target)
        _binders[key] = kernel, backend, create_function_from_signature(kernel.signature, kernel.params, backend)
    return _binders[key][1:]


def _text_of(kernel: Any) -> str | None:
    """Digest of the file that a kernel is in and of what it may import from beside it; None if it is not in a file."""
    return _digest(kernel.fn.__code__.co_filename)


@cache
def _digest(file: str) -> str | None:
    path, made = Path(file), hashlib.sha256()
    try:
        for each in [path, *sorted(path.parent.glob(_SHARED))]:
            made.update(hashlib.sha256(each.read_bytes()).digest())
    except OSError:
        return None
    return made.hexdigest()
