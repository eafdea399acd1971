"""Imitations of Triton's launchers of two versions, and a compiled kernel without a GPU.  -> test_direct"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.backends.nvidia.driver import make_tensordesc_arg
from triton.compiler import CompiledKernel
from triton.runtime import driver

from ssdgen.runtime.launching import descriptor

GRID, FUNCTION, METADATA, STREAM = (3, 2, 1), 77, (4, 1, 1024), 5
ORDER, BLOCK = (0, 2, 1, 3), (1, 1, 16, 16)
SHAPE, STRIDES = (2, 3, 32, 16), (1536, 16, 48, 1)
LAYOUT = {"swizzle": 3, "elem_size": 4, "elem_type": 7, "block_size": list(BLOCK), "fp4_padded": False}
DESCRIBED = "tensordesc<fp32[1, 1, 16, 16],layout>"
# the tensor y is there twice, and D is absent
SIGNATURE = {
    "x_ptr": "*fp32",
    "D_ptr": "constexpr",
    "x_desc": DESCRIBED,
    "seqlen": "i32",
    "y_desc": DESCRIBED,
    "y_ptr": "*fp32",
    "y_again_ptr": "*fp32",
    "CHUNK": "constexpr",
}
NAMES = list(SIGNATURE)
SLOTS = {"x_ptr": "x", "x_desc": "x", "y_desc": "y", "y_ptr": "y", "y_again_ptr": "y"}
BLOCKS = {"x_desc": (ORDER, BLOCK), "y_desc": (ORDER, BLOCK)}


def tensors() -> dict[str, torch.Tensor | None]:
    return {name: torch.randn(2, 32, 3, 16) for name in ("x", "y")}


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    found = {
        name: descriptor(given[slot], ORDER, BLOCK) if name in BLOCKS else given[slot] for name, slot in SLOTS.items()
    }
    return {name: found.get(name, {"seqlen": 32, "CHUNK": 64}.get(name)) for name in NAMES}


@dataclass(frozen=True)
class Encoded:
    """A descriptor as the driver makes it."""

    address: int
    rest: tuple


class Cuda:
    """The functions in C, which note what they are given."""

    def __init__(self) -> None:
        self.launches: list[tuple] = []
        self.encoded: list[int] = []
        self.devices: list[int | None] = []
        self.stream = STREAM

    def launch(self, *given: Any) -> None:
        self.launches.append(given)
        for each in given:
            if isinstance(each, knobs.HookChain) or type(each) is Heard:
                each("launched")

    def encode(self, address: int, *rest: Any) -> Encoded:
        self.encoded.append(address)
        return Encoded(address, (tuple(map(plain, rest))))

    def stream_of(self, device: int | None) -> int:
        self.devices.append(device)
        return self.stream


class Heard(list):
    """A hook: what it was told."""

    def __call__(self, metadata: Any) -> None:
        self.append(metadata)


def plain(given: Any) -> Any:
    """Something that can be compared, lists and tuples alike."""
    return tuple(map(plain, given)) if isinstance(given, list | tuple) else given


class Launcher:
    """What Triton's launchers of any version have."""

    def __init__(self, launch: Callable) -> None:
        self.launch = launch
        self.global_scratch_size = self.profile_scratch_size = 0


def renamed(kind: type) -> type:
    """A launcher as if it were Triton's own."""
    return type("CudaLauncher", (kind,), {"__module__": "triton.backends.nvidia.driver"})


@renamed
class Flat(Launcher):
    """The launcher of Triton 3.6."""

    def __call__(self, x, y, z, stream, function, *args):
        self.launch(x, y, z, stream, function, False, True, None, None, *args)


@renamed
class Listed(Launcher):
    """The launcher of Triton 3.7."""

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter_hook, exit_hook, *args):
        self.launch(
            x, y, z, stream, function, False, True, metadata, launch_metadata, enter_hook, exit_hook, None, None,
            ["annotations"], b"signature", args,
        )  # fmt: skip


def encoding(launcher: Callable, layouts: list, first: int) -> Callable:
    """What encodes descriptors in front of a C function to which the kernel's arguments are given from `first` on."""

    def inner(*args):
        found, each = [], iter(layouts)
        for name, arg in zip(NAMES, args[first:], strict=True):
            found.extend(make_tensordesc_arg(arg, next(each)) if name in BLOCKS else [arg])
        launcher(*args[:first], *found)

    return inner


def encoding_list(launcher: Callable, layouts: list) -> Callable:
    """The same where the kernel's arguments are one list, the last argument."""

    def inner(*args):
        found, each = [], iter(layouts)
        for name, arg in zip(NAMES, args[-1], strict=True):
            found.extend(make_tensordesc_arg(arg, next(each)) if name in BLOCKS else [arg])
        launcher(*args[:-1], found)

    return inner


def installed(cuda: Cuda, layouts: list, signature: dict[str, str] = SIGNATURE) -> Any:
    """The launcher of the Triton that is here."""
    metadata = SimpleNamespace(
        # of a kernel without descriptors there is none
        tensordesc_meta=layouts or None,
        num_ctas=1,
        global_scratch_size=0,
        global_scratch_align=1,
        profile_scratch_size=0,
        profile_scratch_align=1,
        launch_cooperative_grid=False,
        launch_pdl=True,
    )
    return nvidia.CudaLauncher(SimpleNamespace(signature=signature, constants={}), metadata)


FORMS: dict[str, Callable[[Cuda, list], Any]] = {
    "3.6": lambda cuda, layouts: Flat(encoding(cuda.launch, layouts, 13)),
    "3.7": lambda cuda, layouts: Listed(encoding_list(cuda.launch, layouts)),
    "installed": installed,
}


def compiled(launcher: Any) -> CompiledKernel:
    """A kernel that Triton has compiled and loaded."""
    kernel = object.__new__(CompiledKernel)
    vars(kernel).update(
        module=1, function=FUNCTION, packed_metadata=METADATA, name="kernel", src=None, metadata=None, _run=launcher
    )
    return kernel


def compiled_for(cuda: Cuda, launch: Any) -> CompiledKernel:
    """What Triton compiles for a launch of any kernel."""
    signature = {name: _kind(name, value) for name, value in launch.args.items()}
    described = [kind for kind in signature.values() if kind.startswith("tensordesc")]
    return compiled(installed(cuda, [LAYOUT] * len(described), signature))


def _kind(name: str, value: Any) -> str:
    if value is None or name.isupper():
        return "constexpr"
    if hasattr(value, "block_shape"):
        return f"tensordesc<fp32{value.block_shape},layout>"
    return "*fp32" if isinstance(value, torch.Tensor) else "i32" if isinstance(value, int) else "fp32"


def in_place_of_triton(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Triton's driver on no GPU, its functions in C replaced."""
    cuda = Cuda()
    utils = SimpleNamespace(
        launch=cuda.launch,
        build_signature_metadata=lambda types: bytes(len(types)),
        fill_tma_descriptor=cuda.encode,
        fill_tma_descriptor_tiled=cuda.encode,
    )
    active = SimpleNamespace(utils=utils, get_current_device=lambda: 0, get_current_stream=cuda.stream_of)
    monkeypatch.setattr(driver, "_active", active)
    # of 3.7: what its C function is told of each argument
    for name in ("ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE"):
        monkeypatch.setattr(nvidia, name, name, raising=False)
    monkeypatch.setattr(nvidia, "PyKernelArg", lambda nested_tuple, type: type, raising=False)
    # of 3.6: a C function for each signature
    monkeypatch.setattr(nvidia, "compile_module_from_src", lambda **_: SimpleNamespace(launch=cuda.launch))
    monkeypatch.setattr(nvidia, "library_dirs", list)
    return cuda
