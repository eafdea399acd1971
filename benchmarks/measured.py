"""Candidates that were timed on GPUs, from all files of results, in one form.  JSON -> Row -> calibrate

What `candidates.py` writes is read as it is.  Older files are of experiments and have forms of their own; rows of
theirs whose kernels no longer exist are left out, each with its reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdgen import gpus
from ssdgen.gpus import Gpu
from ssdgen.pack import store
from ssdgen.pack.records import BACKWARD, FORWARD, Direction
from ssdgen.plan import backward_space
from ssdgen.plan.backward_legal import WHOLE
from ssdgen.plan.problem import Problem
from ssdgen.tune.results import Config, key_of
from ssdgen.tune.shapes import NAMED

RESULTS = Path(__file__).resolve().parent / "results"
TUNED = RESULTS.parent.parent / "tuned"

# of the experiments of 24 November: names of shapes there
_SHAPES = {
    "2.7b_b8_2k": "2.7b",
    "2.7b_b1_2k": "2.7b-1x2k",
    "2.7b_b1_16k": "2.7b-16k",
    "2.7b_b1_128k": "2.7b-128k",
    "130m_b8_2k": "130m",
    "nemotron-h_b4_4k": "nemotron-h",
    "zamba2_b4_4k": "zamba2",
    "falcon-h1_b4_4k": "falcon-h1",
}
# what the experiments with kernels specialised by warps are called here
_EXPERIMENTS = {"first": "first emitted", "order": "orders", "consumers": "turns", "two": "two programs"}
# of variants of the kernels specialised by warps: the order of products and the terms that are emitted today
_TODAY = ("scores2terms_", "")


@dataclass(frozen=True)
class Row:
    """One candidate that was right and was timed.

    run: rows of one run compare: they are of one experiment, with one kind of GPU.  us: of the call; kernels_us:
    of each launch, where they were timed one by one.  resources: registers, spilled bytes and shared bytes of each
    launch as it was then, or None: compile it; kernels: their names, where the file has them.
    """

    run: str
    gpu: Gpu
    direction: Direction
    problem: Problem
    config: Config
    us: float
    kernels_us: tuple[float, ...] | None = None
    resources: tuple[tuple[int, ...], ...] | None = None
    kernels: tuple[str, ...] | None = None


def read(folder: Path = RESULTS, tuned: Path = TUNED) -> tuple[list[Row], Counter[str]]:
    """All rows, each config of a run and shape once; and how many were left out, by reason."""
    left_out: Counter[str] = Counter()
    found: dict[tuple[str, str, Problem, str], Row] = {}
    for row in _all(folder, tuned, left_out):
        key = (row.run, row.direction, row.problem, key_of(row.config))
        if key in found:
            left_out["the same config once more in a run"] += 1
        found.setdefault(key, row)
    return list(found.values()), left_out


def _all(folder: Path, tuned: Path, left_out: Counter[str]) -> Iterator[Row]:
    for path in sorted(folder.glob("candidates_*.json")):
        yield from of_candidates(json.loads(path.read_text()), path.stem)
    yield from _first_forward(json.loads((folder / "variants_nvidia_h200.json").read_text()), left_out)
    yield from _consumers(json.loads((folder / "variants_nvidia_h100_80gb_hbm3.json").read_text()), left_out)
    yield from _backward(json.loads((folder / "variants_backward_nvidia_h100_80gb_hbm3.json").read_text()), left_out)
    yield from _records(tuned, left_out)


def of_candidates(data: dict[str, Any], run: str) -> Iterator[Row]:
    """Rows of a file of candidates.py."""
    gpu = _gpu(data["gpu"])
    for row in data["rows"]:
        resources = tuple(tuple(each) for each in row["resources"])
        kernels = tuple(row["kernels"]) if "kernels" in row else None
        problem = Problem(**row["problem"])
        yield Row(run, gpu, row["direction"], problem, row["config"], row["us"], None, resources, kernels)


def _first_forward(data: dict[str, Any], left_out: Counter[str]) -> Iterator[Row]:
    """Plain kernels on an H200, with what each launch took."""
    gpu = _gpu(data["gpu"])
    for row in data["rows"]:
        walks = [numbers for name, numbers in row["config"]["kernels"].items() if name in ("single_pass", "chunk_scan")]
        if any(numbers.get("row_tiles", 1) > 1 or numbers.get("n_tiles", 1) > 1 for numbers in walks):
            left_out["tiles of rows or of dstate <= 256, which are no shape of code any more"] += 1
        elif any(numbers.get("heads", 1) > 2 for numbers in walks):
            left_out["four heads of a program, for which the single pass has no kernel any more"] += 1
        elif "state_passing" in row["config"]["kernels"] and row["code"].startswith("first emission"):
            left_out["a state_passing that loads one summary at a time, as it was at first"] += 1
        else:
            yield Row(
                "h200",
                gpu,
                FORWARD,
                Problem(*row["shape"]),
                row["config"],
                row["gpu_us"],
                tuple(row["kernels_us"]),
                tuple(tuple(each) for each in row["registers_spilled_shared"]),
            )


def _consumers(data: dict[str, Any], left_out: Counter[str]) -> Iterator[Row]:
    """The forward pass specialised by warps, on H100s; its configs stand there in short."""
    gpu = _gpu(data["gpu"])
    for row in data["rows"]:
        prefix, brace, rest = row["config"].partition("{")
        if row["kind"] in ("peer", "prototype"):
            left_out[f"no kernel of ours: {row['kind']}"] += 1
            continue
        short = json.loads(brace + rest)
        # in turns, where a consumer has two tiles of dstate, since that was tried
        two_tiles = row["shape"] == "falcon-h1_b4_4k" and row["kind"].startswith(("consumers", "two"))
        if prefix not in (("scores_pp2terms_",) if two_tiles else _TODAY):
            left_out["another order of products than the kernels have today"] += 1
        elif any(numbers[0] > 2 for name, numbers in short["k"].items() if name in ("single_pass", "segment_state")):
            left_out["three consumers, for which there is no kernel any more"] += 1
        else:
            problem = Problem(*NAMED[_SHAPES[row["shape"]]])
            run = "h100, " + next(name for begin, name in _EXPERIMENTS.items() if row["kind"].startswith(begin))
            yield Row(run, gpu, FORWARD, problem, _in_full(short), row["gpu_us"])


def _in_full(short: dict[str, Any]) -> Config:
    kernels: dict[str, dict[str, Any]] = {}
    for name, numbers in short["k"].items():
        if name in ("single_pass", "segment_state"):
            consumers, stages, registers = (*numbers, 0)[:3]
            kernels[name] = {"consumers": consumers, "num_stages": stages}
            kernels[name] |= {"maxnreg": registers} if registers else {}
        elif name == "dt_cumsum":
            kernels[name] = {"block_h": numbers[0], "num_warps": numbers[1]}
        else:
            kernels[name] = {"block": numbers[0], "num_warps": numbers[1]}
    config: Config = {"schedule": "segments" if "segment" in short else "single_pass", "chunk": 64, "kernels": kernels}
    if "segment" in short:
        config |= {"segment": short["segment"], "joined": short["joined"], "state_dtype": "float32"}
    else:
        config["prepared"] = True
    return config


def _backward(data: dict[str, Any], left_out: Counter[str]) -> Iterator[Row]:
    """The backward pass on H100s."""
    gpu = _gpu(data["gpu"])
    for rows in data["steps"].values():
        for row in rows:
            if "config" not in row:
                left_out["one kernel of the backward pass, or a default that has changed"] += 1
            elif any("_sums" in name for name in row["kernels"]):
                left_out["sums of the decays in the walk back, which no kernel has today"] += 1
            else:
                config = dict(row["config"])
                config["kernels"] = {
                    name: numbers
                    for name, numbers in config["kernels"].items()
                    if name in backward_space.launched(config)
                }
                if any(not config["kernels"].get(name, {}).get("consumers") for name in _launched_whole(config)):
                    left_out["plain kernels of the backward pass, before they named the registers of a thread"] += 1
                    continue
                yield Row(
                    "h100 backward",
                    gpu,
                    BACKWARD,
                    Problem(*NAMED[_SHAPES[row["shape"]]]),
                    config,
                    row["us"],
                )


def _launched_whole(config: Config) -> list[str]:
    """The kernels of a backward pass whose programs have all of headdim and dstate, or a share of one."""
    return [name for name in backward_space.launched(config) if name in WHOLE]


def _records(tuned: Path, left_out: Counter[str]) -> Iterator[Row]:
    """The best that tuning found for a shape."""
    for folder in sorted(tuned.glob("*/gpu.json")):
        gpu = gpus.find(json.loads(folder.read_text())["gpu"])
        for direction in (FORWARD, BACKWARD):
            for record in store.read(folder.parent, direction):
                walk = record.config["kernels"].get("single_pass", {})
                if walk.get("terms") == "apart":
                    left_out["the diagonal of scores apart, of which no candidates were timed yet"] += 1
                elif record.provenance == "measured":
                    run = f"{gpu.name}, records"
                    yield Row(run, gpu, direction, record.problem, record.config, record.time_us)


def _gpu(device_name: str) -> Gpu:
    found = gpus.of_device(device_name)
    if found is None:
        raise ValueError(f"results of {device_name!r}, which ssdgen/gpus.py does not know; add it there")
    return found
