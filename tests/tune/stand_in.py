"""`ssdgen tune` with a stand-in for the device: it knows every time and writes down what it judges.  Run as a process.

Everything else is what users run: the job, the ledger, presence, the sampler, the space, records.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune import distributed, ranks, session
from ssdgen.tune.jobs import Task
from ssdgen.tune.presence import Pace
from ssdgen.tune.results import Bench, Config, Result, key_of

PROBLEMS = {"small": Problem(2, 512, 8, 64, 64)}


def time_of(config: Config) -> float:
    """The same for the same config, in any process."""
    return 100.0 + zlib.crc32(key_of(config).encode()) % 1000 / 10


class StandIn:
    """Judges by `time_of`, each in `seconds`, and appends a line at the beginning and at the end.

    together: processes that must have begun a trial before any ends one, however slow their machine is.
    """

    ahead, in_order = 3, True

    def __init__(self, log: Path, seconds: float, together: int) -> None:
        self._log, self._seconds, self._together = log, seconds, together

    def prepare(self, config: Config) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(None)
        return done

    def run(self, config: Config, prepared: Future[Any], best_us: float | None) -> Result:
        self._note("begun", config)
        while len({json.loads(line)["pid"] for line in self._log.read_text().splitlines()}) < self._together:
            time.sleep(0.05)
        time.sleep(self._seconds)
        self._note("ended", config)
        return Result(config, time_of(config))

    def finals(self, results: list[Result]) -> list[Result]:
        for result in results:
            self._note("final", result.config)
        return results

    def _note(self, what: str, config: Config) -> None:
        line = json.dumps({"what": what, "pid": os.getpid(), "key": key_of(config)}) + "\n"
        with self._log.open("a") as file:
            file.write(line)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.2)
    # trials end a search here, not time: a machine with other work is slow
    parser.add_argument("--budget", type=float, default=3600.0)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--join", choices=["resume", "work"])
    parser.add_argument("--training-job", action="store_true")
    given = parser.parse_args(arguments)
    gpu, launched = gpus.find(given.gpu), ranks.here()
    log = given.folder / "log"

    @contextmanager
    def benches(setting: object, options: object) -> Iterator[Callable[[Task], Bench]]:
        yield lambda task: StandIn(log, given.seconds, given.together)

    options = session.Options(
        root=given.folder / f"records-{launched.rank}" if launched.count > 1 else given.folder / "records",
        predicted=True,
        seconds=given.budget or None,
        trials=given.trials,
        seed=0,
        timing="graph",
        l2="cold",
        jobs=1,
        storage=given.storage,
        join=given.join,
        wait_s=300.0,
        ranks=ranks.Ranks() if given.training_job else launched,
        pace=Pace(beat_s=0.5, grace_s=5.0),
    )
    if given.training_job:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        found = distributed.tune(PROBLEMS, gpu, options, benches)
        print(json.dumps([record.to_json() for record in found]))
        dist.destroy_process_group()
    else:
        session.run(PROBLEMS, gpu, options, benches)


if __name__ == "__main__":
    main(sys.argv[1:])
