"""The ledger: one process has a trial at a time, what dead ones had is taken over, and nothing is judged twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssdgen.tune import presence as presences
from ssdgen.tune import storage
from ssdgen.tune.ledger import MOST_LOST, Ledger, open_study
from ssdgen.tune.presence import Pace, Presence
from ssdgen.tune.results import Result
from ssdgen.tune.storage import Storage

CONFIG, OTHER = {"chunk": 64}, {"chunk": 128}


class Others:
    """As much of Presence as a ledger asks: this process, and who is dead."""

    def __init__(self, name: str, dead: set[str]) -> None:
        self.name, self._dead = name, dead

    def alive(self, name: str) -> bool:
        return name not in self._dead


@pytest.fixture(params=["memory", "journal"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storage.memory() if request.param == "memory" else storage.open_storage(tmp_path / "journal")


def ledgers(kept: Storage, dead: set[str]) -> tuple[Ledger, Ledger]:
    """Of two processes."""
    first, second = (Ledger(kept, "a", Others(name, dead)) for name in ("one", "two"))  # type: ignore[arg-type]
    return first, second


def test_a_trial_is_written_before_it_begins(kept: Storage) -> None:
    one, two = ledgers(kept, set())
    claim = one.claim(CONFIG)
    assert claim and claim.number == 1
    assert two.taken() == {claim.key} and two.count() == 1 and two.elsewhere() and not one.elsewhere()
    assert two.claim(CONFIG) is None
    assert one.complete(claim, Result(CONFIG, 5.0, 0.5, 1e-3, 5e-3))
    (ended,) = two.ended()
    assert ended.result == Result(CONFIG, 5.0, 0.5, 1e-3, 5e-3)
    assert two.claim(CONFIG) is None and not two.elsewhere()


def test_who_is_out_has_no_result(kept: Storage) -> None:
    one, two = ledgers(kept, set())
    claim = one.claim(CONFIG)
    assert claim and one.reject(claim, "too large")
    (ended,) = two.ended()
    assert ended.result is None and two.attribute(ended.number, "reason") == "too large"


def test_no_more_trials_begin_than_there_may_be(kept: Storage) -> None:
    one, two = ledgers(kept, set())
    assert one.claim(CONFIG, most=1)
    assert two.claim(OTHER, most=1) is None
    # who was turned away does not count
    assert one.count() == 1 and two.claim(OTHER, most=2)


def test_the_trials_of_a_dead_process_are_taken_over(kept: Storage) -> None:
    dead: set[str] = set()
    one, two = ledgers(kept, dead)
    claim = one.claim(CONFIG)
    assert claim and two.lost() == []
    dead.add("one")
    assert two.lost() == [CONFIG] and two.count() == 0
    again = two.claim(CONFIG)
    assert again and two.lost() == []
    # it was not dead after all: what it found counts no more
    assert not one.complete(claim, Result(CONFIG, 1.0))
    assert two.complete(again, Result(CONFIG, 2.0))
    assert [ended.result for ended in two.ended()] == [Result(CONFIG, 2.0)]


def test_whoever_took_it_over_may_die_before_beginning_it(kept: Storage) -> None:
    dead = {"one"}
    one, two = ledgers(kept, dead)
    assert one.claim(CONFIG) and two.lost() == [CONFIG]
    three = Ledger(kept, "a", Others("three", {"one", "two"}))  # type: ignore[arg-type]
    assert three.lost() == [CONFIG]


def test_a_candidate_that_ends_processes_is_tried_no_more(kept: Storage) -> None:
    dead: set[str] = set()
    for name in [f"victim {n}" for n in range(MOST_LOST)]:
        victim = Ledger(kept, "a", Others(name, dead))  # type: ignore[arg-type]
        claim = victim.claim(CONFIG)
        assert claim
        dead.add(name)
    survivor = Ledger(kept, "a", Others("survivor", dead))  # type: ignore[arg-type]
    assert survivor.lost() == [] and survivor.taken() == {claim.key}


def test_what_was_given_back_is_free(kept: Storage) -> None:
    one, two = ledgers(kept, set())
    for _ in range(MOST_LOST + 1):
        claim = one.claim(CONFIG)
        assert claim
        one.drop(claim)
    assert two.lost() == [CONFIG] and two.claim(CONFIG)


# ---- who is alive


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is on another machine, where nobody can ask the system."""
    monkeypatch.setattr(presences, "_place", lambda: None)


def pair(kept: Storage, now: list[float]) -> tuple[Presence, Presence]:
    study_id = open_study(kept, "job")
    pace = Pace(beat_s=3600.0, grace_s=10.0)
    one, two = (Presence(kept, study_id, {}, pace, lambda: now[0]) for _ in range(2))
    return one, two


@pytest.mark.usefixtures("far")
def test_a_process_that_no_longer_beats_is_dead_after_a_while(kept: Storage) -> None:
    now = [1000.0]
    one, two = pair(kept, now)
    with one, two:
        for _ in range(3):
            assert two.alive(one.name)
            now[0] += 8.0
            one._beat()
        assert two.alive(one.name)
        now[0] += 9.0
        assert two.alive(one.name) and two.alive(two.name)
        now[0] += 2.0
        assert not two.alive(one.name)
        # a beat brings it back: the clocks are ours alone
        one._beat()
        now[0] += 1.0
        assert two.alive(one.name)
        assert [about["name"] for about in two.others()] == [one.name]


@pytest.mark.usefixtures("far")
def test_a_process_that_left_is_gone_at_once(kept: Storage) -> None:
    now = [0.0]
    one, two = pair(kept, now)
    with two:
        with one:
            assert two.alive(one.name)
        now[0] += 1.0
        assert not two.alive(one.name) and not two.alive("nobody")


def test_of_a_process_on_this_machine_the_system_knows(kept: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    if presences._place() is None:
        pytest.skip("this system has no /proc")
    now = [0.0]
    one, two = pair(kept, now)
    with one, two:
        # it beats no more and is there
        now[0] += 3600.0
        assert two.alive(one.name)
        # another process has its number now
        real = presences._process
        monkeypatch.setattr(presences, "_process", lambda pid: f"not {real(pid)}")
        now[0] += 1.0
        assert not two.alive(one.name)


def test_beats_go_on_by_themselves(kept: Storage) -> None:
    study_id = open_study(kept, "job")
    with Presence(kept, study_id, {"gpu": "NVIDIA H200"}, Pace(0.02, 1.0)) as one:
        two = Presence(kept, study_id, {})
        first = two.others()[0]["beat"]
        for _ in range(200):
            if two.others()[0]["beat"] > first + 1:
                break
            one._ended.wait(0.02)
        assert two.others()[0]["beat"] > first + 1 and two.others()[0]["gpu"] == "NVIDIA H200"
