"""The records that ship in tuned/: they parse, belong to these kernels, and cover what the project claims."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path

import pytest

from ssdgen import gpus
from ssdgen.emit import fingerprint
from ssdgen.mamba2_ops import select
from ssdgen.mamba2_ops.errors import SsdWarning
from ssdgen.mamba2_ops.match import Gpu as CallGpu
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.pack import schema, templates
from ssdgen.pack.records import Direction
from ssdgen.plan import backward_space, space
from ssdgen.plan.problem import Problem
from ssdgen.tune.passes import PASSES
from ssdgen.tune.shapes import NAMED

TUNED = Path(__file__).resolve().parents[2] / "tuned"
FOLDERS = sorted(path.parent for path in TUNED.glob("*/gpu.json"))

# (batch, seqlen, nheads, headdim, dstate, ngroups), bf16
CLAIMED = {
    (1, 2048, 80, 64, 128, 1),
    (1, 16384, 80, 64, 128, 1),
    (1, 131072, 80, 64, 128, 1),
    (8, 2048, 24, 64, 128, 1),
    (4, 4096, 128, 64, 128, 8),
    (4, 4096, 64, 64, 64, 1),
    (4, 4096, 32, 128, 256, 2),
}


# the space that the configs of each pass are in
SPACES = {"forward": space, "backward": backward_space}


def records(folder: Path, direction: str = "forward") -> list[dict]:
    """Those of one pass; a GPU may have none of the backward pass."""
    path = folder / f"ssd_{direction}.json"
    return json.loads(path.read_text())["records"] if direction == "forward" or path.exists() else []


@cache
def of_today() -> dict[str, str]:
    """Fingerprints of the kernels; to emit all of them takes seconds."""
    templates.load()
    return fingerprint.of_package()


def test_the_h200_has_measured_records_of_every_claimed_shape() -> None:
    measured = [record for record in records(TUNED / "sm90_h200") if record["provenance"] == "measured"]
    sizes = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups")
    found = {tuple(record["problem"][size] for size in sizes) for record in measured}
    assert found >= CLAIMED
    assert all(record["error"] <= record["error_limit"] for record in measured)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_files_have_the_form_of_the_schema(folder: Path) -> None:
    identity, records_form = schema.SCHEMA["anyOf"]
    for path in folder.glob("*.json"):
        assert (
            schema.problem_with(json.loads(path.read_text()), schema.SCHEMA["anyOf"][path.name != "gpu.json"]) is None
        )


def test_the_schema_is_its_own_dump() -> None:
    assert (TUNED / "schema.json").read_text() == schema.document()


@pytest.mark.parametrize("direction", SPACES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_belong_to_these_kernels_and_this_space(folder: Path, direction: str) -> None:
    """After a change of the kernels: tune again on that GPU."""
    current = of_today()
    for record in records(folder, direction):
        stale = [name for name, mark in record["fingerprint"].items() if current.get(name) != mark]
        assert not stale, f"{record['problem']}: {stale} have changed since they were measured"
        assert record["space"] == SPACES[direction].fingerprint()


@pytest.mark.parametrize("direction", SPACES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_are_legal_or_what_runs_without_them(folder: Path, direction: Direction) -> None:
    gpu = gpus.find(json.loads((folder / "gpu.json").read_text())["gpu"])
    for record in records(folder, direction):
        problem, config = Problem(**record["problem"]), record["config"]
        reason = SPACES[direction].legal(config, problem, gpu)
        assert reason is None or config == PASSES[direction].space.default(problem, gpu), reason


# GPUs that nobody measured on yet; of the named shapes
PREDICTED = ("sm80_a100", "sm86_rtx3090", "sm89_l40s", "sm89_rtx4090", "sm100_b200", "sm120_rtx5090", "gfx942_mi300x")


@pytest.mark.parametrize("name", PREDICTED)
def test_other_gpus_have_predictions_for_the_named_shapes(name: str) -> None:
    """Of the backward pass for a headdim of 64: for larger states little fits where shared memory is small."""
    sizes = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups")
    for direction in SPACES:
        found = records(TUNED / name, direction)
        shapes = {tuple(record["problem"][size] for size in sizes) for record in found}
        of_backward = {shape for shape in NAMED.values() if shape[3] == 64}
        assert shapes >= (set(NAMED.values()) if direction == "forward" else of_backward)
        for record in found:
            assert record["provenance"] == "predicted" and record["error"] is None
            # the default is a candidate too, unless it does not fit that GPU
            assert record["default_us"] is None or record["time_us"] <= record["default_us"]


@pytest.mark.parametrize("name", PREDICTED)
def test_a_call_on_that_gpu_finds_its_prediction(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a driver names the GPU, without a warning; another GPU of the architecture is warned."""
    gpu = gpus.find(json.loads((TUNED / name / "gpu.json").read_text())["gpu"])
    monkeypatch.setenv("SSDGEN_TUNED", str(TUNED))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    select.forget()
    problem = CallProblem(8, 2048, 80, 64, 128, 1, "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = select.choose(problem, CallGpu(gpu.device_names[0], gpu.arch, gpu.sms))
    assert choice.exact and choice.record is not None and not choice.record.measured
    with pytest.warns(SsdWarning, match="no config was tuned on"):
        select.choose(problem, CallGpu("Another One", gpu.arch, gpu.sms))
    select.forget()
