"""The search: what it begins with, what it learns, when it ends."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from ssdgen.tune import study
from ssdgen.tune.choices import Choices
from ssdgen.tune.errors import RejectedError
from ssdgen.tune.results import Event, Result, key_of
from ssdgen.tune.study import Limits
from tests.tune.fakes import H200, PROBLEM, FakeBench, FakeSpace, time_of

SPACE = FakeSpace()
BEST = SPACE.make("walk", 128, 8, 1)


ENOUGH = Limits(trials=25)


def search(bench: FakeBench, limits: Limits = ENOUGH, **options: Any):
    return study.run(PROBLEM, H200, SPACE, bench, limits, seed=0, **options)


def test_finds_the_best_config_and_judges_none_twice() -> None:
    bench = FakeBench()
    outcome = search(bench)
    assert outcome.best and outcome.best.config == BEST
    # as the finals have it, not as it was at first
    assert outcome.best.time_us == time_of(BEST) + 0.5 and outcome.best.error == 2e-3
    assert outcome.default and outcome.default.time_us == time_of(SPACE.default(PROBLEM, H200)) + 0.5
    assert len({key_of(config) for config in bench.runs}) == len(bench.runs) == outcome.tried
    # all of the space: 3 chunks x 3 x 2 and 2 x 3 x 2, the illegal chunk left out
    assert outcome.tried <= 30 and not any(config["chunk"] == 256 for config in bench.prepared)


def test_begins_with_the_default_the_minimal_ones_and_the_warm_start() -> None:
    bench = FakeBench()
    foreign = {"schedule": "walk", "chunk": 77, "kernels": {}}
    search(bench, Limits(trials=5), warm=[foreign, BEST])
    assert bench.runs[:4] == [
        SPACE.default(PROBLEM, H200),
        SPACE.minimal("walk", PROBLEM),
        SPACE.minimal("cut", PROBLEM),
        BEST,
    ]
    assert len(bench.runs) == 5


def test_the_starts_of_the_space_follow_the_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, start = FakeBench(), SPACE.make("cut", 128, 4)
    monkeypatch.setattr(SPACE, "starts", lambda problem, gpu: (start,))
    search(bench, Limits(trials=5), warm=[BEST])
    assert bench.runs[3:5] == [BEST, start]


def test_the_same_seed_gives_the_same_trials() -> None:
    first, second = FakeBench(), FakeBench()
    search(first, Limits(trials=20, ahead=3))
    search(second, Limits(trials=20, ahead=3))
    assert first.runs == second.runs


def test_a_rejected_candidate_is_no_end() -> None:
    events: list[Event] = []
    outcome = search(FakeBench(fails={64: "out of registers"}), listener=events.append)
    assert outcome.best and outcome.best.config == BEST and outcome.default is None
    assert outcome.rejected == sum(event.kind == "rejected" for event in events) > 0
    assert {event.reason for event in events if event.kind == "rejected"} == {"out of registers"}
    assert [event.kind for event in events][:2] == ["begun", "rejected"]


def test_when_nothing_passes_the_reason_is_told() -> None:
    outcome = search(FakeBench(fails=dict.fromkeys((32, 64, 128), "no GPU memory")))
    assert outcome.best is None and outcome.reason == "no GPU memory"


@pytest.mark.parametrize("at", [2, 9])
def test_ctrl_c_keeps_the_best(at: int) -> None:
    bench = FakeBench(interrupt=at)
    outcome = search(bench, Limits(trials=50, ahead=4))
    assert outcome.stopped
    fastest = min(bench.runs[: at - 1], key=time_of)
    assert outcome.best == Result(fastest, time_of(fastest), 1.0, 1e-3, 5e-3)
    # what was being prepared is called off
    assert bench.cancelled == 3


def test_ctrl_c_in_the_finals_keeps_the_best() -> None:
    bench = FakeBench()
    bench.finals = lambda results: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    outcome = search(bench)
    assert outcome.stopped and outcome.best and outcome.best.config == BEST


def test_a_deadline_ends_the_search_but_one_config_is_found() -> None:
    now = [0.0]
    bench = FakeBench(fails={64: "slow to fail"})
    real = bench.run

    def run(config, prepared, best_us):
        now[0] += 1
        return real(config, prepared, best_us)

    bench.run = run  # type: ignore[method-assign]
    limits = Limits(deadline=10.0, clock=lambda: now[0])
    assert search(bench, limits).tried == 10
    # past the deadline from the start: the given ones, until one passes
    bench.runs.clear()
    outcome = search(bench, Limits(deadline=0.0, clock=lambda: now[0]), warm=[BEST, SPACE.make("cut", 128, 8)])
    assert outcome.best and outcome.best.config == BEST
    assert len(bench.runs) == 4


def test_who_fails_in_the_finals_is_out() -> None:
    bench = FakeBench()

    def finals(results: list[Result]) -> list[Result]:
        if any(result.config == BEST for result in results):
            raise RejectedError("illegal address")
        return results

    bench.finals = finals  # type: ignore[method-assign]
    outcome = search(bench)
    assert outcome.best and outcome.best.config == SPACE.make("walk", 128, 8, 4)


def test_a_study_goes_on_from_its_journal(tmp_path) -> None:
    def storage() -> optuna.storages.BaseStorage:
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "trials")))

    first = FakeBench(interrupt=12)
    search(first, storage=storage(), name="a")
    second = FakeBench()
    outcome = search(second, Limits(trials=3), storage=storage(), name="a")
    done = {key_of(config) for config in first.runs[:-1]}
    assert not done & {key_of(config) for config in second.runs}
    assert outcome.best and time_of(outcome.best.config) <= min(map(time_of, first.runs[:-1]))
    # another name is another study
    other = FakeBench()
    search(other, Limits(trials=3), storage=storage(), name="b")
    assert other.runs[0] == SPACE.default(PROBLEM, H200)


def test_an_axis_is_shared_by_schedules_that_agree_on_it() -> None:
    choices = Choices(SPACE, PROBLEM, H200)
    assert choices.parameters(BEST) == {
        "schedule": "walk",
        "walk:chunk": 128,
        "walk.num_warps": 8,
        "dt.num_warps": 1,
    }
    assert choices.parameters({**BEST, "chunk": 48}) is None
    assert choices.parameters({**BEST, "schedule": "fly"}) is None
    trial = optuna.trial.FixedTrial(choices.parameters(BEST) or {})
    assert choices.config(trial) == BEST  # type: ignore[arg-type]
