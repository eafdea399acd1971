"""Workers side by side.  method, arguments -> Future -> predict, measure"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .errors import RejectedError
from .isolate import Worker

# a kernel compiles in one to three seconds, a large one on a busy machine in perhaps twenty
TIME_LIMIT_S = 180.0

# beyond this they wait for the GPU, and each takes half a gigabyte
_MOST = 16


def default_jobs() -> int:
    """One process per core that this process may use, at most 16."""
    # not every system tells
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST, usable)


class Pool:
    """Several processes, each with an object made by factory(*args); a call goes to one that is free."""

    def __init__(self, jobs: int, factory: Callable[..., Any], *args: Any) -> None:
        self.jobs = jobs
        self._made_by = (factory, args)
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._mine = threading.local()
        # a thread for each process: it waits for the answer and watches the time
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="ssdgen-worker")

    def submit(self, method: str, *args: Any) -> Future[Any]:
        """Call a method in one of the processes.  Errors, when the result is taken: as `Worker.call`."""
        return self._threads.submit(self._call, method, args)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        worker = getattr(self._mine, "worker", None)
        if worker is None:
            factory, arguments = self._made_by
            worker = self._mine.worker = Worker(factory, *arguments)
            with self._lock:
                if self._closed:
                    raise RejectedError("the search was stopped")
                self._workers.append(worker)
        return worker.call(method, *args, time_limit_s=TIME_LIMIT_S)
