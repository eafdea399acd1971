"""Many processes on one job: workers on a real PostgreSQL of which some are killed, and the ranks of a launch."""

from __future__ import annotations

import json
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from ssdgen.tune import jobs, storage
from ssdgen.tune.jobs import JobError
from tests.tune import postgres, processes

# two cores, and several processes each: one test after the other
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres.server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def check_that_nothing_was_lost(folder: Path, kept: str, count: int, killed: set[int]) -> None:
    """Every trial has a result, and none was judged twice but those that a dead process had under way."""
    ended = [t for t in processes.trials(kept) if t.state == TrialState.COMPLETE]
    keys = [t.user_attrs["config"] for t in ended]
    assert len(keys) == count == len(set(keys))
    assert not any(t.state == TrialState.RUNNING for t in processes.trials(kept))
    twice = {key for key, times in Counter(processes.noted(folder, "begun")).items() if times > 1}
    assert twice <= {key for pid in killed for key in processes.noted(folder, "begun", pid)}
    assert len(twice) <= len(killed)


def test_workers_on_postgresql_of_which_some_are_killed(database: str, tmp_path: Path) -> None:
    count, together = 24, ("--together", "3")
    first = processes.start(tmp_path, database, "--trials", str(count), *together)
    worker, other = (processes.start(tmp_path, database, "--join", "work", *together) for _ in range(2))
    running = [first, worker, other]
    processes.wait_until(lambda: all(processes.noted(tmp_path, "ended", each.pid) for each in running), *running)
    # a worker, and the process that started it all
    processes.kill(worker)
    processes.kill(first)
    processes.finish(other)
    check_that_nothing_was_lost(tmp_path, database, count, {worker.pid, first.pid})
    best = min(t.value for t in processes.trials(database) if t.state == TrialState.COMPLETE)
    assert processes.record(tmp_path).time_us == pytest.approx(best)


def test_a_worker_on_another_gpu_is_refused(database: str, tmp_path: Path) -> None:
    """Times of another GPU would be nobody's."""
    kept = storage.open_storage(database)
    job = jobs.Job("sm90_h200", True, (), 3, 60.0, 0, "graph", "cold", "k", {})
    jobs.create(kept, job)
    with pytest.raises(JobError, match=r"are for .*sm90_h200, predicted, and this is sm80_a100, predicted"):
        jobs.latest(kept, replace(job, gpu="sm80_a100"))


def ranks(folder: Path, kept: str, *options: str) -> list[subprocess.Popen[str]]:
    """Two ranks as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        processes.start(folder, kept, *options, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)
    ]


def test_the_ranks_of_a_launch_share_a_job(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    first, second = ranks(tmp_path, journal, "--trials", "10", "--together", "2")
    said = processes.finish(first), processes.finish(second)
    assert "small" in said[0] and not said[1]
    assert all(processes.noted(tmp_path, "ended", each.pid) for each in (first, second))
    check_that_nothing_was_lost(tmp_path, journal, 10, set())
    # one of them judged the finalists, and both have the record
    assert len({pid for pid in (first.pid, second.pid) if processes.noted(tmp_path, "final", pid)}) == 1
    assert processes.record(tmp_path, "records-0") == processes.record(tmp_path, "records-1")


def test_in_a_training_job_the_first_rank_tunes_for_all(tmp_path: Path) -> None:
    first, second = ranks(tmp_path, str(tmp_path / "journal"), "--trials", "4", "--training-job")
    said = [processes.finish(each) for each in (first, second)]
    assert len(processes.noted(tmp_path, "ended", first.pid)) == 4
    assert not processes.noted(tmp_path, "begun", second.pid)
    # each printed what it was given, after the first one's table
    given = [json.loads(text.splitlines()[-1]) for text in said]
    assert given[0] == given[1] and len(given[0]) == 1
    assert processes.record(tmp_path, "records-0") == processes.record(tmp_path, "records-1")
    assert given[0][0]["config"] == processes.record(tmp_path, "records-1").config
