"""The search: what it begins with, what it learns, when it ends."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import optuna
import pytest

from ssdgen.tune import storage
from ssdgen.tune.choices import Choices
from ssdgen.tune.errors import RejectedError
from ssdgen.tune.ledger import Ledger
from ssdgen.tune.results import Config, Event, Outcome, Result, key_of
from ssdgen.tune.study import Limits, Search
from tests.tune.fakes import H200, PROBLEM, FakeBench, FakeSpace, time_of

SPACE = FakeSpace()
BEST = SPACE.make("walk", 128, 8, 1)


TRIALS = 25


def search(
    bench: FakeBench, trials: int = TRIALS, limits: Limits | None = None, ledger: Ledger | None = None, **options: Any
) -> Outcome:
    """A search from its beginning to its end."""
    ledger = ledger or Ledger(storage.memory(), "a")
    made = Search(PROBLEM, H200, SPACE, bench, ledger, seed=0, trials=trials, **options)
    stopped = False
    try:
        made.loop(limits or Limits())
        made.finish()
    except KeyboardInterrupt:
        stopped = True
    finally:
        made.close()
    return made.outcome(stopped)


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


def test_what_a_search_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FakeBench()
    foreign = {"schedule": "walk", "chunk": 77, "kernels": {}}
    warm, start, likely = BEST, SPACE.make("cut", 128, 4), SPACE.make("walk", 32, 8)
    monkeypatch.setattr(SPACE, "starts", lambda problem, gpu: (start,))
    search(bench, 7, warm=[foreign, warm], prior=[likely, warm])
    assert bench.runs[:6] == [
        SPACE.default(PROBLEM, H200),
        warm,
        start,
        likely,
        SPACE.minimal("walk", PROBLEM),
        SPACE.minimal("cut", PROBLEM),
    ]
    assert len(bench.runs) == 7


def test_the_same_seed_gives_the_same_trials() -> None:
    first, second = FakeBench(ahead=3), FakeBench(ahead=3)
    search(first, 20)
    search(second, 20)
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
    bench = FakeBench(interrupt=at, ahead=4)
    outcome = search(bench, 50)
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
    assert search(bench, limits=limits).tried == 10
    # past the deadline from the start: the given ones, until one passes
    bench.runs.clear()
    late = Limits(deadline=0.0, clock=lambda: now[0])
    outcome = search(bench, limits=late, warm=[SPACE.make("walk", 64, 8), BEST, SPACE.make("cut", 128, 8)])
    assert outcome.best and outcome.best.config == BEST
    assert len(bench.runs) == 3


@pytest.mark.parametrize(("start", "tried"), [(1.0, 10), (8.0, 6), (30.0, 6)])
def test_a_search_whose_workers_start_slowly_has_its_time_all_the_same(start: float, tried: int) -> None:
    """Five seconds from the first result on, and no more than until the deadline where that is later."""
    now = [0.0]
    bench = FakeBench()
    real = bench.run

    def run(config, prepared, best_us):
        now[0] += 1 if bench.runs else start
        return real(config, prepared, best_us)

    bench.run = run  # type: ignore[method-assign]
    assert search(bench, limits=Limits(deadline=10.0, least=5.0, clock=lambda: now[0])).tried == tried


def test_who_fails_in_the_finals_is_out() -> None:
    bench = FakeBench()

    def finals(results: list[Result]) -> list[Result]:
        if any(result.config == BEST for result in results):
            raise RejectedError("illegal address")
        return results

    bench.finals = finals  # type: ignore[method-assign]
    outcome = search(bench)
    assert outcome.best and outcome.best.config == SPACE.make("walk", 128, 8, 4)


def test_a_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    def ledger(name: str = "a") -> Ledger:
        return Ledger(storage.open_storage(tmp_path / "trials"), name)

    first = FakeBench(interrupt=12)
    search(first, ledger=ledger())
    second = FakeBench()
    outcome = search(second, 14, ledger=ledger())
    done = {key_of(config) for config in first.runs[:-1]}
    assert not done & {key_of(config) for config in second.runs} and len(second.runs) == 3
    # the one that was under way is the first to be tried again
    assert second.runs[0] == first.runs[-1]
    assert outcome.tried == 14 and outcome.best
    assert time_of(outcome.best.config) <= min(map(time_of, first.runs[:-1]))
    # another name is another search
    other = FakeBench()
    search(other, 3, ledger=ledger("b"))
    assert other.runs[0] == SPACE.default(PROBLEM, H200)


def test_whichever_is_compiled_first_is_judged_first() -> None:
    """A compiler that hangs holds up its own candidate alone."""
    slow = key_of(SPACE.default(PROBLEM, H200))

    class Compiling(FakeBench):
        def prepare(self, config: Config) -> Future[Any]:
            future: Future[Any] = Future()
            if key_of(config) != slow:
                future.set_result(None)
            return future

        def run(self, config: Config, prepared: Future[Any], best_us: float | None) -> Result:
            assert prepared.done()
            self.runs.append(config)
            return Result(config, time_of(config), 1.0, 1e-3, 5e-3)

    bench = Compiling(ahead=3, in_order=False)
    outcome = search(bench, limits=Limits(deadline=time.monotonic() + 1.0))
    assert outcome.best and outcome.best.config == BEST and slow not in map(key_of, bench.runs)


def test_what_others_have_judged_is_known_and_not_tried_again() -> None:
    shared = storage.memory()
    ours, theirs = FakeBench(), FakeBench()
    search(theirs, 10, ledger=Ledger(shared, "a"))
    outcome = search(ours, 16, ledger=Ledger(shared, "a"))
    assert outcome.tried == 16 and len(ours.runs) == 6
    assert not set(map(key_of, ours.runs)) & set(map(key_of, theirs.runs))


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
    parameters = choices.parameters(BEST) or {}
    trial = optuna.trial.FixedTrial(parameters)
    assert choices.suggest(trial) == parameters  # type: ignore[arg-type]
    assert choices.config(parameters) == BEST and set(choices.distributions(parameters)) == set(parameters)
