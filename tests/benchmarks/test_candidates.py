"""Candidates for the cost model: spread over the space, timed within a budget, and written down as they come."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks import candidates, measured
from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune.compile import Compiled
from ssdgen.tune.errors import CompileError, ProblemError, WrongResultError
from ssdgen.tune.jobs import Task
from ssdgen.tune.model import Estimate
from ssdgen.tune.passes import PASSES
from ssdgen.tune.predict import LaunchReport, Report
from ssdgen.tune.resources import Resources
from ssdgen.tune.results import Config, Result, key_of

H100 = gpus.find("h100")
PROBLEM = Problem(8, 2048, 80, 64, 128, 1)
TASKS = (Task("2.7b", "forward", PROBLEM), Task("2.7b backward", "backward", PROBLEM))
ABOUT = {"gpu": "NVIDIA H100 80GB HBM3"}
REPORT = Report(
    tuple(
        LaunchReport(Compiled(name, "", Resources(40, 0, 16, 4)), Estimate(1.0, 1.0, 1.0, 1.0, 1))
        for name in ("dt_cumsum", "single_pass")
    )
)


class FakeBench:
    """Every third candidate is wrong, every fifth does not compile; judging one takes a second of `now`."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, 0

    def prepare(self, config: Config) -> Future[Report]:
        self.seen += 1
        future: Future[Report] = Future()
        if self.seen % 5 == 0:
            future.set_exception(CompileError("it spills its beans"))
        else:
            future.set_result(REPORT)
        return future

    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
        self.now += 1.0
        prepared.result()
        if self.seen % 3 == 0:
            raise WrongResultError("wrong by 3")
        return Result(config, 100.0, 1.0, 1e-3, 5e-3)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_candidates_are_legal_and_of_all_kinds(task: Task) -> None:
    space = PASSES[task.direction].space
    found = candidates.drawn(task, H100, 0, 40)
    assert found == candidates.drawn(task, H100, 0, 40) != candidates.drawn(task, H100, 1, 40)
    assert len({key_of(config) for config in found}) == len(found) == 40
    assert all(space.legal(config, PROBLEM, H100) is None for config in found)
    schedules = Counter(config["schedule"] for config in found)
    assert set(schedules) == set(space.SCHEDULES) and min(schedules.values()) >= 8
    # with warps specialised and without
    kinds = {bool(numbers.get("consumers")) for config in found for numbers in config["kernels"].values()}
    assert kinds == {True, False}


def test_two_hundred_fit_the_shapes() -> None:
    assert 16 * 2 * len(candidates.shapes.NAMED) >= 200


def test_rows_can_be_calibrated_with(tmp_path: Path) -> None:
    path, bench = tmp_path / "candidates_h100.json", FakeBench()
    configs = [PASSES["forward"].space.minimal("single_pass", PROBLEM)]
    results = candidates.Results(path, ABOUT)
    candidates.time_all(TASKS[:1], lambda task: configs, lambda task: bench, results, 60.0, lambda: bench.now)
    (row,) = measured.of_candidates(json.loads(path.read_text()), "a run")
    assert (row.us, row.problem, row.config, row.gpu) == (100.0, PROBLEM, configs[0], H100)
    assert row.resources == ((40, 0, 16, 4),) * 2


def test_bad_candidates_are_told_and_the_time_is_kept(tmp_path: Path) -> None:
    bench, said = FakeBench(), []
    results = candidates.Results(tmp_path / "new" / "c.json", ABOUT)
    tuple_of = {task: candidates.drawn(task, H100, 0, 30) for task in TASKS}
    candidates.time_all(TASKS, tuple_of.__getitem__, lambda task: bench, results, 20.0, lambda: bench.now, said.append)
    # the first half of the time for one pass, what is left for the other
    assert 20 <= bench.now <= 21 and len(results.rows) + len(results.rejected) == bench.now
    assert {row["direction"] for row in results.rows} == {"forward", "backward"}
    assert any("beans" in row["reason"] for row in results.rejected) and any("beans" in text for text in said)


def test_goes_on_with_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    configs = candidates.drawn(TASKS[0], H100, 0, 12)

    def run() -> candidates.Results:
        bench, results = FakeBench(), candidates.Results(path, ABOUT)
        candidates.time_all(TASKS[:1], lambda task: configs, lambda task: bench, results, 7.0, lambda: bench.now)
        return results

    first, second = run(), run()
    assert len(first.known) == 7 and second.known == {candidates.Candidate(TASKS[0], c).key for c in configs}
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(ValueError, match="NVIDIA A100.* another --out"):
        candidates.Results(path, {"gpu": "NVIDIA A100-SXM4-80GB"})


def test_a_shape_that_does_not_fit_leaves_the_others(tmp_path: Path) -> None:
    class TooLarge(FakeBench):
        def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result:
            raise ProblemError("it does not fit")

    benches = {TASKS[0]: TooLarge(), TASKS[1]: FakeBench()}
    results, said = candidates.Results(tmp_path / "c.json", ABOUT), []
    small = [PASSES["backward"].space.minimal("walk", replace(PROBLEM, batch=1))]
    candidates.time_all(TASKS, lambda task: small, benches.__getitem__, results, 9.0, lambda: 0.0, said.append)
    assert [row["direction"] for row in results.rows] == ["backward"]
    assert any("left out, it does not fit" in text for text in said)
