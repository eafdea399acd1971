"""The search space of the backward pass: axes with reasons, configs there and back, what is legal, where to begin."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ssdgen import gpus
from ssdgen.plan import backward_axes
from ssdgen.plan import backward_space as space
from ssdgen.plan import space as forward_space
from ssdgen.plan.problem import Problem

MODEL = Problem(8, 2048, 80, 64, 128)
ONE_ROW = Problem(1, 2048, 80, 64, 128)
PROBLEMS = [
    MODEL,
    ONE_ROW,
    Problem(4, 4096, 32, 128, 256, 2),
    Problem(1, 7, 3, 8, 2, 3),
    Problem(2, 300, 6, 80, 96, 2, "float32"),
    Problem(2, 4096, 16, 64, 128, 1, "float16"),
]
GPUS = [gpus.find(name) for name in ("h100", "a100", "rtx3090", "mi300x")]
H100, A100 = GPUS[:2]
BY_CONSUMERS = {
    "chunk": 64,
    "state_dtype": "bfloat16",
    "parts": 1,
    "states.consumers": 1,
    "states.num_stages": 2,
    "states.maxnreg": 128,
    "adjoints.consumers": 2,
    "adjoints.num_stages": 3,
    "chunk_gradients.consumers": 2,
    "chunk_gradients.num_stages": 3,
}


@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_axes_have_values_and_reasons(schedule: str, problem: Problem, gpu: gpus.Gpu) -> None:
    found = space.axes(schedule, problem, gpu)
    assert len({axis.name for axis in found}) == len(found)
    for axis in found:
        assert axis.values and len(set(axis.values)) == len(axis.values)
        assert len(axis.why) > 10


def in_space(config: dict, problem: Problem, gpu: gpus.Gpu) -> bool:
    flat = space.flatten(config)
    return all(flat.get(axis.name) in axis.values for axis in space.axes(config["schedule"], problem, gpu))


@pytest.mark.parametrize("pick", [0, 1, 2, -1])
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS[:2], ids=lambda gpu: gpu.name)
def test_a_config_survives_its_axes(schedule: str, pick: int, problem: Problem, gpu: gpus.Gpu) -> None:
    axes = space.axes(schedule, problem, gpu)
    config = space.config(schedule, {axis.name: axis.values[min(pick, len(axis.values) - 1)] for axis in axes})
    flat = space.flatten(config)
    assert space.config(flat.pop("schedule"), flat) == config
    assert in_space(config, problem, gpu)


def test_a_config_has_the_kernels_that_are_launched() -> None:
    def kernels(schedule: str, **changes: Any) -> set[str]:
        return set(space.config(schedule, {"chunk": 64, "segment": 0, **changes})["kernels"])

    steps, passing = {"dt_cumsum", "dt_gradients"}, {"both_passing"}
    assert kernels("walk") == steps | {"chunk_states", "reverse_walk", "group_gradients"}
    assert kernels("chunks") == steps | {"chunk_states", "chunk_adjoints", "chunk_gradients"}
    assert kernels("chunks", segment=128) == kernels("chunks") | passing | {"segment_state", "segment_adjoint"}
    # where a segment is a chunk, what enters and leaves chunks is there already
    assert kernels("chunks", segment=64) == steps | passing | {"segment_state", "segment_adjoint", "chunk_gradients"}
    assert "segment" not in space.config("walk", {"chunk": 64, "segment": 0})


def test_only_adjoints_that_are_specialised_start_beside_the_states() -> None:
    for schedule, axis in (("chunks", "adjoints.consumers"), ("walk", "reverse_walk.consumers")):
        wanted: dict[str, Any] = {"chunk": 64, "segment": 0, "beside": True}
        assert space.config(schedule, {**wanted, axis: 2})["beside"] is True
        assert "beside" not in space.config(schedule, {**wanted, axis: 0})
        assert "beside" not in space.config(schedule, {**wanted, axis: 2, "beside": False})


def test_kernels_of_one_kind_share_their_numbers() -> None:
    kernels = space.config("chunks", {**BY_CONSUMERS, "segment": 128})["kernels"]
    assert kernels["segment_state"] == kernels["chunk_states"] == {"consumers": 1, "num_stages": 2, "maxnreg": 128}
    # a cap on registers is for programs of one consumer
    assert kernels["segment_adjoint"] == kernels["chunk_adjoints"] == {"consumers": 2, "num_stages": 3}
    apart = {"schedule": "chunks", "chunk": 64, "segment": 128, "kernels": {**kernels, "segment_state": {}}}
    assert not any(name.startswith("states.") for name in space.flatten(apart))


@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_minimal_config_is_legal(schedule: str, problem: Problem, gpu: gpus.Gpu) -> None:
    config = space.minimal(schedule, problem)
    # a headdim * dstate of 32768 fills the registers of four warps: it runs, and spills
    assert problem.headdim * problem.dstate == 32768 or space.legal(config, problem, gpu) is None
    assert set(config["kernels"]) == set(space.launched(config))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_starts_are_legal_different_and_in_the_space(problem: Problem, gpu: gpus.Gpu) -> None:
    found = space.starts(problem, gpu)
    assert found and all(found.count(config) == 1 for config in found)
    for config in found:
        assert space.legal(config, problem, gpu) is None and in_space(config, problem, gpu)


def test_starts_on_hopper_are_specialised_by_warps_and_fill_it() -> None:
    for problem in (MODEL, ONE_ROW):
        found = space.starts(problem, H100)
        assert all(config["schedule"] == "chunks" for config in found)
        assert {config["kernels"]["chunk_gradients"]["consumers"] for config in found} == {2, 3}
    # one row of 32 chunks: with four programs for its heads all run at once; and segments
    assert {config["parts"] for config in found} >= {4} and any("segment" in config for config in found)
    assert not any("segment" in config for config in space.starts(MODEL, H100))
    assert {config["schedule"] for config in space.starts(MODEL, A100)} == {"walk"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chunk": 48}, "power of two"),
        ({"chunk": 32}, "chunks of 64"),
        ({"segment": 96}, "multiple of chunk 64"),
        ({"segment": 2048}, "covers the sequence"),
        ({"parts": 3}, "3 parts do not share out the 80 heads"),
        ({"state_dtype": "float32"}, "states in the operands' bfloat16"),
        ({"states.maxnreg": 80}, "80 registers, and a product takes 94"),
        ({"states.num_stages": 6}, "shared memory for each of 2 programs"),
        ({"chunk_gradients.num_stages": 6}, "chunk_gradients: .* shared memory"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_legal_says_why(changes: dict[str, Any], reason: str) -> None:
    assert space.legal(space.config("chunks", BY_CONSUMERS), MODEL, H100) is None
    found = space.legal(space.config("chunks", {**BY_CONSUMERS, **changes}), MODEL, H100)
    assert found is not None and re.search(reason, found)


@pytest.mark.parametrize(
    ("problem", "gpu"),
    [(MODEL, A100), (Problem(8, 2048, 80, 128, 128), H100), (Problem(8, 2048, 80, 64, 256), H100),
     (Problem(8, 2048, 80, 64, 128, 1, "float16"), H100)],
    ids=str,
)  # fmt: skip
def test_where_gradients_have_no_consumers(problem: Problem, gpu: gpus.Gpu) -> None:
    reason = space.legal(space.config("chunks", {**BY_CONSUMERS, "states.maxnreg": 0}), problem, gpu)
    assert reason is not None and "consumers" in reason
    assert not any(axis.name == "chunk_gradients.consumers" for axis in space.axes("chunks", problem, gpu))


def test_registers_and_stages_of_plain_kernels() -> None:
    wide = Problem(4, 4096, 32, 128, 256, 2)

    def reason(problem: Problem, **changes: Any) -> str:
        kernels = ("reverse_walk", "group_gradients")
        numbers = {f"{kernel}.{axis}": value for kernel in kernels for axis, value in changes.items()}
        config = space.config("walk", {"chunk": 32, "state_dtype": "bfloat16", **numbers})
        return space.legal(config, problem, A100) or ""

    assert not reason(wide, num_warps=8) and "accumulators" in reason(wide, num_warps=4)
    assert "shared memory" in reason(wide, num_warps=8, num_stages=4)


def test_states_of_fp16_are_kept_in_bf16_and_those_of_fp32_in_fp32() -> None:
    def states(problem: Problem) -> tuple:
        return next(axis.values for axis in space.axes("walk", problem, A100) if axis.name == "state_dtype")

    assert states(PROBLEMS[4]) == ("float32",) and states(PROBLEMS[5]) == ("bfloat16", "float32")


def test_an_unknown_schedule_is_named() -> None:
    for call in (
        lambda: space.axes("single_pass", MODEL, H100),
        lambda: space.config("single_pass", {}),
        lambda: space.minimal("single_pass", MODEL),
    ):
        with pytest.raises(ValueError, match="single_pass.*walk, chunks"):
            call()


def test_the_fingerprint_is_its_own_and_follows_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    before, of_forward = space.fingerprint(), forward_space.fingerprint()
    assert before == space.fingerprint() != of_forward
    monkeypatch.setattr(backward_axes, "REGISTERS", (0, 128))
    assert space.fingerprint() != before and forward_space.fingerprint() == of_forward
