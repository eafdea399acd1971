"""The kernels that records launch, compiled for a pack.  records, Gpu -> Code -> pack.build

Nothing runs, so the GPU need not be here.  Calls that differ in what a kernel is specialised for are planned first, and
each kernel is compiled once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from ..gpus import Gpu
from ..mamba2_ops import precompiled
from ..mamba2_ops.backward_defaults import parts_for
from ..mamba2_ops.errors import OptionError
from ..mamba2_ops.problem import Problem as CallProblem
from ..mamba2_ops.storage import planned_for
from ..pack.build import Code, Host
from ..pack.records import Direction
from ..plan.problem import Problem
from . import host
from .compile import source_of
from .errors import CompileError, RejectedError
from .passes import PASSES
from .pool import Pool
from .results import Config

# what a metadata file says of the machine that compiled, or that is only for Triton's own cache
_NOT_SHIPPED = ("extern_libs", "hash")


@dataclass(frozen=True)
class Call:
    """A call whose kernels a pack is to hold.  more: with the final states, or their adjoint."""

    problem: Problem
    config: Config
    direction: Direction
    more: bool


def calls(problem: Problem, config: Config, direction: Direction, gpu: Gpu) -> list[Call]:
    """The calls that share a record: with and without final states, and of one row, which is specialised for."""
    found = [Call(problem, config, direction, more) for more in (False, True)]
    if problem.batch > 1:
        one = replace(problem, batch=1)
        if "parts" in config:
            # as the look-up does with the record for sizes that are not its own
            sizes, slices = CallProblem(**one.to_json()), int(config.get("slices", 1))
            config = {**config, "parts": parts_for(sizes, gpu.sms, config["chunk"], slices)}
        found += [Call(one, config, direction, more) for more in (False, True)]
    return found


class Compiler:
    """Compiles for one GPU; lives in a process of its own."""

    def __init__(self, gpu: Gpu, launchers: bool) -> None:
        # source lines are paths of this machine, which would make the bytes differ from the next one's
        os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
        self._gpu, self._launchers = gpu, launchers

    def compile(self, call: Call, index: int) -> Code:
        """The index-th launch of a call.  Errors: CompileError."""
        launch, target = launches(call, self._gpu)[index], target_of(self._gpu)
        source, options = source_of(launch, target)
        key = precompiled.key_of(source, options, target)
        assert key is not None
        try:
            made = triton.compile(source, target=target, options=options.__dict__)
        # the compiler raises whatever it likes
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise CompileError(f"{launch.kernel.__name__} does not compile: {text}") from error
        built = host.launcher_module(source, made.metadata) if self._launchers else None
        return Code(
            key=key,
            kernel=launch.kernel.__name__,
            arch=self._gpu.arch,
            triton=precompiled.triton_version(),
            cubin=bytes(made.asm["cubin"]),
            metadata=_metadata(made),
            launcher=Host(built.key, built.name, built.data) if built else None,
        )


def compile_all(
    wanted: Iterable[Call], gpu: Gpu, jobs: int, launchers: bool, heard: Callable[[int, int, str], None]
) -> list[Code]:
    """Every kernel that the calls launch, by key.  heard(done, count, name): after each.

    Errors: CompileError naming the kernel; TuneError.
    """
    planned = {}
    for call in wanted:
        for index, (_, key) in enumerate(keys(call, gpu)):
            planned.setdefault(key, (call, index))
    found: list[Code] = []
    with Pool(min(jobs, max(1, len(planned))), Compiler, gpu, launchers) as pool:
        waiting = [pool.submit("compile", *each) for each in planned.values()]
        for future in waiting:
            try:
                found.append(future.result())
            except RejectedError as error:
                raise CompileError(f"for {gpu.name}: {error}") from error
            heard(len(found), len(waiting), found[-1].kernel)
    return sorted(found, key=lambda code: code.key)


def keys(call: Call, gpu: Gpu) -> list[tuple[str, str | None]]:
    """(kernel, its key in a pack) of each launch of a call.  Nothing is compiled.  Errors: CompileError."""
    target = target_of(gpu)
    return [
        (launch.kernel.__name__, precompiled.key_of(*source_of(launch, target), target))
        for launch in launches(call, gpu)
    ]


def driver_module() -> Host:
    """Triton's own module, for the Python that is here."""
    made = host.driver_module()
    return Host(made.key, made.name, made.data)


def launches(call: Call, gpu: Gpu) -> list[Any]:
    """The launches of a call, not yet made.  Errors: CompileError."""
    it = PASSES[call.direction]
    try:
        with planned_for(gpu.capability):
            return it.plan(call.config, it.draw(call.problem, "meta", 0, call.more), call.more).launches
    except OptionError as error:
        raise CompileError(str(error)) from error


def target_of(gpu: Gpu) -> GPUTarget:
    return GPUTarget(gpu.backend, gpu.capability, gpu.warp_size)


def _metadata(made: Any) -> bytes:
    """What Triton wrote beside the code, without what is this machine's own."""
    path = next(path for name, path in made.metadata_group.items() if name.endswith(".json"))
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    kept = {name: value for name, value in data.items() if name not in _NOT_SHIPPED and not name.isupper()}
    return (json.dumps(kept | {"extern_libs": []}, sort_keys=True, indent=1) + "\n").encode()
