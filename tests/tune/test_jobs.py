"""Jobs in a storage: which one a process joins, and which it must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssdgen.plan.problem import Problem
from ssdgen.tune import jobs, storage
from ssdgen.tune.jobs import Job, JobError, Task
from ssdgen.tune.ledger import Ledger
from ssdgen.tune.results import Result
from ssdgen.tune.storage import Storage

TASKS = (
    Task("2.7b", "forward", Problem(8, 2048, 80, 64, 128)),
    Task("2.7b backward", "backward", Problem(1, 2, 4, 8, 8)),
)
JOB = Job("sm90_h100", False, TASKS, 40, 240.0, 3, "eager", "warm", "digest", {"forward": "f", "backward": "b"})


@pytest.fixture
def kept(tmp_path: Path) -> Storage:
    return storage.open_storage(tmp_path / "journal")


def test_a_job_is_read_as_it_was_written(kept: Storage) -> None:
    assert jobs.latest(kept, JOB) is None
    made = jobs.create(kept, JOB)
    assert jobs.latest(kept, JOB) == made == jobs.named(kept, made.name) and made.job == JOB
    # what it is to do is its own
    assert jobs.latest(kept, replace(JOB, tasks=(), seed=9, trials=None)) == made
    newer = jobs.create(kept, replace(JOB, seed=4))
    assert jobs.latest(kept, JOB) == newer and newer.study_of(TASKS[0]) != made.study_of(TASKS[0])


def test_a_job_is_prolonged_with_the_same_searches(kept: Storage) -> None:
    made = jobs.create(kept, JOB)
    longer = jobs.prolong(kept, made, 900.0)
    assert jobs.latest(kept, JOB) == longer and longer.name != made.name
    assert longer.job == replace(JOB, seconds=900.0, trials=None, searches=made.name)
    again = jobs.prolong(kept, longer, 60.0)
    assert {each.study_of(TASKS[0]) for each in (made, longer, again)} == {made.study_of(TASKS[0])}
    assert not jobs.is_done(kept, again)


def test_a_job_is_done_when_all_of_its_searches_have_ended(kept: Storage) -> None:
    made = jobs.create(kept, JOB)
    ends = Ledger(kept, made.name)
    for count, task in enumerate(TASKS):
        assert not jobs.is_done(kept, made)
        claim = ends.claim({"search": task.name})
        assert claim
        ends.reject(claim, "nothing") if count else ends.complete(claim, Result({}, 1.0))
    assert jobs.is_done(kept, made)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpu": "sm80_a100"}, "are for sm90_h100, and this is sm80_a100: times do not compare"),
        ({"predicted": True}, "are for sm90_h100, and this is sm90_h100, predicted"),
        ({"kernels": "others"}, "is for other kernels than this ssdgen has"),
        ({"spaces": {"forward": "f", "backward": "c"}}, "is for other kernels than this ssdgen has"),
    ],
)
def test_a_job_for_others_is_refused(kept: Storage, changes: dict[str, Any], says: str) -> None:
    jobs.create(kept, JOB)
    with pytest.raises(JobError, match=says):
        jobs.latest(kept, replace(JOB, **changes))


def test_a_job_of_another_schema_is_refused(kept: Storage) -> None:
    made = jobs.create(kept, JOB)
    kept.optuna.set_study_user_attr(made.study_id, "ssdgen", {**JOB.to_json(), "schema": 2})
    with pytest.raises(JobError, match="holds studies of schema 2, and this ssdgen reads 1"):
        jobs.latest(kept, JOB)
    kept.optuna.set_study_user_attr(made.study_id, "ssdgen", {**JOB.to_json(), "tasks": [{"name": "x"}]})
    with pytest.raises(JobError, match="cannot be understood"):
        jobs.latest(kept, JOB)


def test_studies_of_others_are_no_jobs(kept: Storage) -> None:
    Ledger(kept, "theirs")
    assert jobs.latest(kept, JOB) is None
    with pytest.raises(JobError, match="has no job theirs"):
        jobs.named(kept, "theirs")
