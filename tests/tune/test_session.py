"""One run for both passes: which searches it makes, what they share, and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssdgen import gpus
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.pack.records import Direction
from ssdgen.plan.problem import Problem
from ssdgen.tune import session
from ssdgen.tune.campaign import Row, Setting
from ssdgen.tune.choices import Choices
from ssdgen.tune.results import Outcome
from ssdgen.tune.shapes import NAMED

PROBLEMS = {"one": Problem(1, 256, 2, 64, 128), "two": Problem(2, 256, 2, 64, 128)}
H100, A100 = gpus.find("h100"), gpus.find("a100")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Setting, list[str], Any, int]]:
    """Campaigns that note what they were given and find nothing; with seed 13 they end by Ctrl-C."""
    made: list[tuple[Setting, list[str], Any, int]] = []

    def run(problems, setting, bench_of, budget, listener, after=0):
        made.append((setting, list(problems), budget, after))
        return [
            Row(name, p, Outcome(None, None, 0, 0, stopped=setting.seed == 13), False) for name, p in problems.items()
        ]

    monkeypatch.setattr(session.campaign, "run", run)
    return made


def run(directions: tuple[Direction, ...], seed: int = 0) -> list[Row]:
    options = session.Options(Path(), True, 60.0, 3, seed, "graph", "cold", 1, None, directions)
    return session.run(PROBLEMS, H100, options)


def test_both_passes_share_the_budget(searches: list) -> None:
    rows = run(("forward", "backward"))
    assert [(setting.direction, names, after) for setting, names, _, after in searches] == [
        ("forward", ["one", "two"], 2),
        ("backward", ["one backward", "two backward"], 0),
    ]
    assert searches[0][2] is searches[1][2] and len(rows) == 4
    spaces = [setting.space.fingerprint() for setting, *_ in searches]
    assert spaces[0] != spaces[1]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_pass_alone(searches: list, direction: Direction) -> None:
    run((direction,))
    ((setting, _, _, after),) = searches
    assert setting.direction == direction and after == 0


def test_ctrl_c_in_the_first_ends_the_run(searches: list) -> None:
    rows = run(("forward", "backward"), seed=13)
    assert len(searches) == 1 and len(rows) == 2


@pytest.mark.parametrize("gpu", [H100, A100], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("name", NAMED)
def test_every_start_is_a_trial_and_launches_what_it_says(name: str, gpu: gpus.Gpu) -> None:
    problem = Problem(*NAMED[name])
    space = session.SPACES["backward"]
    choices = Choices(space, problem, gpu)
    for config in space.starts(problem, gpu):
        assert choices.parameters(config) is not None
        # names of kernels begin with the names that a config has for them
        launched = session.used_kernels(config, problem, "backward")
        assert len(launched) == len(config["kernels"])
        assert all(any(kernel.startswith(name) for name in config["kernels"]) for kernel in launched)


def test_the_default_is_what_runs_without_a_record_and_its_twin_is_a_start() -> None:
    problem = Problem(*NAMED["2.7b"])
    space = session.SPACES["backward"]
    default = space.default(problem, H100)
    assert default == default_backward(CallProblem(**problem.to_json()), 132, "sm90")
    twin = space.starts(problem, H100)[0]
    launched = [kernel for kernel in twin["kernels"] if not kernel.startswith("dt_")]
    assert {kernel: default["kernels"][kernel] for kernel in launched} == {
        kernel: twin["kernels"][kernel] for kernel in launched
    }
    assert twin["parts"] == default["parts"]
    assert session.used_kernels(twin, problem, "backward") == session.used_kernels(default, problem, "backward")
