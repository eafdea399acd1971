"""What the model thinks before anything is compiled: legal, the same for a seed, and better than chance."""

from __future__ import annotations

import statistics

import pytest

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune import passes, prior
from ssdgen.tune.choices import Choices
from ssdgen.tune.problems import of_layer
from ssdgen.tune.results import key_of
from tests.tune.fakes import H200, PROBLEM, FakePass, time_of


@pytest.mark.parametrize("name", ["h100", "a100", "mi300x"])
@pytest.mark.parametrize("direction", ["forward", "backward", "conv_backward", "conv_tile_forward", "norm_backward"])
def test_every_one_can_be_tried(direction: passes.Direction, name: str) -> None:
    problem, gpu = of_layer(direction, Problem(2, 1024, 16, 64, 128, 2)), gpus.find(name)
    space = passes.PASSES[direction].space
    found = prior.ranked(direction, problem, gpu, 0)
    assert found == prior.ranked(direction, problem, gpu, 0) != prior.ranked(direction, problem, gpu, 1)
    assert {config["schedule"] for config in found} == set(space.SCHEDULES)
    assert len({key_of(config) for config in found}) == len(found)
    choices = Choices(space, problem, gpu)
    for config in found:
        assert space.legal(config, problem, gpu) is None and choices.parameters(config) is not None
        assert passes.used_kernels(direction, config, problem)


def test_given_ones_stand_among_them_if_they_are_legal() -> None:
    problem, gpu, space = Problem(2, 1024, 16, 64, 128, 2), gpus.find("a100"), passes.PASSES["forward"].space
    good, bad = space.starts(problem, gpu)[0], space.minimal("split", problem)
    illegal = {**good, "chunk": 48}
    found = prior.ranked("forward", problem, gpu, 0, [bad, illegal, good])
    assert illegal not in found and found.index(good) < found.index(bad)
    # the smallest tiles are the last of all
    assert len(found) > prior.KEPT and bad not in found[: prior.KEPT]


def test_the_best_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes.PASSES, "forward", FakePass())
    found = prior.ranked("forward", PROBLEM, H200, 0)
    times = [time_of(config) for config in found]
    space = FakePass.space
    every = [
        time_of(space.make(s, c, w, d)) for s in space.SCHEDULES for c in (64, 128) for w in (2, 4, 8) for d in (1, 4)
    ]
    assert times == sorted(times) and statistics.mean(times[: prior.KEPT]) < statistics.quantiles(every, n=4)[0]
