"""The search space: axes with reasons, configs there and back, and what is legal."""

from __future__ import annotations

import pytest

from ssdgen import gpus
from ssdgen.plan import space
from ssdgen.plan.problem import Problem

PROBLEMS = [
    Problem(8, 2048, 80, 64, 128),
    Problem(1, 131072, 80, 64, 128),
    Problem(4, 4096, 32, 128, 256, 2),
    Problem(1, 7, 3, 8, 2, 3),
    Problem(2, 300, 6, 80, 96, 2, "float32"),
]
GPUS = [gpus.find(name) for name in ("h200", "a100", "rtx3090", "mi300x")]


@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_axes_have_values_and_reasons(schedule: str, problem: Problem, gpu: gpus.Gpu) -> None:
    found = space.axes(schedule, problem, gpu)
    assert len({axis.name for axis in found}) == len(found)
    for axis in found:
        assert axis.values and len(set(axis.values)) == len(axis.values)
        assert len(axis.why) > 20


def in_effect(chosen: dict) -> dict:
    """The values of all axes that a choice comes to: what consumers have fixed, and what goes with them alone."""
    found = dict(chosen)
    if not chosen.get("prepared", True):
        # without prepared step sizes their kernel is not launched, and has no numbers
        found = {name: value for name, value in found.items() if not name.startswith("dt_cumsum.")}
    for name, consumers in chosen.items():
        kernel, _, axis = name.partition(".")
        if axis != "consumers":
            continue
        if consumers:
            implied = {"heads": 1, "block_p": 64, "state_major": "p", "descriptors": True, "num_warps": 4}
            found |= {f"{kernel}.{axis}": value for axis, value in implied.items()}
        if consumers != 1:
            found[f"{kernel}.maxnreg"] = 0
        if not consumers and kernel == "single_pass":
            found |= {f"{kernel}.terms": 2, f"{kernel}.ahead": False}
    if "joined" in chosen and not chosen["single_pass.consumers"]:
        found["joined"] = False
    walks = [name for name in chosen if name.endswith(".consumers")]
    if "aside" in chosen and not all(chosen[name] for name in walks):
        found["aside"] = False
    if not chosen.get("prepared", True):
        found["aside"] = False
    return found


CHOICES = [
    # consumers of the single pass, consumers of the segments' states, which value of the other axes
    pytest.param(pick, single, states, id=f"{single}-{states}-{pick}")
    for pick in (0, 1, -1)
    for single in (0, 1, 2)
    for states in (0, 1, 2)
]


def choice(schedule: str, pick: int, single: int, states: int) -> dict:
    found = space.axes(schedule, PROBLEMS[0], GPUS[0])
    chosen = {axis.name: axis.values[min(pick, len(axis.values) - 1)] for axis in found}
    consumers = {"single_pass.consumers": single, "segment_state.consumers": states}
    return chosen | {name: value for name, value in consumers.items() if name in chosen}


@pytest.mark.parametrize(("pick", "single", "states"), CHOICES)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
def test_a_config_and_its_axes_are_the_same_thing(schedule: str, pick: int, single: int, states: int) -> None:
    chosen = choice(schedule, pick, single, states)
    config = space.config(schedule, chosen)
    assert config["schedule"] == schedule
    flat = space.flatten(config)
    assert flat == {"schedule": schedule, **in_effect(chosen)}
    # and back, from what is in effect as from the choice
    assert space.config(flat.pop("schedule"), flat) == config


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_config_survives_its_axes(problem: Problem) -> None:
    for config in (*space.starts(problem, GPUS[0]), *(space.minimal(name, problem) for name in space.SCHEDULES)):
        flat = space.flatten(config)
        assert space.config(flat.pop("schedule"), flat) == config


@pytest.mark.parametrize("consumers", [1, 2])
def test_what_has_no_effect_is_not_in_a_config(consumers: int) -> None:
    """Choices that come to the same code are one config, with the numbers of a walk that consumers ask for."""
    fixed = ("heads", "block_p", "state_major", "descriptors", "num_warps")
    chosen = choice("segments", 0, consumers, consumers) | {"segment_state.maxnreg": 128, "single_pass.maxnreg": 128}
    config = space.config("segments", chosen)
    for axis in space.axes("segments", PROBLEMS[0], GPUS[0]):
        dropped = axis.name.partition(".")[2] in (*fixed, *(("maxnreg",) if consumers == 2 else ()))
        for value in axis.values if dropped and axis.name.startswith(space.WALKS) else ():
            assert space.config("segments", {**chosen, axis.name: value}) == config
    for kernel in space.WALKS:
        assert {*config["kernels"][kernel]} == {"consumers", "num_stages"} | ({"maxnreg"} if consumers == 1 else set())
    # without consumers there are neither a cap on registers nor walks that join summaries
    plain = space.config("segments", {**choice("segments", -1, 0, 0), "joined": True})
    assert "joined" not in plain and not any({"consumers", "maxnreg"} & {*ks} for ks in plain["kernels"].values())


@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_minimal_config_is_legal_but_for_its_segment(schedule: str, problem: Problem, gpu: gpus.Gpu) -> None:
    reason = space.legal(space.minimal(schedule, problem), problem, gpu)
    assert reason is None or "one segment" in reason


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_starts_are_legal_and_in_the_space(problem: Problem, gpu: gpus.Gpu) -> None:
    for config in space.starts(problem, gpu):
        assert space.legal(config, problem, gpu) is None
        flat = space.flatten(config)
        for axis in space.axes(config["schedule"], problem, gpu):
            assert flat[axis.name] in axis.values


def test_starts_fill_a_gpu_that_one_row_leaves_idle() -> None:
    few = {config["schedule"] for config in space.starts(Problem(1, 16384, 80, 64, 128), GPUS[0])}
    many = {config["schedule"] for config in space.starts(Problem(8, 2048, 80, 64, 128), GPUS[0])}
    assert few == {"single_pass", "segments"} and many == {"single_pass"}


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"chunk": 48}, "power of two"),
        ({"single_pass.heads": 3}, "not of one group"),
        ({"single_pass.heads": 2}, "tensor descriptors"),
        ({"prepared": False, "single_pass.descriptors": True}, "step sizes inside"),
        ({"single_pass.state_major": "p", "single_pass.block_p": 32}, "64 rows"),
        ({"single_pass.block_p": 32, "single_pass.num_stages": 1}, "outside shared memory"),
        ({"chunk": 128, "single_pass.num_warps": 2}, "accumulators"),
        ({"chunk": 128, "single_pass.num_stages": 4, "single_pass.num_warps": 8}, "shared memory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_legal_says_why(axes: dict, reason: str) -> None:
    problem, gpu = PROBLEMS[0], GPUS[0]
    base = {"chunk": 64, "prepared": True, "single_pass.heads": 1, "single_pass.block_p": 64}
    base |= {"single_pass.num_warps": 4, "single_pass.num_stages": 2, "single_pass.descriptors": False}
    assert space.legal(space.config("single_pass", base), problem, gpu) is None
    assert reason in (space.legal(space.config("single_pass", {**base, **axes}), problem, gpu) or "")


@pytest.mark.parametrize(
    ("problem", "axes", "reason"),
    [
        (PROBLEMS[0], {}, None),
        (PROBLEMS[0], {"single_pass.num_stages": 1}, "two stages"),
        (PROBLEMS[0], {"single_pass.consumers": 2}, "one consumer"),
        (PROBLEMS[2], {"single_pass.num_stages": 2}, "one tile of dstate"),
    ],
    ids=str,
)
def test_what_is_made_ahead_takes_two_stages_and_registers(problem: Problem, axes: dict, reason: str | None) -> None:
    base = {"chunk": 64, "prepared": True, "single_pass.consumers": 1, "single_pass.num_stages": 3}
    plain, ahead = (space.config("single_pass", {**base, **axes, "single_pass.ahead": how}) for how in (False, True))
    assert "ahead" not in plain["kernels"]["single_pass"] and ahead["kernels"]["single_pass"]["ahead"] is True
    assert space.legal(plain, problem, GPUS[0]) is None
    found = space.legal(ahead, problem, GPUS[0])
    assert found is None if reason is None else reason in (found or "")


def test_descriptors_came_with_sm90() -> None:
    described = {"chunk": 64, "prepared": True, "single_pass.descriptors": True, "single_pass.num_stages": 2}
    config = space.config("single_pass", described)
    assert space.legal(config, PROBLEMS[0], gpus.find("h200")) is None
    assert "sm90" in (space.legal(config, PROBLEMS[0], gpus.find("a100")) or "")
    for axis in space.axes("single_pass", PROBLEMS[0], gpus.find("a100")):
        assert "descriptors" not in axis.name or axis.values == (False,)


def test_segments_are_whole_chunks_of_a_part_of_the_sequence() -> None:
    base = {"chunk": 64, "segment": 256, "state_dtype": "float32"}
    problem, gpu = PROBLEMS[0], GPUS[0]
    assert space.legal(space.config("segments", base), problem, gpu) is None
    assert "multiple" in (space.legal(space.config("segments", {**base, "segment": 96}), problem, gpu) or "")
    assert "one segment" in (space.legal(space.config("segments", {**base, "segment": 2048}), problem, gpu) or "")


def test_too_many_states_are_refused() -> None:
    config = space.minimal("single_pass", Problem(1, 64, 1, 16, 512))
    assert "512" in (space.legal(config, Problem(1, 64, 1, 16, 513), GPUS[0]) or "")


def test_an_unknown_schedule_is_named() -> None:
    for call in (
        lambda: space.axes("quadratic", PROBLEMS[0], GPUS[0]),
        lambda: space.config("quadratic", {}),
        lambda: space.minimal("quadratic", PROBLEMS[0]),
    ):
        with pytest.raises(ValueError, match="quadratic.*single_pass, segments, split"):
            call()


def test_the_fingerprint_follows_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = space.fingerprint()
    assert before == space.fingerprint()
    monkeypatch.setattr(space, "ACCUMULATORS", 1)
    assert space.fingerprint() != before
