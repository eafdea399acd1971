"""Workers in processes of their own: whatever they do, the search goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from ssdgen.tune.errors import RejectedError, TuneError
from ssdgen.tune.isolate import Worker
from ssdgen.tune.pool import Pool
from tests.tune.broken import Counter, Unmade

LONG = 60.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Counter, 10)
    yield made
    made.close()


def test_a_worker_keeps_its_state_until_it_is_lost(worker: Worker) -> None:
    assert worker.call("add", 1, time_limit_s=LONG) == 11
    with pytest.raises(RejectedError, match="too large"):
        worker.call("reject", time_limit_s=LONG)
    assert worker.call("add", 1, time_limit_s=LONG) == 12 and worker.starts == 1
    with pytest.raises(RejectedError, match=r"the process died in die \(exit code 7\)"):
        worker.call("die", time_limit_s=LONG)
    assert worker.call("add", 1, time_limit_s=LONG) == 11 and worker.starts == 2
    with pytest.raises(RejectedError, match="^ZeroDivisionError: no such number$"):
        worker.call("fail", time_limit_s=LONG)
    assert not worker.alive
    with pytest.raises(RejectedError, match="hang took more than 2 s"):
        worker.call("hang", time_limit_s=2)
    assert worker.call("pid", time_limit_s=LONG) != os.getpid()


def test_what_cannot_be_made_ends_the_search() -> None:
    broken = Worker(Unmade)
    with pytest.raises(TuneError, match="OSError: no driver"):
        broken.call("anything", time_limit_s=LONG)
    broken.close()


def test_closing_frees_who_waits(worker: Worker) -> None:
    worker.call("add", 0, time_limit_s=LONG)
    timer = threading.Timer(0.5, worker.close)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(RejectedError):
        worker.call("hang", time_limit_s=LONG)
    assert time.monotonic() - begin < 10
    with pytest.raises(RejectedError, match="stopped"):
        worker.call("add", 1, time_limit_s=LONG)


def test_a_pool_works_side_by_side() -> None:
    with Pool(2, Counter) as pool:
        pids = {future.result() for future in [pool.submit("pid") for _ in range(8)]}
        assert 1 <= len(pids) <= 2 and os.getpid() not in pids
        with pytest.raises(RejectedError, match="too large"):
            pool.submit("reject").result()
        waiting = [pool.submit("hang") for _ in range(5)]
        time.sleep(0.3)
    assert all(future.cancelled() or isinstance(future.exception(20), RejectedError) for future in waiting)
