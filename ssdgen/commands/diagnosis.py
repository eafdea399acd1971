"""What ssdgen finds on a machine, and what is wrong with it.  machine, packs, records -> Diagnosis -> doctor"""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__, gpus
from ..gpus import Gpu
from ..mamba2_ops import ladder, packs, precompiled, select
from ..mamba2_ops.errors import PackError, RecordError, SsdError, SsdWarning
from ..mamba2_ops.ladder import current_fingerprint
from ..mamba2_ops.match import Gpu as Device
from ..mamba2_ops.match import is_stale
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack.records import BACKWARD, DIRECTIONS, FORWARD, Direction
from ..plan.problem import Problem
from ..tune import device
from ..tune.problems import of_layer
from ..tune.shapes import SIZES

# of the folder that compiled kernels go to; a deep network leaves some hundred megabytes
LEAST_FREE = 2**30

# variables that change which code runs, and what they do
SWITCHES = {
    "SSDGEN_NO_TUNE": "records are not looked at",
    "SSDGEN_ASSERT_TUNED": "a call without a record is an error",
    "SSDGEN_NO_CUBINS": "compiled kernels of packs, and of earlier processes, are not used",
    "TRITON_INTERPRET": "kernels are interpreted on the CPU",
    "TRITON_ALWAYS_COMPILE": "every process compiles every kernel",
}


@dataclass(frozen=True)
class Finding:
    """error: what does not work; note: what could be better.  mend: what to type."""

    kind: Literal["error", "note"]
    what: str
    mend: str


@dataclass
class Diagnosis:
    """versions and GPU as text by name; folders and packs as rows; uses: what one call of each
    pass would run with."""

    system: dict[str, str]
    gpu: dict[str, Any]
    environment: dict[str, str]
    folders: list[dict[str, Any]]
    packs: list[dict[str, Any]] = field(default_factory=list)
    uses: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def diagnose(problem: Problem, named: Gpu | None) -> Diagnosis:
    """Look at everything once.  named: a GPU that need not be here, or None for the one that is."""
    triton = _version("triton")
    found = Diagnosis(
        system={
            "ssdgen": __version__,
            "Python": platform.python_version(),
            "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
            "Triton": triton or "not installed",
            "C compiler": next((path for name in ("gcc", "clang") if (path := shutil.which(name))), "none"),
        },
        gpu=_gpu(named),
        environment={name: os.environ[name] for name in sorted(os.environ) if name.startswith(("SSDGEN_", "TRITON_"))},
        folders=[_folder("records of your own", ladder.user_cache()), _folder("compiled kernels", _triton_cache())],
    )
    found.findings += [*_of_system(found, triton, named), *_of_folders(found), *_of_environment()]
    try:
        found.packs = [describe(pack.name, pack.manifest) for pack in packs.installed()]
        found.findings += _of_packs(found.packs)
    except PackError as error:
        found.findings.append(Finding("error", str(error), "ssdgen pack list"))
        return found
    target = _target(named)
    if target is not None:
        _uses(found, problem, *target)
    return found


def describe(name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of a pack, and of what use its compiled kernels are here."""
    code = manifest.get("code", {})
    versions = sorted({entry["triton"] for entry in code.values()})
    here = precompiled.installed_triton()
    if not code:
        use = "no compiled kernels"
    elif here in versions and here in precompiled.KNOWN_TRITON:
        use = f"{len(code)} kernels compiled with the Triton that is here ({here})"
    else:
        use = f"its {len(code)} kernels are for Triton {', '.join(versions)} and here is {here}: they are compiled anew"
    return {
        "name": name,
        "version": manifest["version"],
        "gpus": manifest["gpus"],
        "records": len(manifest["validation"]),
        "kernels": len(code),
        "triton": versions,
        "commit": manifest["provenance"]["commit"],
        "dirty": manifest["provenance"]["dirty"],
        "of_use": not code or here in versions,
        "use": use,
    }


def _gpu(named: Gpu | None) -> dict[str, Any]:
    if named is not None:
        return {"name": named.device_names[0], "known as": named.name, "arch": named.arch, "here": False}
    if (name := device.name_here()) is None:
        return {"name": "none", "here": False}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = gpus.of_device(name)
    identity = device.identity(known or device.gpu_here())
    return {
        "name": name,
        "known as": known.name if known else "not in ssdgen's list; its limits come from the driver",
        "arch": select.gpu_of(torch.device("cuda", torch.cuda.current_device())).arch,
        "driver": identity.driver or "unknown",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "here": True,
    }


def _target(named: Gpu | None) -> tuple[Device, Gpu] | None:
    """The GPU as the look-up sees it, and as the compiler does."""
    if named is not None:
        return Device(named.device_names[0], named.arch, named.sms), named
    if device.name_here() is None:
        return None
    return select.gpu_of(torch.device("cuda", torch.cuda.current_device())), device.gpu_here()


def _uses(found: Diagnosis, problem: Problem, gpu: Device, target: Gpu) -> None:
    """Which config a call of each pass would run with, and why; what is wrong with these goes to the findings."""
    lacking: dict[str, list[str]] = {}
    for direction in DIRECTIONS:
        use = _use(found, of_layer(direction, problem), direction, gpu, target)
        if use is None or not (lacks := _lacks(use)):
            continue
        if direction in (FORWARD, BACKWARD):
            what = lacks.format(f"the {direction} pass")
            found.findings.append(Finding("note", what, _retune(found, problem, direction, target)))
        else:
            lacking.setdefault(lacks, []).append(direction)
    # one line for all parts with the same flaw
    for lacks, directions in lacking.items():
        what = lacks.format(
            " and ".join((", ".join(directions[:-1]), directions[-1])) if directions[1:] else directions[0]
        )
        scope = directions[0] if len(directions) == 1 else "all"
        found.findings.append(Finding("note", what, _retune(found, problem, scope, target)))


def _use(found: Diagnosis, problem: Problem, direction: Direction, gpu: Device, target: Gpu) -> dict[str, Any] | None:
    """Which config a call of one pass would run with; None, and a finding, where the look-up fails."""
    call = CallProblem(**problem.to_json()).bucketed()
    with warnings.catch_warnings():
        # what they say is said here, with the reason
        warnings.simplefilter("ignore", SsdWarning)
        try:
            choice = select.choose(call, gpu, direction)
        except SsdError as error:
            mend = "move the file that is named away"
            if not isinstance(error, RecordError):
                mend = _retune(found, problem, direction, target)
            finding = Finding("error", str(error), mend)
            found.findings += [finding] if finding not in found.findings else []
            return None
    use: dict[str, Any] = {"pass": direction, "from": choice.step, "schedule": choice.config["schedule"]}
    if (record := choice.record) is not None:
        use |= {
            "record": "measured" if record.measured else "predicted",
            "record_shape": ",".join(str(getattr(record.problem, size)) for size in SIZES),
            "time_us": record.time_us,
            "this_gpu": choice.exact,
            "stale": is_stale(record, current_fingerprint()),
        }
    if found.packs and _version("triton") and target.backend == "cuda":
        use |= _compiled(problem, choice.config, direction, target)
    found.uses.append(use)
    return use


def _lacks(use: dict[str, Any]) -> str | None:
    """What could be better about a config; braces stand for the name of its pass."""
    if "record" not in use:
        return "nobody tuned {} for this shape and GPU"
    if use["stale"]:
        return "the record of {} is of other kernels"
    if not use["this_gpu"]:
        return "the record of {} was made on another GPU: " + use["from"]
    return None if use["record"] == "measured" else "the record of {} is only predicted"


def _retune(found: Diagnosis, problem: Problem, scope: str, target: Gpu) -> str:
    """The command that tunes a pass, or several, for the layer that was asked for."""
    shape = ",".join(str(getattr(problem, size)) for size in SIZES)
    command = f"ssdgen tune --shapes {shape} --dtype {problem.dtype} --pass {scope}"
    return command if found.gpu["here"] else f"{command} --gpu {target.name}"


def _compiled(problem: Problem, config: dict[str, Any], direction: Direction, target: Gpu) -> dict[str, Any]:
    """How many kernels of the call a pack has compiled, and which it has not."""
    from ..tune import precompile
    from ..tune.errors import CompileError

    compiled = {key for pack in packs.installed() for key in pack.manifest.get("code", {})}
    try:
        planned = precompile.keys(precompile.Call(problem, config, direction, False), target)
    except CompileError as error:
        return {"kernels": {}, "missing": str(error)}
    return {"kernels": {name: "in a pack" if key in compiled else "compiled at first use" for name, key in planned}}


def _of_system(found: Diagnosis, triton: str | None, named: Gpu | None) -> list[Finding]:
    wrong = []
    if named is None and not found.gpu["here"]:
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            wrong.append(Finding("error", "a GPU is here, and this torch was built without CUDA", "pip install torch"))
        else:
            mend = "nvidia-smi; or ask for one that is not here: ssdgen doctor --gpu h200"
            wrong.append(Finding("note", "torch sees no GPU: calls run on the CPU, in PyTorch", mend))
    if triton is None:
        wrong.append(Finding("error", "Triton is not installed: the slow PyTorch path runs", "pip install triton"))
    elif found.system["C compiler"] == "none" and found.gpu["here"]:
        what = "there is no C compiler: Triton builds its driver with one, unless a pack brings it"
        wrong.append(Finding("note", what, "apt-get install gcc, or ssdgen pack install FILE.whl"))
    return wrong


def _of_folders(found: Diagnosis) -> list[Finding]:
    wrong = []
    for folder in found.folders:
        variable = "XDG_CACHE_HOME" if folder["for"] == "records of your own" else "TRITON_CACHE_DIR"
        if not folder["writable"]:
            what = f"{folder['path']} ({folder['for']}) cannot be written"
            wrong.append(Finding("error", what, f"chmod u+w {folder['path']}, or set {variable}"))
        elif folder["free"] < LEAST_FREE:
            what = f"{folder['path']} ({folder['for']}) has {folder['free'] / 2**20:.0f} MiB left"
            wrong.append(Finding("error", what, f"free some space, or set {variable}"))
    return wrong


def _of_environment() -> list[Finding]:
    return [
        Finding("note", f"{name}={os.environ[name]}: {what}", f"unset {name}")
        for name, what in SWITCHES.items()
        if os.environ.get(name, "0") not in ("0", "")
    ]


def _of_packs(rows: list[dict[str, Any]]) -> list[Finding]:
    return [
        Finding("note", f"the pack {row['name']}: {row['use']}", f"ssdgen pack build --gpu {','.join(row['gpus'])}")
        for row in rows
        if not row["of_use"]
    ]


def _folder(purpose: str, path: Path) -> dict[str, Any]:
    """A folder that need not exist yet: then what counts is the nearest that does."""
    nearest = next(place for place in (path, *path.parents) if place.exists())
    return {
        "for": purpose,
        "path": str(path),
        "exists": path.is_dir(),
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        "free": shutil.disk_usage(nearest).free,
    }


def _triton_cache() -> Path:
    """As Triton finds it, which need not be installed."""
    if named := os.environ.get("TRITON_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("TRITON_HOME") or Path.home(), ".triton", "cache")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
