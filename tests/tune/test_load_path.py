"""The second gate: the public call must find the record, run its config and be right."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops import select
from ssdgen.mamba2_ops.match import Gpu
from ssdgen.pack.records import CONV, NORM, Direction, Identity
from ssdgen.plan.problem import Problem
from ssdgen.tune import load_path, passes
from ssdgen.tune.errors import WrongResultError
from ssdgen.tune.measure import Judge, Users
from ssdgen.tune.passes import PASSES, used_kernels
from ssdgen.tune.problems import of_layer
from ssdgen.tune.recording import record_of
from ssdgen.tune.results import Result

# a length that is not its bucket's
PROBLEM = Problem(2, 100, 4, 16, 16, 2, "float32")
IDENTITY = Identity("sm90", "h200", "NVIDIA H200", "570", "2.9", "3.6", {})
DEVICE = torch.device("cpu")
PARTS = (*CONV, *NORM)
# launcher and its function, where they are not called as the pass is
LAUNCHERS = {"conv_update": ("conv", "update"), "norm_backward": ("norm", "backward")}


@pytest.fixture(autouse=True)
def an_h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The look-up thinks so; the kernels are the PyTorch path."""

    def gpu_of(device: torch.device) -> Gpu:
        return Gpu("NVIDIA H200", "sm90", 132)

    gpu_of.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(select, "gpu_of", gpu_of)
    # a folder of the user's own, which must be as it was afterwards
    monkeypatch.setenv("SSDGEN_TUNED", str(tmp_path))


def check(direction: Direction, identity: Identity = IDENTITY) -> load_path.Checked:
    it, problem = PASSES[direction], of_layer(direction, PROBLEM)
    config = it.space.minimal(it.space.SCHEDULES[0], problem)
    kernels = dict.fromkeys(used_kernels(direction, config, problem), "ab")
    record = record_of(direction, problem, Result(config, 1.0, 0.0, 1e-4, 1e-3), "measured", kernels)
    given = it.draw(problem, "cpu", 0, True)
    expected = it.expect(given, problem)
    return load_path.check(record, identity, kernels, given, expected, DEVICE)


@pytest.mark.parametrize("direction", ["forward", "backward", *PARTS])
def test_the_public_call_finds_the_record(direction: Direction, tmp_path: Path) -> None:
    checked = check(direction)
    assert 0 < checked.error < min(1e-4, checked.limit)
    assert os.environ["SSDGEN_TUNED"] == str(tmp_path)


@pytest.mark.interpreter
@pytest.mark.parametrize("direction", ["forward", "backward", "conv_update", "norm_backward"])
def test_the_public_call_runs_the_kernels_of_the_record(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    module, function = LAUNCHERS.get(direction, (direction, direction))
    launcher = importlib.import_module(f"ssdgen.mamba2_ops.launchers.{module}")
    ran, real = [], getattr(launcher, function)

    def noting(config: Any, *operands: Any, **options: Any) -> Any:
        ran.append(config)
        return real(config, *operands, **options)

    monkeypatch.setattr(launcher, function, noting)
    assert 0 < check(direction).error < 1e-3
    it = PASSES[direction]
    assert ran == [it.space.minimal(it.space.SCHEDULES[0], of_layer(direction, PROBLEM))]


@pytest.mark.parametrize("direction", ["forward", "backward", "conv_backward", "norm_forward"])
def test_a_record_that_is_not_found_is_no_record(direction: Direction) -> None:
    """It would lie in the folder of another GPU, say, where this one does not look."""
    with pytest.raises(WrongResultError, match="the public call runs another config"):
        check(direction, replace(IDENTITY, arch="sm80", name="NVIDIA A100-SXM4-80GB"))


def test_a_config_that_gave_way_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    call = passes.Forward.call

    def giving_way(self: passes.Forward, given: Any, more: bool) -> Any:
        found = call(self, given, more)
        select.replace(passes.CallProblem(**PROBLEM.to_json()), DEVICE, {"schedule": "smallest"})
        return found

    monkeypatch.setattr(passes.Forward, "call", giving_way)
    with pytest.raises(WrongResultError, match="users would not run it"):
        check("forward")


@pytest.mark.parametrize("direction", ["forward", "backward", "conv_update", "norm_backward"])
def test_what_is_wrong_for_users_is_out(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right when the search launches it, wrong through the public call: it does not reach the finals' times."""
    it, timed, problem = PASSES[direction], [], of_layer(direction, PROBLEM)

    class Timer:
        def sampler(self, call: Any) -> Any:
            timed.append(call)
            return lambda count: [1.0] * count

    real = type(it).call
    # on a CPU the launchers have nothing to run on
    monkeypatch.setattr(type(it), "run", lambda self, config, given, more: real(self, given, more))
    config = it.space.minimal(it.space.SCHEDULES[0], problem)
    kernels = dict.fromkeys(used_kernels(direction, config, problem), "ab")
    judge = Judge(Timer(), "cpu", Users(IDENTITY, kernels))
    judge.load(direction, problem, 0)
    result = judge.run(config, None)
    assert [final.config for final in judge.finals([result])] == [config]
    count = len(timed)

    def wrong(self: Any, given: Any, more: bool) -> Any:
        found = real(self, given, more)
        first = found[0] if isinstance(found, tuple) else next(iter(found.values()))
        first.mul_(1.1)
        return found

    monkeypatch.setattr(type(it), "call", wrong)
    assert judge.finals([result]) == [] and len(timed) == count
