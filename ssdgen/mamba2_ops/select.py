"""Which config a call runs with: the ladder from a tuned record down to the built-in rule.  Problem, device -> config

Resolved once per (pass, problem bucket, device) and then a dict look-up.  The environment is read when a look-up is
resolved, and counts for all passes:

    SSDGEN_TUNED=FOLDER     look there first
    SSDGEN_NO_TUNE=1        no records: the built-in default
    SSDGEN_ASSERT_TUNED=1   an error where there is no record, at the first call of that pass
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

import torch

from . import conv_defaults, norm_defaults, part_problem, precompiled
from .decode_defaults import default_decode
from .defaults import default_config
from .errors import SsdWarning, UntunedError
from .ladder import Step, current_fingerprint, steps
from .match import Gpu, distance, is_same, is_stale, nearest
from .problem import Problem
from .records import BACKWARD, CONV, DECODE, FORWARD, NORM, PARTS, REPLAY, GpuRecords, Record

# octaves between two problems that count as nearly the same: of four times the length, or of the batch
NEAR = 2.0
# of a segment that is made shorter than that of a record
_LEAST_CHUNKS = 8

# what each step of the ladder is called and holds
Places = tuple[tuple[str, tuple[GpuRecords, ...]], ...]


@dataclass(frozen=True)
class Choice:
    """A config and where it comes from.  record: None for the built-in default.  exact: tuned on this very GPU."""

    config: dict[str, Any]
    step: str
    record: Record | None = None
    exact: bool = False


_configs: dict[tuple, dict[str, Any]] = {}
# None: no kernel takes that bucket
_backward_configs: dict[tuple, dict[str, Any] | None] = {}
# of decode steps, convolutions and norms
_step_configs: dict[tuple, dict[str, Any]] = {}
_warned: set[tuple] = set()
# how often configs that were found have been replaced or forgotten
_changes = 0


def version() -> int:
    """Another number after each `forget` and `replace`: what was found with a config before may not hold any more."""
    return _changes


def config_for(problem: Problem, device: torch.device) -> dict[str, Any]:
    """The config for a call on this device.  Do not change what is returned: the next call gets the same dict.

    Errors: RecordError (a record file that cannot be used), UntunedError.
    Warns (SsdWarning) once per GPU and step if the config was not tuned on this GPU, and once per folder if it was
    tuned for kernels that have changed since.
    """
    key = (problem.bucket(), device)
    config = _configs.get(key)
    if config is None:
        config = _configs[key] = choose(problem.bucketed(), gpu_of(device)).config
    return config


def replace(problem: Problem, device: torch.device, config: dict[str, Any]) -> None:
    """Use another config for a bucket from now on, for one that turned out not to run."""
    global _changes
    _changes += 1
    _configs[problem.bucket(), device] = config


def backward_config_for(problem: Problem, device: torch.device) -> dict[str, Any] | None:
    """The same for the backward pass; None where `replace_backward` said that no kernel takes the bucket."""
    key = (problem.bucket(), device)
    if key not in _backward_configs:
        _backward_configs[key] = choose(problem.bucketed(), gpu_of(device), BACKWARD).config
    return _backward_configs[key]


def replace_backward(problem: Problem, device: torch.device, config: dict[str, Any] | None) -> None:
    """Use another config for the backward pass of a bucket from now on, or None: no kernel takes it."""
    global _changes
    _changes += 1
    _backward_configs[problem.bucket(), device] = config


def decode_config_for(problem: Problem, device: torch.device, replay: bool = False) -> dict[str, Any]:
    """The same for a decode step.  problem: seqlen is 1, and dtype is the state's, by its bytes (`decode_paths`).

    replay: for one that keeps its inputs.
    """
    return part_config_for(REPLAY if replay else DECODE, problem, device)


def part_config_for(direction: str, problem: Problem, device: torch.device) -> dict[str, Any]:
    """The same for a part of the layer, one of PARTS.  problem: of `part_problem`."""
    key = (direction, problem, device)
    config = _step_configs.get(key)
    if config is None:
        bucket = (direction, problem.bucket(), device)
        if bucket not in _step_configs:
            _step_configs[bucket] = choose(problem.bucketed(), gpu_of(device), direction).config
        config = _step_configs[key] = _step_configs[bucket]
    return config


def forget() -> None:
    """Resolve everything again at the next call, records and environment included."""
    global _changes
    _changes += 1
    _configs.clear()
    _backward_configs.clear()
    _step_configs.clear()
    _warned.clear()
    _read.cache_clear()
    gpu_of.cache_clear()
    current_fingerprint.cache_clear()
    precompiled.forget()


def choose(problem: Problem, gpu: Gpu, direction: str = FORWARD) -> Choice:
    """Go down the ladder for one pass of one problem on one GPU.  Errors and warnings as in `config_for`."""
    asserted = os.environ.get("SSDGEN_ASSERT_TUNED") == "1"
    default = Choice(_default(problem, gpu, direction), "the built-in default")
    if os.environ.get("SSDGEN_NO_TUNE") == "1":
        if asserted:
            raise UntunedError("SSDGEN_NO_TUNE=1 and SSDGEN_ASSERT_TUNED=1 are both set; unset one of them")
        return default
    # an interpreter on the CPU: no records can exist and nobody waits for speed
    if gpu.arch == "cpu" and not asserted:
        return default

    choice = _look_up(problem, gpu, _read(steps()), direction) or default
    if choice.record is None and asserted:
        raise UntunedError(
            f"no tuned record for {_call(direction, problem)} on {gpu.name} ({gpu.arch}), and SSDGEN_ASSERT_TUNED=1 is "
            "set; run `ssdgen tune` on this GPU, set SSDGEN_TUNED to a folder with records, or unset "
            "SSDGEN_ASSERT_TUNED"
        )
    if not choice.exact:
        # a layer runs several parts, and one warning for them is enough
        _warn_once(
            (gpu.name, choice.step, "parts" if direction in PARTS else direction),
            f"no config was tuned on {gpu.name} for {_call(direction, problem)}: using {choice.step}; "
            f"`ssdgen tune{' --pass layer' if direction in PARTS else ''}` on this GPU makes it faster",
        )
    return choice


@cache
def gpu_of(device: torch.device) -> Gpu:
    """What the look-up has to know of a device.  Waits for nothing."""
    if device.type != "cuda":
        return Gpu(device.type, device.type, 1)
    properties = torch.cuda.get_device_properties(device)
    arch = f"sm{properties.major}{properties.minor}"
    if torch.version.hip:
        # "gfx942:sramecc+:xnack-": what follows the colon does not change which code runs
        arch = properties.gcnArchName.split(":")[0]
    return Gpu(properties.name, arch, properties.multi_processor_count)


@cache
def _read(ladder: tuple[Step, ...]) -> Places:
    """The records of every step; each file is read once per process."""
    return tuple((step.name, step.read()) for step in ladder)


def _default(problem: Problem, gpu: Gpu, direction: str) -> dict[str, Any]:
    """What a pass that nobody tuned runs with."""
    if direction == FORWARD:
        return default_config(problem, gpu.sms)
    if direction in (DECODE, REPLAY):
        return default_decode(problem, gpu.sms, gpu.arch, direction == REPLAY)
    if direction in CONV:
        return conv_defaults.default_conv(direction, problem, gpu.sms)
    if direction in NORM:
        return norm_defaults.default_norm(direction, problem, gpu.sms)
    # a package without kernels for the backward pass never asks
    from .backward_defaults import default_backward

    return default_backward(problem, gpu.sms, gpu.arch)


def _call(direction: str, problem: Problem) -> str:
    """How a message names a pass of a problem."""
    if direction in PARTS:
        return part_problem.describe(direction, problem)
    steps = {FORWARD: "", DECODE: "a decode step of ", REPLAY: "a decode step that keeps its inputs, of "}
    return steps.get(direction, f"the {direction} pass of ") + str(problem)


def _look_up(problem: Problem, gpu: Gpu, ladder: Places, direction: str) -> Choice | None:
    this = [(step, [g for g in gpus if is_same(gpu, g)]) for step, gpus in ladder]
    # another GPU of the same architecture: the one that has the nearest record
    related = [(step, [g for g in gpus if g.arch == gpu.arch]) for step, gpus in ladder]
    # a record that was measured counts more than one that lies earlier on the ladder, and so does one of a related GPU
    # more than a prediction for this, if it is of nearly the same problem
    order = (
        (this, True, True, inf),
        (related, False, True, NEAR),
        (this, True, False, inf),
        (related, False, True, inf),
        (related, False, False, inf),
    )
    for places, exact, measured, within in order:
        for step, gpus in places:
            found = nearest(problem, gpus, measured, direction)
            if found and distance(problem, found[1].problem) <= within:
                owner, record = found
                _check_fingerprint(owner, record)
                name = step if exact else f"a record of {owner.name} from {step}"
                return Choice(_fitted(record, problem, gpu), name, record, exact)
    return None


def _fitted(record: Record, problem: Problem, gpu: Gpu) -> dict[str, Any]:
    """The config of a record.  How many programs share out heads or tokens goes by the sizes of the call."""
    config = _segmented(record.config, record.problem, problem)
    if "parts" not in config:
        return part_problem.fitted(config, record.problem, problem, record.direction)
    from .backward_defaults import parts_for

    tuned, chunk = record.problem, config["chunk"]
    slices = int(config.get("slices", 1))
    parts = parts_for(problem, gpu.sms, chunk, slices)
    same_heads = problem.nheads * tuned.ngroups == tuned.nheads * problem.ngroups
    if same_heads and parts == parts_for(tuned, gpu.sms, chunk, slices):
        return config
    return {**config, "parts": parts}


def _segmented(config: dict[str, Any], tuned: Problem, problem: Problem) -> dict[str, Any]:
    """With segments so long that there are as many walks as the record has: these fill the GPU, longer rows or not."""
    segment = config.get("segment")
    sizes = (problem.rows, problem.row_length, problem.nheads)
    if not segment or sizes == (tuned.rows, tuned.row_length, tuned.nheads):
        return config
    walks = tuned.rows * tuned.nheads * -(-tuned.row_length // segment)
    segments = max(1, round(walks / max(1, problem.rows * problem.nheads)))
    # whole chunks, and not so few of them that a segment's state costs more than its tokens
    length = max(-(-problem.row_length // segments), min(segment, _LEAST_CHUNKS * config["chunk"]))
    return {**config, "segment": -(-length // config["chunk"]) * config["chunk"]}


def _check_fingerprint(records: GpuRecords, record: Record) -> None:
    if is_stale(record, current_fingerprint()):
        _warn_once(
            (records.folder,),
            f"the records in {records.folder} were made for other kernels than these (stale fingerprint); "
            "they are used all the same: `ssdgen tune` brings them up to date",
        )


def _warn_once(key: tuple, message: str) -> None:
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, SsdWarning, stacklevel=2)
