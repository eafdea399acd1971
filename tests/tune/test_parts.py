"""The passes of the layer's other parts: problems, every legal config's launches, the reference, wrong results."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from ssdgen import gpus
from ssdgen.mamba2_ops.part_problem import describe
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.pack.records import CONV, DECODE, DIRECTIONS, NORM, REPLAY, Direction
from ssdgen.plan.problem import Problem
from ssdgen.tune import parts, session
from ssdgen.tune.compile import Launch
from ssdgen.tune.errors import WrongResultError
from ssdgen.tune.passes import PASSES
from ssdgen.tune.problems import BATCHES, of_layer, of_layers
from ssdgen.tune.results import Config
from ssdgen.tune.shapes import NAMED

LAYER = Problem(*NAMED["nemotron-h"])
SMALL = Problem(2, 37, 6, 16, 12, 2, "float32")
# few programs: they are interpreted
TINY = Problem(1, 37, 2, 5, 2, 1, "float32")
PARTS: tuple[Direction, ...] = (*CONV, *NORM)
H100 = gpus.find("h100")


def legal(direction: Direction, problem: Problem, count: int) -> list[Config]:
    """Some legal configs, by chance, the same each time."""
    space = PASSES[direction].space
    (schedule,) = space.SCHEDULES
    axes = space.axes(schedule, problem, H100)
    every = [
        space.config(schedule, dict(zip((axis.name for axis in axes), values, strict=True)))
        for values in product(*(axis.values for axis in axes))
    ]
    found = [config for config in every if space.legal(config, problem, H100) is None]
    return random.Random(0).sample(found, min(count, len(found)))


def test_what_a_layer_poses() -> None:
    assert of_layer("forward", LAYER) == of_layer("backward", LAYER) == LAYER
    # 128 heads of 64, and B and C of 8 groups of 128
    assert of_layer("conv_backward", LAYER) == Problem(4, 4096, 10240, 1, 4)
    assert of_layer("conv_update", LAYER) == Problem(4, 1, 10240, 1, 4)
    assert of_layer("norm_forward", LAYER) == Problem(1, 16384, 8, 1024, 1)
    assert {of_layer(d, SMALL).dtype for d in DIRECTIONS} == {"float32"}
    # records go by the bytes of a number
    half = Problem(*NAMED["130m"], dtype="float16")
    assert {of_layer(d, half).dtype for d in PARTS} == {"bfloat16"}


def test_the_searches_of_all_passes() -> None:
    shapes = {"nemotron-h": LAYER, "own": SMALL}
    tasks = session.tasks_of(shapes, DIRECTIONS)
    assert len({task.name for task in tasks}) == len(tasks)
    count = {d: sum(task.direction == d for task in tasks) for d in DIRECTIONS}
    own = {DECODE: 3, REPLAY: 3, "conv_update": 1}
    named = {**dict.fromkeys((DECODE, REPLAY), 3 * len(BATCHES)), "conv_update": len(BATCHES)}
    assert count == {d: own.get(d, 1) + named.get(d, 1) for d in DIRECTIONS}
    assert "own norm_backward" in {task.name for task in tasks}
    # shapes that differ in what a pass does not see are searched once
    assert len(of_layers("norm_forward", {"a": LAYER, "b": Problem(8, 2048, 64, 128, 16, 8)}, {})) == 1


@pytest.mark.parametrize("direction", PARTS)
def test_problems_in_words(direction: Direction) -> None:
    said = describe(direction, CallProblem(**of_layer(direction, LAYER).to_json()))
    assert ("10240 channels" in said) != ("8 groups of 1024 channels" in said)


@pytest.mark.parametrize("direction", PARTS)
def test_every_legal_config_has_its_launches(direction: Direction) -> None:
    it, problem = PASSES[direction], of_layer(direction, LAYER)
    given = it.draw(problem, "meta", 0, False)
    for config in legal(direction, problem, 40):
        launches: list[Launch] = it.plan(config, given, False).launches
        ((_, numbers),) = config["kernels"].items()
        assert launches[0].num_warps == numbers["num_warps"] and min(launches[0].grid) > 0
        names = [launch.kernel.__name__ for launch in launches]
        summed = "sum_parts_early" if numbers.get("sum_early") else "sum_parts"
        assert names[1:] == ([summed] if direction.endswith("backward") else [])
        assert [launch.early for launch in launches] == [False, bool(numbers.get("sum_early"))][: len(launches)]
        for launch in launches:
            counted = it.work(launch, config, problem)
            assert counted.ctas > 0 and counted.steps > 0 and counted.memory_bytes > 0
        # every operand once: a projection's other columns are not counted
        (x,) = {launch.args["x_ptr"].numel() for launch in launches[:1]}
        assert it.work(launches[0], config, problem).memory_bytes >= 2 * 2 * x


@pytest.mark.interpreter
@pytest.mark.parametrize("direction", PARTS)
def test_legal_configs_are_right(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, with and without what the finalists are checked with; memory is full of NaN before."""
    it, problem = PASSES[direction], of_layer(direction, TINY)
    for number, config in enumerate(legal(direction, problem, 2)):
        more = bool(number % 2)
        given = it.draw(problem, "cpu", number, more)
        expected = it.expect(given, problem)
        with parts.gate.poisoned_memory():
            found = it.run(config, it.fresh(given), more)
        assert it.check(found, expected, problem).share <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("direction", [each for each in PARTS if each.endswith("backward")])
def test_a_sum_that_starts_early_has_the_same_bits(direction: Direction) -> None:
    """Again and again, of parts that are made anew each time."""
    it, problem = PASSES[direction], of_layer(direction, LAYER)
    (plain,) = legal(direction, problem, 1)
    ((kernel, numbers),) = plain["kernels"].items()
    plain, early = ({**plain, "kernels": {kernel: {**numbers, "sum_early": each}}} for each in (False, True))
    for seed in range(3):
        given = it.draw(problem, "cuda", seed, True)
        wanted = it.run(plain, given, True)
        for _ in range(5):
            with parts.gate.poisoned_memory():
                found = it.run(early, given, True)
            assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("state", ["float32", "int8"])
@pytest.mark.parametrize("more", [False, True])
def test_a_step_that_keeps_its_inputs(state: str, more: bool) -> None:
    """The public call agrees with the reference, and a state that was written in vain is noticed."""
    it, problem = PASSES[REPLAY], Problem(3, 1, 4, 8, 16, 2, state)
    given = it.draw(problem, "cpu", 1, more)
    expected = it.expect(given, problem)
    y, states, scale = it.call(given, more)
    assert it.check((y, states, scale), expected, problem).share <= 1
    # nothing is written until no more can be kept
    assert torch.equal(states, given.state) != more
    with pytest.raises(WrongResultError, match="the state has an error"):
        it.check((y, states.clone().fill_(3), scale), expected, problem)
    config = it.space.config("step", {"state_step.block_p": 8, "state_step.num_warps": 1, "state_step.heads": 2})
    names = [launch.kernel.__name__ for launch in it.plan(config, it.draw(problem, "meta", 0, more), more).launches]
    assert names == ["replay_step_heads", "replay_advance"]
    config = it.space.config("step", {"state_step.block_p": 4, "state_step.num_warps": 1, "state_step.tiles": 2})
    names = [launch.kernel.__name__ for launch in it.plan(config, it.draw(problem, "meta", 0, more), more).launches]
    assert names == ["replay_scores", "replay_step_2tiles"]


@pytest.mark.parametrize("direction", PARTS)
def test_the_reference_is_the_public_call_and_notices_mistakes(direction: Direction) -> None:
    it, problem = PASSES[direction], of_layer(direction, SMALL)
    for more in (False, True):
        given = it.draw(problem, "cpu", 3, more)
        expected = it.expect(given, problem)
        found = it.call(given, more)
        assert it.check(found, expected, problem).share <= 1
        for name, value in found.items():
            wrong = {**found, name: value * (1 + 2 * parts.SUM_LIMITS["float32"])}
            with pytest.raises(WrongResultError, match=f"{name} has an error"):
                it.check(wrong, expected, problem)
            holes = value.clone()
            holes[(-1,) * holes.dim()] = torch.nan
            with pytest.raises(WrongResultError, match="never written"):
                it.check({**found, name: holes}, expected, problem)
        with pytest.raises(WrongResultError, match="there is no"):
            it.check({}, expected, problem)
