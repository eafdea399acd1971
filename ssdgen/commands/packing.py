"""Everything that a pack is made of, brought together.  GPUs, shapes -> records, compiled kernels -> a wheel

Apart from `pack`, which only reads its arguments: this needs torch and Triton.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..emit import package
from ..gpus import Gpu
from ..mamba2_ops import precompiled
from ..mamba2_ops.backward_defaults import default_backward
from ..mamba2_ops.defaults import default_config
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack import build as building
from ..pack import provenance, store, templates, wheel
from ..pack.build import Code, Contents, Host
from ..pack.records import BACKWARD, DIRECTIONS, FORWARD, Direction, Identity, Record
from ..pack.store import StoreError
from ..plan.problem import Problem
from ..tune import device, host, precompile
from ..tune.errors import CompileError, TuneError
from ..tune.pool import default_jobs
from ..tune.problems import of_layers
from ..tune.shapes import NAMED
from .tune import default_root


@dataclass(frozen=True)
class Made:
    """A wheel in memory, and one line about it."""

    file: str
    data: bytes
    summary: str


def build(
    chosen: list[Gpu],
    name: str,
    wanted: dict[str, Problem] | None,
    root: Path | None,
    cubins: bool,
    launchers: bool | None,
    jobs: int | None,
    heard: Callable[[int, int, str], None],
) -> Made:
    """A wheel for these GPUs.  wanted: problems, or None for those that have records.  heard: after each kernel.

    Errors: TuneError where there is nothing to pack or a kernel does not compile; RecordError.
    """
    templates.load()
    sources = package.package(runtime=templates.runtime_sources())
    records, code = [], {}
    if launchers is None:
        launchers = host.have_compiler()
    for gpu in chosen:
        identity, own = _records(gpu, root or default_root(), wanted)
        records.append((identity, own))
        if cubins:
            for each in _code(gpu, own, wanted, launchers, jobs or default_jobs(), heard):
                code[each.key] = each
    drivers: dict[str, Host] = {}
    if cubins and launchers:
        drivers[precompiled.triton_version()] = precompile.driver_module()
    state = provenance.of_checkout()
    contents = Contents(
        name=name,
        version=state.version,
        gpus=tuple(gpu.name for gpu in chosen),
        sources=sources,
        records=records,
        code=tuple(code.values()),
        drivers=drivers,
        versions={"ssdgen": __version__, **({"triton": version("triton")} if cubins else {})},
        commit=state.commit,
        dirty=state.dirty,
    )
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}" if drivers else "py3-none-any"
    data = wheel.write(name, state.version, tag, building.files(contents))
    count = sum(len(own) for _, own in records)
    summary = f"{count} records, {len(code)} compiled kernels, {len(data) / 2**20:.1f} MiB"
    return Made(wheel.file_name(name, state.version, tag), data, summary)


def write(made: Made, out: Path) -> Path:
    """Put the wheel in a folder, whole or not at all.  Errors: StoreError."""
    path, temporary = out / made.file, None
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=out, prefix=f".{made.file}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(made.data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; name another folder with --out") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    return path


def _records(gpu: Gpu, root: Path, wanted: dict[str, Problem] | None) -> tuple[Identity, tuple[Record, ...]]:
    """The records of a GPU for the problems that are wanted, and whose they are."""
    folder = root / f"{gpu.arch}_{gpu.name}"
    found = [record for direction in DIRECTIONS for record in store.read(folder, direction)]
    if not found and wanted is None:
        raise TuneError(
            f"{folder} has no records; make some with `ssdgen tune --gpu {gpu.name}`, name their folder with "
            "--records, or name shapes with --shapes to compile for them what runs without records"
        )
    if wanted is not None:
        asked = {direction: of_layers(direction, wanted, NAMED).values() for direction in DIRECTIONS}
        found = [record for record in found if record.problem in asked[record.direction]]
    return store.read_identity(folder) or device.predicted_identity(gpu), tuple(found)


def _code(
    gpu: Gpu,
    records: tuple[Record, ...],
    wanted: dict[str, Problem] | None,
    launchers: bool,
    jobs: int,
    heard: Callable[[int, int, str], None],
) -> list[Code]:
    """Compiled kernels of the records and, for wanted problems without one, of the built-in default."""
    configs: dict[tuple[Problem, Direction], dict[str, Any]] = {(r.problem, r.direction): r.config for r in records}
    for problem in (wanted or {}).values():
        for direction in (FORWARD, BACKWARD):
            configs.setdefault((problem, direction), _default(problem, direction, gpu))
    calls = [
        call
        for (problem, direction), config in configs.items()
        for call in precompile.calls(problem, config, direction, gpu)
    ]
    try:
        return precompile.compile_all(calls, gpu, jobs, launchers, heard)
    except CompileError as error:
        raise TuneError(f"cannot compile for {gpu.name}: {error}; leave the shape out, or add --no-cubins") from error


def _default(problem: Problem, direction: Direction, gpu: Gpu) -> dict[str, Any]:
    """What runs without a record."""
    call = CallProblem(**problem.to_json()).bucketed()
    return default_config(call, gpu.sms) if direction == FORWARD else default_backward(call, gpu.sms, gpu.arch)
