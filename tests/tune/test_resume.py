"""kill -9 at any moment: what was judged is known afterwards, and only the trial under way is judged again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from ssdgen.tune import jobs, storage
from tests.tune import processes
from tests.tune.stand_in import time_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(600)]


def test_kill_and_resume(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    process = processes.start(tmp_path, journal, "--trials", "10")
    # in the middle of a trial
    processes.wait_until(lambda: len(processes.noted(tmp_path, "begun")) == 4, process)
    processes.kill(process)
    before = processes.trials(journal)
    begun, ended = processes.noted(tmp_path, "begun"), processes.noted(tmp_path, "ended")
    # it stood there before it began, and each of the others since it ended
    assert {t.user_attrs["config"] for t in before} >= set(begun)
    kept = {t.user_attrs["config"] for t in before if t.state == TrialState.COMPLETE}
    assert kept >= set(begun[:3]) and len(ended) <= 4

    processes.finish(processes.start(tmp_path, journal, "--join", "resume"))
    judged = Counter(processes.noted(tmp_path, "ended"))
    lost = set(begun) - kept
    assert {key for key, times in Counter(processes.noted(tmp_path, "begun")).items() if times > 1} <= lost
    after = [t for t in processes.trials(journal) if t.state == TrialState.COMPLETE]
    assert len(after) == 10 == len({t.user_attrs["config"] for t in after}) == len(judged)
    assert lost < {t.user_attrs["config"] for t in after}
    assert processes.record(tmp_path).time_us == pytest.approx(min(t.value for t in after))
    assert processes.record(tmp_path).time_us == pytest.approx(time_of(processes.record(tmp_path).config))

    # a job that is done is no work for a worker
    kept = storage.open_storage(journal)
    (job,) = [study for study in kept.optuna.get_all_studies() if "ssdgen" in study.user_attrs]
    assert jobs.is_done(kept, jobs.named(kept, job.study_name))


def test_more_time_takes_a_search_further(tmp_path: Path) -> None:
    """From all that was judged: nothing is judged twice, and the record is the best of both runs."""
    journal = str(tmp_path / "journal")
    processes.finish(processes.start(tmp_path, journal, "--trials", "4"))
    first = processes.noted(tmp_path, "ended")
    assert len(first) == 4
    # without a time what was found is told
    processes.finish(processes.start(tmp_path, journal, "--join", "resume", "--budget", "0"))
    assert processes.noted(tmp_path, "ended") == first
    processes.finish(processes.start(tmp_path, journal, "--join", "resume", "--budget", "4"))
    judged = processes.noted(tmp_path, "ended")
    assert judged[:4] == first and len(judged) > 4 and len({*judged}) == len(judged)
    after = [trial for trial in processes.trials(journal) if trial.state == TrialState.COMPLETE]
    assert len(after) == len(judged)
    assert processes.record(tmp_path).time_us == pytest.approx(min(trial.value for trial in after))
