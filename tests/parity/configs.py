"""Configs to run a case with, taken from the search space, and the launchers called as the runtime calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from math import inf
from typing import Any

import torch

from ssdgen import gpus
from ssdgen.mamba2_ops.launchers import forward as launcher
from ssdgen.plan import space
from ssdgen.plan.problem import Problem
from ssdgen.tune.gate import poisoned_memory
from tests.parity.cases import Call, Case, compare, draw

Config = dict[str, Any]

# of the GPUs that are known, one that has all features
H200 = gpus.find("h200")
# they change the code that is compiled and not what the interpreter does
OF_THE_COMPILER = ("num_warps", "num_stages", "maxnreg")

DEFAULTS = {
    "D": None,
    "z": None,
    "dt_bias": None,
    "initial_states": None,
    "seq_idx": None,
    "cu_seqlens": None,
    "dt_softplus": False,
    "dt_limit": (0.0, inf),
    "state_dtype": torch.float32,
}


def problem(case: Case) -> Problem:
    return Problem(case.batch, case.seqlen, case.nheads, case.headdim, case.dstate, case.ngroups, case.dtype)


def changed(config: Config, name: str, value: Any) -> Config:
    """The config with one axis at another value."""
    flat = {**space.flatten(config), name: value}
    return space.config(flat.pop("schedule"), flat)


def fine(schedule: str, sizes: Problem) -> Config:
    """The minimal config with the shortest chunks and segments, so that a short sequence has many."""
    config = changed(space.minimal(schedule, sizes), "chunk", 16)
    return changed(config, "segment", 32) if schedule == "segments" else config


def key(config: Config) -> str:
    """A config without what only the compiler reads."""
    kernels = {
        kernel: {name: value for name, value in numbers.items() if name not in OF_THE_COMPILER}
        for kernel, numbers in config["kernels"].items()
    }
    return json.dumps({**config, "kernels": kernels}, sort_keys=True)


@cache
def around(schedule: str, sizes: Problem) -> dict[str, Config]:
    """A fine config of a schedule and every legal one that differs from it in a single axis, by what differs."""
    start = fine(schedule, sizes)
    found = {"fine": start}
    seen = {key(start)}
    for axis in space.axes(schedule, sizes, H200):
        for value in axis.values:
            config = changed(start, axis.name, value)
            if key(config) not in seen and space.legal(config, sizes, H200) is None:
                seen.add(key(config))
                found[f"{axis.name}={value}"] = config
    return found


# axes that choose between kernels; numbers stay what they are
OF_THE_CODE = ("prepared", "heads", "row_tiles", "state_major", "descriptors", "block_p")


@cache
def shapes(schedule: str, sizes: Problem) -> dict[str, Config]:
    """A legal config for every combination of the axes that choose between kernels, by what it chooses."""
    axes = [axis for axis in space.axes(schedule, sizes, H200) if axis.name.split(".")[-1] in OF_THE_CODE]
    # of the tiles of headdim, one that programs share out and one that covers all of it
    values = [axis.values[:: max(1, len(axis.values) - 1)] if "block" in axis.name else axis.values for axis in axes]
    found = {}
    for chosen in product(*values):
        config = changed(fine(schedule, sizes), "chunk", 32)
        for axis, value in zip(axes, chosen, strict=True):
            config = changed(config, axis.name, value)
        if space.legal(config, sizes, H200) is None:
            found["-".join(f"{axis.name}={value}" for axis, value in zip(axes, chosen, strict=True))] = config
    return found


@cache
def one_of_each(schedule: str, sizes: Problem) -> dict[str, Config]:
    """Of `shapes`, one config for each set of kernels that is launched, by the names of these."""
    case = Case(*(getattr(sizes, name) for name in ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups")))
    call = draw(replace(case, dtype=sizes.dtype)).on("meta")
    found: dict[str, Config] = {}
    for config in shapes(schedule, sizes).values():
        found.setdefault("-".join(launch.kernel.__name__ for launch in launches(config, call).launches), config)
    return found


def prepared(call: Call, final_states: bool = True) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the launchers, beside the config."""
    options = {**DEFAULTS, **call.options}
    if options["cu_seqlens"] is not None:
        options["seq_idx"] = None
    return tuple(call.operands.values()), {**options, "final_states": final_states}


def launches(config: Config, call: Call, final_states: bool = True, keeps: bool = False) -> Any:
    """The launches of a config, not yet made."""
    operands, options = prepared(call, final_states)
    return launcher.launches(config, *operands, **options, keeps=keeps)


def run(config: Config, call: Call, final_states: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A config run as the public call would run it, in memory that is full of NaN."""
    operands, options = prepared(call, final_states)
    with poisoned_memory():
        return launcher.forward(config, *operands, **options)


def verify(config: Config, case: Case, device: str = "cpu") -> None:
    """Run a config and compare all of its results with float64."""
    y, ends = run(config, draw(case).on(device))
    assert ends is not None
    final = ends[-1:] if case.has("cu_seqlens") else ends
    # states that pass between kernels may be rounded
    between = config.get("state_dtype", "float32")
    compare(case, y, final, ends if case.has("cu_seqlens") else None, between, tensor_cores=device == "cuda")
