"""Workers in processes of their own: whatever they do, the search goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssdgen.tune.errors import RejectedError, TuneError
from ssdgen.tune.isolate import Worker
from ssdgen.tune.pool import Pool
from tests.tune.broken import Counter, Family, Unmade

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


def runs(pid: int) -> bool:
    """Whether a process is there and not dead; on Linux."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether it ends soon."""
    end = time.monotonic() + 20
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not runs(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_worker_has_started_is_killed_with_it() -> None:
    worker = Worker(Family)
    child = worker.call("start_child", time_limit_s=LONG)
    assert runs(child)
    with pytest.raises(RejectedError, match="hang took more than 1 s"):
        worker.call("hang", time_limit_s=1)
    assert ends(child)
    worker.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("then", ['worker.call("hang", time_limit_s=60)', "time.sleep(60)"], ids=["busy", "idle"])
def test_workers_and_what_they_started_end_with_a_search_that_is_killed(then: str) -> None:
    code = f"""
import time
from ssdgen.tune.isolate import Worker
from tests.tune.broken import Family
worker = Worker(Family)
print(worker.call("start_child", time_limit_s=60), worker._process.pid, flush=True)
{then}
"""
    root = Path(__file__).resolve().parents[2]
    search = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=-1, text=True
    )
    assert search.stdout
    child, worker = map(int, search.stdout.readline().split())
    assert runs(child) and runs(worker)
    search.kill()
    search.wait()
    assert ends(worker) and ends(child)


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
