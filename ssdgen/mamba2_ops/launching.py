"""One launch as data, and calls repeated at the cost of the launches alone.  launchers -> launching -> Triton

The first call with given sizes, strides, dtypes and alignment goes through Triton's own launch path, which compiles.
Later calls take the compiled kernels and fill in the new tensors: nothing is derived again.  Where `direct` knows the
launchers of all kernels, addresses are filled in instead, and Triton is not asked again either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import compiling, precompiled, spills
from .direct import DirectRecipe, Place, direct_launch
from .scratch import Buffer, Scratch

TRITON_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}

Block = tuple[tuple[int, ...], tuple[int, ...]]

# a tensor of a plan, and of which axes what is taken: axis, first, count
View = tuple[str, tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid, its arguments by name in the kernel's order, and the compiler's options.

    maxnreg: 0 for no cap on registers.  early: while the kernel before it in the stream still runs, for which it waits
    itself.  slots: argument -> tensor of the plan that it is, or that its descriptor is of.
    blocks: argument -> order of the dimensions and block of its descriptor.
    """

    kernel: Any
    grid: tuple[int, int, int]
    args: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int = 0
    early: bool = False
    slots: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Launch on the current device and stream, and return the compiled kernel (None in the interpreter)."""
        compiled = precompiled.find(self.kernel, self.args, self.options)
        if compiled is None:
            compiled = self.kernel[self.grid](*self.args.values(), **self.options)
            precompiled.keep(self.kernel, self.args, self.options, compiled)
        else:
            compiled[self.grid](*self.args.values())
        spills.keep_near(compiled)
        return compiled

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the arguments.  Only NVIDIA's knows a cap on registers.

        A kernel in Gluon, or one that is launched early, starts beside the one before it in the stream and waits for it
        where it reads its results.
        """
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.maxnreg and not torch.version.hip:
            options["maxnreg"] = self.maxnreg
        if self.early or _is_gluon(self.kernel):
            options["launch_pdl"] = True
        return options


@dataclass(frozen=True)
class Plan:
    """Launches in order.  tensors: all that they read and write, by name; buffers: the results among them.

    scratch: those that nobody reads afterwards.  views: of which of them others are parts.
    """

    launches: list[Launch]
    tensors: dict[str, Tensor | None]
    buffers: dict[str, Buffer]
    scratch: dict[str, Buffer] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)

    @property
    def y(self) -> Tensor:
        """[batch, seqlen, nheads, headdim]."""
        y = self.tensors["y"]
        assert y is not None
        return y

    @property
    def final_states(self) -> Tensor | None:
        """[rows, nheads, headdim, dstate], or None if they were not asked for."""
        return self.tensors.get("final_states")


class Sizes:
    """What a plan is made from: the tensors by name, the integers by name, and what was allocated so far."""

    def __init__(self, tensors: dict[str, Tensor | None], dims: dict[str, tuple[str, ...]], **names: Any) -> None:
        self.tensors, self.dims, self.names = tensors, dims, names
        self.buffers: dict[str, Buffer] = {}
        self.kept_inside: dict[str, Buffer] = {}
        self.views: dict[str, View] = {}
        self.launches: list[Launch] = []

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """A new tensor with results, its contents undefined; "a+b" is a and b in one, along its first dimension."""
        self.buffers[name] = shape, dtype
        place(self.tensors, name, self._empty(shape, dtype))

    def scratch(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """A new tensor that launches leave for each other; nobody reads it after the last one."""
        self.kept_inside[name] = shape, dtype
        self.tensors[name] = self._empty(shape, dtype)

    def view(self, name: str, *cuts: tuple[int, int, int]) -> str:
        """The name of a part of a tensor: of each (axis, first, count) so many entries; its own where that is all."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return name
        cuts = tuple((axis, first, count) for axis, first, count in cuts if count != tensor.shape[axis])
        if not cuts:
            return name
        made = name + "".join(f"[{axis}: {first} + {count}]" for axis, first, count in cuts)
        if made not in self.views:
            self.views[made] = name, cuts
            self.tensors[made] = narrowed(tensor, cuts)
        return made

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        x = self.tensors["x"]
        assert x is not None
        return torch.empty(shape, dtype=dtype, device=x.device)

    def launch(
        self,
        module: ModuleType,
        numbers: dict[str, Any],
        slots: dict[str, str] | None = None,
        within: Callable[[str], str] | None = None,
        grid: dict[str, int] | None = None,
        **names: Any,
    ) -> None:
        """Add a launch of the kernel that `module` holds.

        numbers: num_warps, num_stages, maxnreg and early are read.  slots: parameter -> tensor, where the names differ.
        within: tensor -> the part of it that the kernel gets.  grid: integers instead of those by which programs are
        counted.  names: integers and constants beside those of the plan, or instead of them.
        """
        kernel = getattr(module, module.__name__.rpartition(".")[2])
        numbers = {"num_warps": 4, "num_stages": 1, "maxnreg": 0, **numbers}
        names = {**self.names, "STAGES": numbers["num_stages"], **names}
        slots = slots or {}
        blocks = module.blocks(**names) if hasattr(module, "blocks") else {}
        args: dict[str, Any] = {}
        used: dict[str, str] = {}
        described: dict[str, Block] = {}
        for name in kernel.arg_names:
            parameter, _, kind = name.rpartition("_")
            if kind in ("ptr", "desc"):
                slot = slots.get(parameter, parameter)
                slot = within(slot) if within else slot
                tensor = args[name] = self.tensors.get(slot)
                if tensor is not None:
                    used[name] = slot
                if kind == "desc" and tensor is not None:
                    described[name] = blocks[parameter]
                    args[name] = descriptor(tensor, *blocks[parameter], gluon=_is_gluon(kernel))
            elif name.startswith("stride_"):
                args[name] = self._stride(name, slots)
            else:
                args[name] = names[name]
        options = (numbers["num_warps"], numbers["num_stages"], numbers["maxnreg"], bool(numbers.get("early")))
        programs = (*module.grid(**{**names, **(grid or {})}), 1, 1)[:3]
        self.launches.append(Launch(kernel, programs, args, *options, slots=used, blocks=described))

    def _stride(self, name: str, slots: dict[str, str]) -> int:
        """The stride that a parameter such as stride_x_seqlen stands for; 0 for a dimension that is not there."""
        parameter, dim = next(
            (tensor, dim)
            for tensor, dims in self.dims.items()
            for dim in dims
            if name == f"stride_{tensor}_{dim.lower()}"
        )
        tensor, axis = self.tensors.get(slots.get(parameter, parameter)), self.dims[parameter].index(dim)
        return tensor.stride(axis) if tensor is not None and axis < tensor.dim() else 0

    def plan(self) -> Plan:
        return Plan(self.launches, self.tensors, self.buffers, self.kept_inside, self.views)


def narrowed(tensor: Tensor, cuts: tuple[tuple[int, int, int], ...]) -> Tensor:
    """The part of a tensor that a view is."""
    for axis, first, count in cuts:
        tensor = tensor.narrow(axis, first, count)
    return tensor


def place(tensors: dict[str, Tensor | None], name: str, made: Tensor) -> None:
    """Put a tensor under its name; those that "a+b" holds are there alone too."""
    tensors[name] = made
    if "+" in name:
        tensors.update(zip(name.split("+"), made.unbind(), strict=True))


def _is_gluon(kernel: Any) -> bool:
    """Whether a kernel is written in Gluon; an interpreted one is not, and is not asked."""
    return hasattr(kernel, "is_gluon") and kernel.is_gluon()


def descriptor(tensor: Tensor, order: tuple[int, ...], block: tuple[int, ...], gluon: bool = False):
    """A tensor descriptor with the dimensions in another order.

    Positions outside the tensor read 0, and writes there are dropped.  block: in that order; gluon: for a kernel in
    Gluon, which also asks how the block lies in shared memory.
    """
    shape, strides = ([sizes[axis] for axis in order] for sizes in (tensor.shape, tensor.stride()))
    if not gluon:
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor(tensor, shape, strides, list(block))
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout.get_default_for(list(block), TRITON_DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, shape, strides, list(block), layout)


def redescribe(described: Any, tensor: Tensor | None) -> Any:
    """The same descriptor for a tensor of the same sizes, strides and alignment, which are not checked again.

    Triton's own constructor checks them, and costs more than everything else in front of a launch.
    """
    found = object.__new__(type(described))
    found.__dict__ = {**described.__dict__, "base": tensor}
    return found


def can_start_early(device: torch.device) -> bool:
    """Whether a kernel can be launched there while the one before it runs: from Hopper on.  "meta" is any GPU."""
    if device.type == "meta":
        return True
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (9, 0)


def can_describe(tensor: Tensor) -> bool:
    """Whether the copy engine takes this tensor: 16-byte aligned, every stride but the last a multiple of 16 bytes."""
    strides = tensor.stride()
    item = tensor.element_size()
    return (
        tensor.data_ptr() % 16 == 0
        and strides[-1] == 1
        and all(stride > 0 and stride * item % 16 == 0 for stride in strides[:-1])
    )


def key_of(tensors: dict[str, Tensor | None], *rest: Any) -> tuple:
    """What a compiled plan depends on: sizes, strides, dtypes and alignment of every tensor, and `rest`.

    Where a tensor lies within 16 bytes says how its parts are aligned too.
    """
    found: list[Any] = [*rest]
    for tensor in tensors.values():
        if tensor is None:
            found.append(None)
        else:
            found += (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16)
    return tuple(found)


class _Step:
    """A compiled launch whose tensors are filled in call by call."""

    def __init__(self, launch: Launch, compiled: Any) -> None:
        self.run: Callable = compiled[launch.grid]
        self.args = list(launch.args.values())
        position = {name: at for at, name in enumerate(launch.args)}
        self.tensors = [(position[name], slot) for name, slot in launch.slots.items() if name not in launch.blocks]
        # the tensors of the first call must not live as long as the recipe does
        self.descriptors = [
            (position[name], launch.slots[name], partial(redescribe, redescribe(launch.args[name], None)))
            for name in launch.blocks
        ]
        self.direct = direct_launch(compiled, launch.grid, self.args, self.tensors, self.descriptors)
        for at, *_ in (*self.tensors, *self.descriptors):
            self.args[at] = None

    def __call__(self, tensors: dict[str, Tensor | None]) -> None:
        args = self.args.copy()
        for at, slot in self.tensors:
            args[at] = tensors[slot]
        for at, slot, describe in self.descriptors:
            args[at] = describe(tensors[slot])
        self.run(*args)


class Recipe:
    """A plan that has run once, ready for other tensors with the same key."""

    def __init__(self, plan: Plan, compiled: list[Any]) -> None:
        self._steps = [_Step(launch, code) for launch, code in zip(plan.launches, compiled, strict=True)]
        self._buffers = [
            (name, shape, torch.empty(shape, device="meta").stride(), dtype)
            for name, (shape, dtype) in plan.buffers.items()
        ]
        self._scratch = Scratch(plan.scratch)
        self._views = plan.views
        direct = [step.direct for step in self._steps if step.direct is not None]
        whole = len(direct) == len(self._steps)
        self._direct = DirectRecipe(direct, self._scratch, _places(plan)) if whole else None

    def __call__(self, tensors: dict[str, Tensor | None], device: torch.device) -> None:
        """Allocate the results, adding them to `tensors`, and launch."""
        for name, shape, strides, dtype in self._buffers:
            # given the strides, torch takes a third less of the host's time
            made = tensors[name] = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            if "+" in name:
                place(tensors, name, made)
        memory = self._scratch.allocate(device) if self._scratch.size else None
        if self._direct is None or self._direct.is_watched():
            everything = {**tensors, **self._scratch.tensors(memory)}
            for name, (slot, cuts) in self._views.items():
                everything[name] = narrowed(everything[slot], cuts)
            for step in self._steps:
                step(everything)
        else:
            self._direct(tensors, memory, device.index)


def _places(plan: Plan) -> dict[str, Place]:
    """Where the views of a plan lie in their tensors."""
    found: dict[str, Place] = {}
    for name, (slot, cuts) in plan.views.items():
        part, tensor = plan.tensors[name], plan.tensors[slot]
        assert part is not None and tensor is not None
        found[name] = slot, part.data_ptr() - tensor.data_ptr(), partial(narrowed, cuts=cuts)
    return found


class Recipes:
    """The recipes of a process.  Forgotten all together when there are many: lengths may vary without end."""

    LARGEST = 4096

    def __init__(self) -> None:
        self._found: dict[tuple, tuple[Recipe, Any]] = {}

    def get(self, key: tuple) -> Recipe | None:
        found = self._found.get(key)
        return found[0] if found else None

    def run(self, key: tuple, plan: Plan, keep: Any) -> None:
        """Launch a plan and remember it.  keep: an object whose id is in the key, and so must live on."""
        compiling.side_by_side(plan.launches)
        compiled = [launch() for launch in plan.launches]
        if all(code is not None for code in compiled):
            if len(self._found) >= self.LARGEST:
                self._found.clear()
            self._found[key] = Recipe(plan, compiled), keep
