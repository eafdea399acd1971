"""Whether kernels can run, and running them: strides, device, a config that fits.  interface, autograd -> launchers"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import every_head
from .errors import OptionError, SsdWarning
from .problem import Problem
from .repeats import Again
from .select import backward_config_for, config_for, gpu_of, replace, replace_backward


# looked for, not imported: importing Triton takes a second and is not needed on a CPU
def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False


HAVE_TRITON = _installed("triton")
_OPTIONAL = ("D", "z", "dt_bias", "initial_states", "seq_idx", "cu_seqlens")


def runs_kernels(x: Tensor) -> bool:
    """Whether the emitted kernels can run on this tensor."""
    if x.dtype is torch.float64:
        return False
    if x.is_cuda:
        if not HAVE_TRITON:
            _warn_no_triton()
        return HAVE_TRITON
    # the interpreter computes with NumPy, which has no bf16
    return (
        x.device.type == "cpu"
        and x.dtype is not torch.bfloat16
        and HAVE_TRITON
        and os.environ.get("TRITON_INTERPRET") == "1"
        and os.environ.get("SSDGEN_FORCE_TRITON") == "1"
    )


def forward(problem: Problem, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options):
    """Run the emitted kernels on the device of x.

    They take what is one number for a token and head with any strides, the rest with a last one of 1.
    """
    launcher = forward_launcher(problem.layout)
    options["state_dtype"] = options["state_dtype"] or torch.float32
    return _forward_on(launcher, "forward", problem, (x, dt, A, B, C), options)


def states(problem: Problem, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Run the emitted kernels that make states alone.  Arguments and results as in `launchers.forward.states`."""
    from .launchers import forward as launcher

    return _forward_on(launcher, "states", problem, (x, dt, A, B), options)


def mirror(problem: Problem, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options) -> Tensor:
    """Run the emitted kernel for what is above the diagonal.  Arguments and results: `launchers.forward.mirror`."""
    launcher = forward_launcher(problem.layout)
    return _forward_on(launcher, "mirror", problem, (x, dt, A, B, C), options)


def forward_again(problem: Problem, tensors: dict[str, Tensor | None], **options) -> Again | None:
    """What makes a call again that `forward` has made, in `again`; None where operands have to be copied for it."""
    if not _are_read_in_place(tensors):
        return None
    device = tensors["x"].device  # type: ignore[union-attr]
    return forward_launcher(problem.layout).again(config_for(problem, device), tensors, **options)


def backward_again(problem: Problem, tensors: dict[str, Tensor | None], **options) -> Again | None:
    """The same of `backward`."""
    launcher, d_y, d_states = backward_launcher(problem.layout), tensors["d_y"], tensors["d_final_states"]
    if launcher is None or d_y is None or not _are_read_in_place(tensors) or every_head.instead(problem, d_y):
        return None
    if any(gradient is not None and 0 in gradient.stride() for gradient in (d_y, d_states)):
        return None
    config = backward_config_for(problem, d_y.device)
    return None if config is None else launcher.again(config, tensors, **options)


def again(run: Again, names: Sequence[str], operands: Sequence[Tensor | None]) -> Any:
    """Make a pass again with other tensors of the same form, on their device."""
    tensors = dict(zip(names, operands, strict=True))
    x = operands[0]
    assert x is not None
    device = x.device
    if x.is_cuda and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return run(tensors, device)
    return run(tensors, device)


def _are_read_in_place(tensors: dict[str, Tensor | None]) -> bool:
    """Whether no operand of a pass has to be copied because of its strides."""
    return all(
        tensor is None or name == "dt" or (name == "A" and tensor.dim() == 3) or tensor.stride(-1) == 1
        for name, tensor in tensors.items()
    )


def _forward_on(launcher, name: str, problem: Problem, operands: tuple[Tensor, ...], options: dict):
    """Run a function of the launchers on the device of x, whichever is current."""
    x, dt, A, *others = operands
    device = x.device
    operands = (_unit_stride(x), dt, _rates(A), *(_unit_stride(operand) for operand in others))
    options = {key: _unit_stride(value) if key in _OPTIONAL else value for key, value in options.items()}
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        # Triton launches on the current device, whatever the tensors are on
        with torch.cuda.device(device):
            return _forward_here(launcher, name, problem, operands, options)
    return _forward_here(launcher, name, problem, operands, options)


def _forward_here(launcher, name: str, problem: Problem, operands: tuple[Tensor, ...], options: dict):
    """Run on the current device; where the config does not fit, a small one from then on."""
    device, run = operands[0].device, getattr(launcher, name)
    config = config_for(problem, device)
    try:
        return run(config, *operands, **options)
    except Exception as error:
        if not _is_too_large(error) or config is launcher.MINIMAL:
            raise
        _warn_too_large(problem, error)
    replace(problem, device, launcher.MINIMAL)
    return run(launcher.MINIMAL, *operands, **options)


def _suffix(layout: str) -> str:
    """What follows the name of the launchers of a layout other than the package's own."""
    return layout and f"_{layout.replace('-', '_')}"


def forward_launcher(layout: str = "") -> ModuleType:
    """The launchers of the forward pass for a layout (`Problem.layout`)."""
    return import_module(f"{__package__}.launchers.forward{_suffix(layout)}")


@cache
def backward_launcher(layout: str = "") -> ModuleType | None:
    """The launchers of the backward pass for a layout (`Problem.layout`), or None in a package without them."""
    name = f"{__package__}.launchers.backward{_suffix(layout)}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # what it imports itself must not be missing in silence
        if error.name not in (name, name.rpartition(".")[0]):
            raise
        return None


def backward(
    problem: Problem, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, d_y: Tensor | None, **options
):
    """Gradients by the emitted kernels, on the device of x, or None where no kernel takes these sizes.

    Arguments as in `fallback.backward`, without cu_seqlens.  Warns (SsdWarning) once per bucket that has no kernel.
    """
    if (own := every_head.instead(problem, x)) is not None:
        return _backward_of_every_head(own, x, dt, A, B, C, d_y=d_y, **options)
    launcher = backward_launcher(problem.layout)
    assert launcher is not None
    x, A, B, C = _unit_stride(x), _rates(A), _unit_stride(B), _unit_stride(C)
    if d_y is None:
        d_y = x.new_zeros((*dt.shape, x.shape[3]))
    options["d_y"] = _without_zero_strides(d_y)
    options["d_final_states"] = _without_zero_strides(options["d_final_states"])
    for name in ("D", "z", "dt_bias", "initial_states", "seq_idx"):
        options[name] = _unit_stride(options[name])
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return _backward_here(launcher, problem, x, dt, A, B, C, options)
    return _backward_here(launcher, problem, x, dt, A, B, C, options)


def _backward_of_every_head(problem: Problem, x, dt, A, B, C, **options) -> dict[str, Tensor] | None:
    """The same with operands that are repeated for every head, of a problem in which none is shared."""
    x_of_each, *others = (every_head.repeated(operand, problem.nheads) for operand in (x, B, C))
    found = backward(problem, x_of_each, dt, A, *others, **options)
    if found is None:
        return None
    heads = {"x": x.shape[2], "B": B.shape[2], "C": C.shape[2]}
    return {
        name: every_head.added_up(gradient, heads[name]) if name in heads else gradient
        for name, gradient in found.items()
    }


def _backward_here(launcher, problem: Problem, x, dt, A, B, C, options):
    """Run on the current device; where the config does not fit, the plainest default from then on, or a small one."""
    while (config := backward_config_for(problem, x.device)) is not None:
        try:
            return launcher.backward(config, x, dt, A, B, C, **options)
        except OptionError as error:
            reason = error
        except Exception as error:
            if not _is_too_large(error):
                raise
            if config is not launcher.MINIMAL_BACKWARD:
                from .backward_defaults import default_backward

                _warn_too_large(problem, error)
                plain = default_backward(problem.bucketed(), gpu_of(x.device).sms, "")
                smaller = plain if config != plain else launcher.MINIMAL_BACKWARD
                replace_backward(problem, x.device, smaller)
                continue
            reason = error
        replace_backward(problem, x.device, None)
        warnings.warn(f"no backward kernel takes {problem} ({reason}): PyTorch's runs", SsdWarning, stacklevel=5)
    return None


def _is_too_large(error: Exception) -> bool:
    # by name: importing Triton's errors is importing Triton
    return type(error).__name__ == "OutOfResources"


def _warn_too_large(problem: Problem, error: Exception) -> None:
    warnings.warn(f"the config for {problem} does not fit ({error}); a small one runs", SsdWarning, stacklevel=6)


def _unit_stride(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _rates(A: Tensor) -> Tensor:
    """A as the kernels take it: for every token it may have any strides."""
    return A if A.dim() == 3 else _unit_stride(A)


def _without_zero_strides(gradient: Tensor | None) -> Tensor | None:
    """The gradient of a sum is one number, expanded."""
    return _unit_stride(gradient) if gradient is None or 0 not in gradient.stride() else gradient.contiguous()


_warnings: set[str] = set()


def _warn_no_triton() -> None:
    if "triton" not in _warnings:
        _warnings.add("triton")
        warnings.warn(
            "Triton is not installed: the much slower PyTorch path runs; `pip install triton`", SsdWarning, stacklevel=4
        )
