"""The fast path of transformers' Mamba-2 models.  compat -> modeling modules, now and when they are imported

How a model decides has changed twice:

    to 4.57 and in parts of 5.0   names taken from mamba_ssm and causal_conv1d at import, `is_fast_path_available`, and
                                  in `forward` a look at the device: only CUDA goes fast
    from 5.0                      the same, but the names are loaded when a layer is made (`lazy_load_kernel`)
    since 5.16 or so              functions of the module that hand on to the packages, if they were there at import

So names are set in the modules themselves; where `forward` asks for CUDA it is replaced by what it would then call, on
a CPU too unless that needs CUDA for more than the functions.  Of the older modules some disagree with themselves: with
several groups their slow path has a norm without groups, and zamba2's and nemotron_h's raises small step sizes.
"""

from __future__ import annotations

import functools
import importlib.abc
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compat import Installation

FAMILIES = ("mamba2", "bamba", "zamba2", "falcon_h1", "nemotron_h", "granitemoehybrid")
MODULES = tuple(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)

# what newer modules call the functions; the older ones call them as we do
_NEW_NAMES = {
    "mamba_chunk_scan_combined": "mamba2_chunk_scan",
    "mamba_split_conv1d_scan_combined": "mamba2_split_conv1d_scan_combined",
    "selective_state_update": "mamba2_selective_state_update",
}
_PACKAGES = ("mamba-ssm", "causal-conv1d")


def use(installation: Installation, functions: dict[str, Callable[..., Any]], rmsnorm_fn: Callable[..., Any]) -> None:
    """Let the modules that are loaded, and those that will be, call these functions.

    functions: {mamba_ssm's or causal_conv1d's name: function}.  rmsnorm_fn: runs the norm behind the scan.
    """

    def change(module: ModuleType) -> None:
        _change(installation, module, functions, rmsnorm_fn)

    for name in MODULES:
        if name in sys.modules:
            change(sys.modules[name])
    finder = _Finder(change)
    sys.meta_path.insert(0, finder)
    installation.call_at_end(lambda: sys.meta_path.remove(finder))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules as ever, and changes them once they have run."""

    def __init__(self, change: Callable[[ModuleType], None]) -> None:
        self.change = change

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in MODULES else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _change(
    installation: Installation,
    module: ModuleType,
    functions: dict[str, Callable[..., Any]],
    rmsnorm_fn: Callable[..., Any],
) -> None:
    layers = [kind for kind in vars(module).values() if _own_class(module, kind)]
    asks_for_cuda = [kind for kind in layers if hasattr(kind, "cuda_kernels_forward")]
    for name, function in functions.items():
        new = _NEW_NAMES.get(name, name)
        if new in vars(module) or asks_for_cuda:
            installation.set(module, name if asks_for_cuda else new, _leave_out_unknown(function))
    if asks_for_cuda:
        installation.set(module, "is_fast_path_available", True)
        if hasattr(module, "lazy_load_kernel"):
            installation.set(module, "lazy_load_kernel", _lazy_load(module.lazy_load_kernel, functions))
    for kind in asks_for_cuda:
        installation.set(kind, "forward", _fast(kind.forward, kind.cuda_kernels_forward))
    for kind in layers:
        if kind.__name__.endswith("RMSNormGated"):
            installation.set(kind, "forward", _gated_norm(rmsnorm_fn))


def _own_class(module: ModuleType, value: Any) -> bool:
    return inspect.isclass(value) and value.__module__ == module.__name__


def _leave_out_unknown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Models hand on whatever they were called with; what the function has no parameter for is of no use to it."""
    known = frozenset(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **{name: value for name, value in kwargs.items() if name in known})

    return call


def _lazy_load(load: Callable[..., Any], functions: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    ours = SimpleNamespace(**{name: _leave_out_unknown(function) for name, function in functions.items()})

    @functools.wraps(load)
    def lazy_load_kernel(name, *args, **kwargs):
        return ours if name in _PACKAGES else load(name, *args, **kwargs)

    return lazy_load_kernel


def _fast(forward: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    """The fast path, called as `forward` is."""
    signature, known = inspect.signature(forward), inspect.signature(fast).parameters
    only_cuda = "cuda" in fast.__code__.co_names

    @functools.wraps(forward)
    def call(self, *args, **kwargs):
        if only_cuda and not self.in_proj.weight.is_cuda:
            return forward(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        return fast(**{name: value for name, value in given.items() if name in known})

    return call


def _gated_norm(rmsnorm_fn: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self, hidden_states, gate=None):
        """norm(hidden_states silu(gate)), or as the layer says norm(hidden_states) silu(gate), over its groups."""
        group_size = getattr(self, "group_size", None)
        if group_size is None:
            group_size = self.weight.shape[0] // getattr(self, "n_groups", 1)
        return rmsnorm_fn(
            hidden_states,
            self.weight,
            None,
            z=gate,
            eps=self.variance_epsilon,
            group_size=group_size,
            norm_before_gate=getattr(self, "norm_before_gate", False),
        )

    return forward
