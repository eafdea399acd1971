"""What a run searches for, and what each search begins with."""

from __future__ import annotations

import pytest

from ssdgen import gpus
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.pack.records import Direction
from ssdgen.plan.problem import Problem
from ssdgen.tune import session
from ssdgen.tune.choices import Choices
from ssdgen.tune.passes import PASSES, used_kernels
from ssdgen.tune.shapes import NAMED

PROBLEMS = {"one": Problem(1, 256, 2, 64, 128), "two": Problem(2, 256, 2, 64, 128)}
H100, A100 = gpus.find("h100"), gpus.find("a100")


@pytest.mark.parametrize("directions", [("forward",), ("backward",), ("forward", "backward")])
def test_the_searches_of_a_run(directions: tuple[Direction, ...]) -> None:
    found = session.tasks_of(PROBLEMS, directions)
    assert [(task.direction, task.problem) for task in found] == [(d, p) for d in directions for p in PROBLEMS.values()]
    assert len({task.name for task in found}) == len(found)


def test_shapes_of_one_bucket_share_a_search() -> None:
    """They would be looked up as one, and a new length never starts another search."""
    lengths = {str(length): Problem(2, length, 8, 64, 128) for length in (2048, 2000, 2047, 4096, 2100)}
    assert [task.name for task in session.tasks_of(lengths, ("forward",))] == ["2048", "4096"]


@pytest.mark.parametrize("gpu", [H100, A100], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("name", NAMED)
def test_every_start_is_a_trial_and_launches_what_it_says(name: str, gpu: gpus.Gpu) -> None:
    problem = Problem(*NAMED[name])
    space = PASSES["backward"].space
    choices = Choices(space, problem, gpu)
    for config in space.starts(problem, gpu):
        assert choices.parameters(config) is not None
        # names of kernels begin with the names that a config has for them; what adds up parts has no numbers, and each
        # slice launches the same kernels
        used = used_kernels("backward", config, problem)
        launched = [kernel for kernel in used if kernel not in ("sum_heads", "sum_parts")]
        assert len(set(launched)) == len(config["kernels"])
        assert all(any(kernel.startswith(name) for name in config["kernels"]) for kernel in launched)


def test_the_default_is_what_runs_without_a_record_and_its_twin_is_a_start() -> None:
    problem = Problem(*NAMED["2.7b"])
    space = PASSES["backward"].space
    default = space.default(problem, H100)
    assert default == default_backward(CallProblem(**problem.to_json()), 132, "sm90")
    twin = space.starts(problem, H100)[0]
    launched = [kernel for kernel in twin["kernels"] if not kernel.startswith("dt_")]
    assert {kernel: default["kernels"][kernel] for kernel in launched} == {
        kernel: twin["kernels"][kernel] for kernel in launched
    }
    assert twin["parts"] == default["parts"]
    assert used_kernels("backward", twin, problem) == used_kernels("backward", default, problem)
