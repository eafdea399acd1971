"""One launch compiled for a GPU that need not be there, exactly as the JIT would.  Launch, Gpu -> Compiled -> model"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ..gpus import Gpu
from ..mamba2_ops import precompiled
from . import resources
from .errors import CompileError
from .resources import Resources


class Launch(Protocol):
    """What `mamba2_ops.launchers` says of one kernel launch.  maxnreg: 0 for no cap."""

    @property
    def kernel(self) -> JITFunction: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def args(self) -> dict[str, Any]: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def maxnreg(self) -> int: ...
    @property
    def early(self) -> bool: ...


@dataclass(frozen=True)
class Compiled:
    """A kernel's code.  key: Triton's hash of it, under which a launch on the GPU finds it in Triton's cache."""

    name: str
    key: str
    resources: Resources


def compile_launch(launch: Launch, gpu: Gpu) -> Compiled:
    """Compile a launch for `gpu`.  Errors: CompileError, also where the code needs more than a CTA can have there.

    Tensors may be on "meta": their dtype is read, and their address counts as aligned, as torch's allocator makes it.
    """
    return fitting(made(launch, gpu), gpu)


def made(launch: Launch, gpu: Gpu) -> Compiled:
    """The same, whether it fits the GPU or not.  Errors: CompileError."""
    name = launch.kernel.__name__
    target = GPUTarget(gpu.backend, gpu.capability, gpu.warp_size)
    try:
        source, options = source_of(launch, target)
        kernel = triton.compile(source, target=target, options=options.__dict__)
    # the compiler raises whatever it likes, and any of it rules out this candidate and no more
    except Exception as error:
        text = " ".join(str(error).split())
        raise CompileError(f"{name} does not compile: {text[:200] or type(error).__name__}") from error
    # of a kernel that is specialised by warps, the warps beside its own too
    needs = resources.of_kernel(kernel.asm, kernel.metadata.shared, kernel.metadata.num_warps, gpu)
    return Compiled(name, kernel.hash, needs)


def fitting(code: Compiled, gpu: Gpu) -> Compiled:
    """The code.  Errors: CompileError if a CTA of it does not fit a multiprocessor."""
    name, needs = code.name, code.resources
    if needs.shared > gpu.smem_per_cta:
        raise CompileError(f"{name} needs {needs.shared} bytes of shared memory; {gpu.name} has {gpu.smem_per_cta}")
    if not resources.ctas_per_sm(needs, gpu):
        raise CompileError(f"{name} needs {needs.registers} registers in {needs.num_warps} warps: too many for one CTA")
    return code


def shape_of(launch: Launch) -> str:
    """What of a launch its code's needs depend on, as a short text: constants, dtypes and options.

    Not the sizes of a problem, and whether they are multiples of 16: that decides a few registers and no more.
    """
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    parts = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "maxnreg": launch.maxnreg}
    kinds: dict[str, Any] = {}
    for name, value in launch.args.items():
        base = getattr(value, "base", value)
        if name in constants or value is None:
            kinds[name] = str(value)
        elif isinstance(base, torch.Tensor):
            kinds[name] = str(base.dtype)
    text = json.dumps([parts, kinds], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def launch_options(launch: Launch, backend: str) -> dict[str, Any]:
    """Keyword arguments for Triton beside the kernel's own.  Only NVIDIA's compiler knows a cap on registers."""
    options: dict[str, Any] = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    options |= {"launch_pdl": True} if launch.early or launch.kernel.is_gluon() else {}
    return options | ({"maxnreg": launch.maxnreg} if launch.maxnreg and backend == "cuda" else {})


def source_of(launch: Launch, target: GPUTarget) -> tuple[ASTSource, Any]:
    """The kernel with the types and specialisations (divisible by 16, equal to 1) of these arguments, and its options.

    Inferred by the JIT's own binder, so that the code is the one that a launch would make, up to its key in the cache.
    """
    args = dict(launch.args)
    if target.backend == "hip" and "PRECISION" in args:
        args["PRECISION"] = "ieee"  # as the launchers choose it there
    return precompiled.source_of(launch.kernel, args, launch_options(launch, target.backend), target)
