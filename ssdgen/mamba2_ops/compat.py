"""Under the names of other packages: mamba_ssm, causal_conv1d and the models of transformers.  -> public functions

    import mamba2_ops

    mamba2_ops.compat.install()     # undone by mamba2_ops.compat.uninstall(), or as `with mamba2_ops.compat.install():`

From then on `from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined` and its like give what this
package has.  Names that a module took from these packages before stay what they were, save in transformers' models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, TracebackType
from typing import Any

from . import compat_transformers, conv, decode, interface, mamba2, norm, split

# a version of mamba_ssm and of causal_conv1d whose signatures these are
VERSIONS = {"mamba_ssm": "2.3.2", "causal_conv1d": "1.6.0"}

_SCAN = {
    "mamba_chunk_scan_combined": interface.mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": split.mamba_split_conv1d_scan_combined,
}
_UPDATE = {"selective_state_update": decode.selective_state_update}
_CONV = {"causal_conv1d_fn": conv.causal_conv1d_fn, "causal_conv1d_update": conv.causal_conv1d_update}
_VARLEN = {"causal_conv1d_varlen_states": conv.causal_conv1d_varlen_states}
_NORM = {
    "LayerNorm": norm.LayerNorm,
    "RMSNorm": norm.RMSNorm,
    "layernorm_fn": norm.layernorm_fn,
    "rmsnorm_fn": norm.rmsnorm_fn,
}
_MAMBA2 = {"Mamba2": mamba2.Mamba2}

# {module: what it has of ours}; packages come before what is in them
MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": _MAMBA2,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba2": _MAMBA2,
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.ssd_combined": _SCAN,
    "mamba_ssm.ops.triton.selective_state_update": _UPDATE,
    "mamba_ssm.ops.triton.layernorm_gated": _NORM,
    "causal_conv1d": _CONV,
    "causal_conv1d.causal_conv1d_interface": _CONV,
    "causal_conv1d.causal_conv1d_varlen": _VARLEN,
}


class Installation:
    """What `install` changed; leaving it as a context, or `uninstall`, changes it back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """owner.name = value, for now."""
        if name in vars(owner):
            old = vars(owner)[name]
            self._undo.append(lambda: setattr(owner, name, old))
        else:
            self._undo.append(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def call_at_end(self, function: Callable[[], None]) -> None:
        self._undo.append(function)

    def uninstall(self) -> None:
        """Change everything back, the last change first."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        uninstall()


_installed: Installation | None = None


def install() -> Installation:
    """Let the names of mamba_ssm and causal_conv1d, and the fast path of transformers' models, be this package's.

    Neither of the packages needs to be installed.  Where one is, its other modules are still found, and nothing of it
    is imported.  Models of transformers that exist already, and those that are made or imported later, take their fast
    path, on a CPU too (`compat_transformers`).

    Returns: what was changed; a second call changes nothing more and returns the same.
    """
    global _installed
    if _installed is None:
        _installed = Installation()
        for name, content in MODULES.items():
            _provide(_installed, name, content)
        compat_transformers.use(_installed, {**_SCAN, **_UPDATE, **_CONV}, norm.rmsnorm_fn)
    return _installed


def uninstall() -> None:
    """Undo `install`; without it nothing happens."""
    global _installed
    if _installed is not None:
        _installed.uninstall()
        _installed = None


def _provide(installation: Installation, name: str, content: dict[str, Any]) -> None:
    """A module of this name with this content: the one that is loaded, or one made here."""
    module = sys.modules.get(name)
    parent, _, last = name.rpartition(".")
    if module is None:
        module = ModuleType(name, f"Names of {__package__}.")
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        # what else there is in the package, if it is installed, is found on its path
        module.__path__ = _path_of(name, parent)
        if name in VERSIONS:
            module.__version__ = VERSIONS[name]  # type: ignore[attr-defined]
        sys.modules[name] = module
        installation.call_at_end(lambda: sys.modules.pop(name, None) and None)
    if parent:
        installation.set(sys.modules[parent], last, module)
    for what, value in content.items():
        installation.set(module, what, value)


def _path_of(name: str, parent: str) -> list[str]:
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    return list(spec.submodule_search_locations or ()) if spec else []
