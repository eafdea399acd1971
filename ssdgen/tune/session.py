"""One run of `ssdgen tune`: opens or joins a job, and goes through its searches.  problems, Gpu, Options -> rows"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..gpus import Gpu
from ..mamba2_ops import ladder
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack import templates
from ..pack.records import FORWARD, MEASURED, PREDICTED, Direction, Identity
from ..plan.problem import Problem
from . import campaign, device, jobs, measure, predict, shapes
from .budget import Budget
from .campaign import Listener, Row, Setting
from .jobs import Job, JobError, Stored, Task
from .measure import Users
from .passes import PASSES
from .pool import default_jobs
from .presence import Pace, Presence
from .problems import of_layers
from .progress import BarProgress, PlainProgress, table
from .ranks import Ranks, group, share
from .results import Bench
from .storage import Storage, open_storage

# of a job, where nobody says
DEFAULT_S = 480.0
# how often a worker looks whether there is work
_LOOK_S = 1.0


@dataclass(frozen=True)
class Options:
    """root: folder of the records.  predicted: by compiling, not on a GPU.  seconds: for all searches together, from
    now on; None: as the job has it.

    trials: per search at most, of all processes together, or None.  timing: "graph" or "eager"; l2: "cold" or "warm".
    max_error: as in Job.

    jobs: processes that compile, or None for one per core.  storage: file or URL that keeps the trials, or None for the
    file of this GPU in the user's cache.  directions: the passes to search for, one after the other.
    join: "resume" goes on with the newest job for this GPU; "work" does too, after waiting for one for wait_s seconds.
    ranks: of the launch that this process is of, all of which work on one job.  pace: how processes learn of each
    other's death.
    """

    root: Path
    predicted: bool
    seconds: float | None
    trials: int | None
    seed: int
    timing: Any
    l2: Any
    jobs: int | None
    storage: str | None
    directions: tuple[Direction, ...] = (FORWARD,)
    max_error: float | None = None
    join: Literal["resume", "work"] | None = None
    wait_s: float = 60.0
    ranks: Ranks = Ranks()
    pace: Pace = Pace()


# what judges candidates: a bench for any task, while it is open
Benches = Callable[[Setting, Options], AbstractContextManager[Callable[[Task], Bench]]]


def run(problems: dict[str, Problem], gpu: Gpu, options: Options, benches: Benches | None = None) -> list[Row]:
    """Search, show progress, store records and print a table.

    benches: what judges candidates, instead of this GPU or of the model.
    Errors: as `campaign.run`; JobError; StorageError.
    """
    # of the kernels that are launched, which are the package's and not today's plans'
    identity, kernels = identity_of(gpu, options), ladder.current_fingerprint()
    storage = open_storage(options.storage or default_storage(identity.folder))
    wanted = _job(problems, identity, kernels, options)
    # of the ranks of one launch the first decides what to do, and speaks
    if options.ranks.count == 1:
        stored = _stored(storage, wanted, options)
    else:
        stored = jobs.named(storage, share(lambda: _stored(storage, wanted, options).name, group()))
    speaks = options.ranks.rank == 0
    listener = _listener(speaks)
    try:
        with Presence(storage, stored.study_id, {"gpu": identity.name}, options.pace) as presence:
            setting = Setting(
                gpu=gpu,
                identity=identity,
                provenance=PREDICTED if options.predicted else MEASURED,
                kernels=kernels,
                root=options.root,
                storage=storage,
                stored=stored,
                presence=presence,
                also=_other_roots(options.root),
            )
            with (benches or _benches)(setting, options) as bench_of:
                rows = campaign.run(setting, bench_of, Budget(options.seconds or stored.job.seconds), listener)
    finally:
        listener.close()
    if rows and speaks:
        Console(soft_wrap=True).print(table(rows, options.predicted))
    return rows


def identity_of(gpu: Gpu, options: Options) -> Identity:
    """Whose the records are."""
    return device.predicted_identity(gpu) if options.predicted else device.identity(gpu)


def default_storage(folder: str) -> Path:
    """The journal of a GPU in the user's cache.  folder: "sm90_h100"."""
    return ladder.user_cache().parent / "studies" / f"{folder}.journal"


def tasks_of(problems: dict[str, Problem], directions: Iterable[Direction]) -> tuple[Task, ...]:
    """The searches for these problems; of those that share a bucket only the first is searched for.

    A call looks its config up by bucket, so that they would get the same record anyway.
    """
    found: list[Task] = []
    for direction in directions:
        named = of_layers(direction, problems, shapes.NAMED)
        buckets: dict[tuple, str] = {}
        for name, problem in named.items():
            buckets.setdefault(CallProblem(**problem.to_json()).bucket(), name)
        found += [Task(name, direction, named[name]) for name in buckets.values()]
    return tuple(found)


def _job(problems: dict[str, Problem], identity: Identity, kernels: dict[str, str], options: Options) -> Job:
    tasks = tasks_of(problems, options.directions)
    return Job(
        gpu=identity.folder,
        predicted=options.predicted,
        tasks=tasks,
        trials=options.trials,
        seconds=options.seconds or DEFAULT_S,
        seed=options.seed,
        timing=options.timing,
        l2=options.l2,
        kernels=jobs.digest(kernels),
        spaces={direction: it.space.fingerprint() for direction, it in PASSES.items()},
        max_error=options.max_error,
    )


def _stored(storage: Storage, job: Job, options: Options) -> Stored:
    """A new job, or the one that is to go on; one that is done, with more time where some is given.

    Errors: JobError, StorageError.
    """
    if options.join is None:
        return jobs.create(storage, job)
    works = options.join == "work"
    end = time.monotonic() + (options.wait_s if works else 0.0)
    while True:
        found = jobs.latest(storage, job)
        done = found is not None and jobs.is_done(storage, found)
        # a worker wants work; whoever goes on with a job that is done, and gives no time, is told what it found
        if found is not None and not (works and done):
            return jobs.prolong(storage, found, options.seconds) if done and options.seconds is not None else found
        if time.monotonic() >= end:
            option = "--worker" if works else "--resume"
            raise JobError(f"there is nothing to go on with in {storage.name}; start `ssdgen tune` without {option}")
        time.sleep(_LOOK_S)


def _benches(setting: Setting, options: Options) -> AbstractContextManager[Callable[[Task], Bench]]:
    """What judges candidates, as the job wants it."""
    count, job = options.jobs or default_jobs(), setting.stored.job
    if job.predicted:
        return predict.benches(setting.gpu, count)
    users = Users(setting.identity, setting.kernels)
    timing: Any = job.timing
    l2: Any = job.l2
    return measure.benches(setting.gpu, count, job.seed, timing, l2, users, job.max_error)


def _other_roots(root: Path) -> tuple[Path, ...]:
    """Folders with records of other GPUs or of before, where a search may begin from."""
    places = (templates.data_folder("tuned"), ladder.user_cache())
    return tuple(place for place in places if place != root and place.is_dir())


def _listener(speaks: bool) -> Listener:
    if not speaks:
        return PlainProgress(lambda text: None)
    console = Console(stderr=True)
    return BarProgress(console) if console.is_terminal else PlainProgress(_say)


def _say(text: str) -> None:
    # at once: whoever follows a log wants to see it move
    print(text, file=sys.stderr, flush=True)
