"""The export for vLLM: names, keys and numbers as it looks them up, and a clear word where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ssdgen.commands import main
from ssdgen.pack import store, vllm
from ssdgen.pack.records import PREDICTED, Record
from ssdgen.pack.vllm import ExportError
from ssdgen.plan.problem import Problem
from tests.pack import made

STEP = {"schedule": "step", "kernels": {"state_step": {"block_p": 16, "num_warps": 2}}}


def step(batch: int, time_us: float, nheads: int = 80, dtype: str = "float32", **config: Any) -> Record:
    problem = Problem(batch, 1, nheads, 64, 128, 1, dtype)
    return replace(made.RECORD, problem=problem, time_us=time_us, config={**STEP, **config})


def test_one_file_per_kind_of_state_and_a_row_per_effective_batch() -> None:
    wide = {"kernels": {"state_step": {"block_p": 128}}}
    half = step(1, 3.0, dtype="bfloat16")
    found = vllm.files(made.IDENTITY, [step(64, 40.0), step(1, 5.0, **wide), half])
    name = "headdim=64,dstate=128,device_name=NVIDIA_H200,cache_dtype={}.json".format
    assert list(found) == [name("float16"), name("float32")]
    # numbers as vLLM's loader makes integers of, in order; a tile is never larger than headdim
    assert list(json.loads(found[name("float32")]).items()) == [
        ("80", {"BLOCK_SIZE_M": 64, "num_warps": 4}),
        ("5120", {"BLOCK_SIZE_M": 16, "num_warps": 2}),
    ]
    assert json.loads(found[name("float16")]) == {"80": {"BLOCK_SIZE_M": 16, "num_warps": 2}}


def test_of_one_effective_batch_the_fastest_counts() -> None:
    slow, fast = step(2, 9.0, nheads=40), step(1, 5.0, kernels={"state_step": {"block_p": 32}})
    for order in ([slow, fast], [fast, slow]):
        (text,) = vllm.files(made.IDENTITY, order).values()
        assert json.loads(text) == {"80": {"BLOCK_SIZE_M": 32, "num_warps": 4}}


def test_what_has_no_equivalent_is_an_error() -> None:
    short = replace(step(1, 5.0), problem=replace(made.PROBLEM, dtype="float16"))
    object.__setattr__(short.problem, "dtype", "int8")
    assert len(vllm.files(made.IDENTITY, [short, step(1, 5.0)])) == 1
    with pytest.raises(ExportError, match="no record of h200 has states in float32"):
        vllm.files(made.IDENTITY, [short])
    with pytest.raises(ExportError, match="launches single_pass"):
        vllm.files(made.IDENTITY, [replace(step(1, 5.0), config=made.CONFIG)])


def test_only_measured_records_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / made.IDENTITY.folder
    store.write_text(store.identity_path(folder), json.dumps(made.IDENTITY.to_json()))
    store.write_text(folder / "ssd_decode.json", "{}")
    predicted = replace(step(1, 5.0), provenance=PREDICTED)
    monkeypatch.setattr(store, "read", lambda folder, direction: (predicted,))
    with pytest.raises(ExportError, match="no measured record"):
        vllm.read(tmp_path, "sm90", "h200")
    monkeypatch.setattr(store, "read", lambda folder, direction: (predicted, step(2, 5.0)))
    assert [list(json.loads(text)) for text in vllm.read(tmp_path, "sm90", "h200").values()] == [["160"]]


def test_the_command_says_that_there_are_no_records(tmp_path: Path) -> None:
    args = ["export", "vllm", "--gpu", "h200", "--out", str(tmp_path / "out"), "--records", str(tmp_path)]
    result = CliRunner().invoke(main, args)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "no decode records of h200" in said and "ssdgen tune --pass decode" in said
    assert not (tmp_path / "out").exists()
