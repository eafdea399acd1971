"""The searches of a job, one after the other, each record stored as it is found.  tasks -> records

Every process of a job goes through all of its searches in the same order.  The first that is through with one judges
the finalists; what it found is the record of all of them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Literal, Protocol

from ..gpus import Gpu
from ..pack import store
from ..pack.records import DIRECTIONS, MEASURED, PREDICTED, Identity, Record, records_from_json, records_to_json
from ..plan.problem import Problem
from . import prior
from .budget import Budget
from .errors import ProblemError, TuneError
from .jobs import Stored, Task
from .ledger import Claim, Ledger
from .passes import PASSES
from .presence import Presence
from .recording import record_of
from .results import Bench, Config, Event, Outcome, Result, key_of
from .storage import Storage
from .study import POLL_S, Limits, Search

# configs of other problems that a search begins with
WARM = 4
# octaves that a record of another GPU counts as further away, of its architecture and of another
RELATED, FOREIGN = 1.0, 4.0


class Listener(Protocol):
    """Hears what happens; see progress."""

    def begin(self, name: str, index: int, count: int, trials: int | None, seconds: float | None) -> None: ...
    def event(self, event: Event) -> None: ...
    def end(self, row: Row) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Row:
    """The end of one search.  stored: whether its record is better than what was there.

    elsewhere: whether another process, or an earlier one, had ended it.  record: None if nothing was found.
    """

    name: str
    problem: Problem
    outcome: Outcome
    stored: bool
    elsewhere: bool = False
    record: Record | None = None

    @property
    def speedup(self) -> float | None:
        """Over the default config, if both are known."""
        found = self.outcome
        return found.default.time_us / found.best.time_us if found.best and found.default else None


@dataclass(frozen=True)
class Setting:
    """What all searches of a campaign share.

    kernels: {kernel: fingerprint} of the emitted kernels of today.  root: folder of the records.  also: other such
    folders, to begin from.  stored: the job, and storage: where it lies; presence: this process among those at work.
    """

    gpu: Gpu
    identity: Identity
    provenance: Literal["measured", "predicted"]
    kernels: dict[str, str]
    root: Path
    storage: Storage
    stored: Stored
    presence: Presence
    also: tuple[Path, ...] = ()


def run(
    setting: Setting,
    bench_of: Callable[[Task], Bench],
    budget: Budget,
    listener: Listener,
) -> list[Row]:
    """Do every search and store what is found.  Ctrl-C ends the campaign after the record of that problem.

    Errors: RecordError for a file that cannot be read, before anything is searched; StoreError; TuneError, of which
    StorageError is one, after the best so far was stored.
    """
    folder = setting.root / setting.identity.folder
    # what is stored is merged into all of them, and none must turn out to be broken by then
    known = {folder: [record for direction in DIRECTIONS for record in store.read(folder, direction)]}
    store.read_identity(folder)
    store.check_writable(setting.root, setting.identity.folder)
    known |= _read_also((setting.root, *setting.also), folder)
    campaign = _Campaign(setting, bench_of, budget, listener, known)
    try:
        return campaign.run()
    finally:
        campaign.close()


class _Campaign:
    """The state of one campaign.  known: {folder: its records}."""

    def __init__(
        self,
        setting: Setting,
        bench_of: Callable[[Task], Bench],
        budget: Budget,
        listener: Listener,
        known: dict[Path, list[Record]],
    ) -> None:
        self._setting, self._bench_of, self._budget, self._listener = setting, bench_of, budget, listener
        self._known, self._folder = known, setting.root / setting.identity.folder
        self._tasks = setting.stored.job.tasks
        # one trial for each search: who judges the finalists, and the record
        self._ends = Ledger(setting.storage, setting.stored.name, setting.presence)
        self._searches: dict[Task, Search] = {}

    def run(self) -> list[Row]:
        rows: list[Row] = []
        for index, task in enumerate(self._tasks):
            row = self._elsewhere(task)
            if row is None:
                seconds = self._begin(index)
                row = self._search(index, seconds)
            rows.append(row)
            self._listener.end(row)
            if row.outcome.stopped:
                break
        return rows

    def close(self) -> None:
        for search in self._searches.values():
            search.close()
        self._searches.clear()

    def _begin(self, index: int) -> float | None:
        """Announce a search; when its share of the time is over, on the budget's clock."""
        ended = self._ends.taken()
        left = sum(_key(task) not in ended for task in self._tasks[index:])
        deadline = self._budget.deadline(max(1, left))
        seconds = None if deadline is None else deadline - self._budget.now()
        trials = self._setting.stored.job.trials
        self._listener.begin(self._tasks[index].name, index, len(self._tasks), trials, seconds)
        return deadline

    def _search(self, index: int, deadline: float | None) -> Row:
        task = self._tasks[index]
        now = self._budget.now
        least = 0.0 if deadline is None else max(0.0, deadline - now()) / 2
        limits = Limits(deadline, least, now, over=lambda: _key(task) in self._ends.taken())
        search: Search | None = None
        claim: Claim | None = None
        try:
            search = self._opened(task)
            search.loop(limits)
            while claim is None:
                # another process judges the finalists; if it dies they are ours
                if row := self._elsewhere(task):
                    return row
                if _key(task) in self._ends.taken():
                    time.sleep(POLL_S)
                else:
                    claim = self._ends.claim(_end_of(task))
            self._ahead(index, search.outcome())
            search.finish()
            return self._end(task, search.outcome(), claim)
        except ProblemError as error:
            # other problems may fit; and what was found before it did no more, is
            outcome = search.outcome() if search else Outcome(None, None, 0, 0)
            outcome = outcome if outcome.best else replace(outcome, reason=str(error))
            return self._end(task, outcome, claim or self._ends.claim(_end_of(task)))
        except KeyboardInterrupt:
            if claim:
                self._ends.drop(claim)
            outcome = search.outcome(stopped=True) if search else Outcome(None, None, 0, 0, stopped=True)
            return self._end(task, outcome, None)
        except TuneError:
            # what was found is not lost with the storage, or with the GPU
            if search and (best := search.outcome()).best:
                self._store(self._record(task, best))
            raise

    def _end(self, task: Task, outcome: Outcome, claim: Claim | None) -> Row:
        """Store what was found and, with a claim on the end of the search, tell the others."""
        if outcome.best is None:
            if claim:
                self._ends.reject(claim, outcome.reason)
            return Row(task.name, task.problem, outcome, False)
        record = self._record(task, outcome)
        kept = self._store(record)
        if claim:
            told = {"tried": outcome.tried, "rejected": outcome.rejected}
            self._ends.complete(claim, outcome.best, record=records_to_json([record], task.direction), told=told)
        return Row(task.name, task.problem, outcome, kept, record=record)

    def _elsewhere(self, task: Task) -> Row | None:
        """The row of a search that has ended, here before or in another process; its record is stored here too."""
        ended = next((each for each in self._ends.ended() if each.config == _end_of(task)), None)
        if ended is None:
            return None
        if ended.result is None:
            reason = self._ends.attribute(ended.number, "reason")
            return Row(task.name, task.problem, Outcome(None, None, 0, 0, reason=reason), False, elsewhere=True)
        source = f"{self._setting.stored.name} in {self._setting.storage.name}"
        (record,) = records_from_json(self._ends.attribute(ended.number, "record"), source, task.direction)
        default = Result({}, record.default_us) if record.default_us else None
        best = Result(record.config, record.time_us, record.spread_us, record.error, record.error_limit)
        outcome = Outcome(best, default, **self._ends.attribute(ended.number, "told"))
        return Row(task.name, task.problem, outcome, self._store(record), elsewhere=True, record=record)

    def _opened(self, task: Task) -> Search:
        if task not in self._searches:
            setting, job = self._setting, self._setting.stored.job
            space = PASSES[task.direction].space
            warm, known = warm_start(task, self._known, self._folder), list[Config]()
            if setting.provenance == PREDICTED:
                # what the model thinks of them is all that will ever be known
                known = [config for config in warm if config["schedule"] in space.SCHEDULES]
                known += space.starts(task.problem, setting.gpu)
            guessed = prior.ranked(task.direction, task.problem, setting.gpu, job.seed, known)
            self._searches[task] = Search(
                task.problem,
                setting.gpu,
                space,
                self._bench_of(task),
                Ledger(setting.storage, setting.stored.study_of(task), setting.presence),
                seed=self._seed(),
                trials=job.trials,
                warm=guessed if setting.provenance == PREDICTED else warm,
                prior=guessed,
                listener=self._listener.event,
            )
        return self._searches[task]

    def _seed(self) -> int:
        """The job's own for the process that is alone; another for each of several, which would suggest the same."""
        setting = self._setting
        others = [about for about in setting.presence.others() if setting.presence.alive(about["name"])]
        own = zlib.crc32(setting.presence.name.encode()) if others else 0
        return setting.stored.job.seed + own

    def _ahead(self, index: int, outcome: Outcome) -> None:
        """Have the next search compile its first candidates while the GPU judges finalists."""
        ended = self._ends.taken()
        task = self._tasks[index]
        later = next((each for each in self._tasks[index + 1 :] if _key(each) not in ended), None)
        if later is None:
            return
        if outcome.best:
            # not final, and near enough to begin with
            self._known[self._folder] = [*self._known[self._folder], self._record(task, outcome)]
        self._opened(later).begin()

    def _record(self, task: Task, outcome: Outcome) -> Record:
        assert outcome.best is not None
        setting = self._setting
        return record_of(
            task.direction, task.problem, outcome.best, setting.provenance, setting.kernels, outcome.default
        )

    def _store(self, record: Record) -> bool:
        setting = self._setting
        kept = store.save(setting.root, setting.identity, [record], setting.kernels)
        # what was entered before the finalists were judged goes
        of_it = (record.problem, record.direction)
        others = [old for old in self._known[self._folder] if (old.problem, old.direction) != of_it]
        self._known[self._folder] = [*others, record]
        return bool(kept)


def warm_start(task: Task, known: dict[Path, list[Record]], own: Path) -> list[Config]:
    """Configs of the most similar problems of the same pass, the problem itself first; legality is the search's matter.

    known: {folder: its records}; own: the folder of this GPU.
    """

    def distance(folder: Path, record: Record) -> tuple[float, bool]:
        problem, other = task.problem, record.problem
        sizes = ("batch", "seqlen", "nheads", "ngroups")
        tiles = ("headdim", "dstate")
        far = sum(abs(log2(getattr(problem, size) / getattr(other, size))) for size in sizes)
        # what fits into a tile decides more than how many tiles there are
        far += 4 * sum(abs(log2(getattr(problem, size) / getattr(other, size))) for size in tiles)
        if folder.name != own.name:
            far += RELATED if _arch(folder) == _arch(own) else FOREIGN
        return far + (problem.dtype != other.dtype), record.provenance != MEASURED

    near = sorted(
        (
            (distance(folder, record), record.config)
            for folder, records in known.items()
            for record in records
            if record.direction == task.direction
        ),
        key=lambda pair: pair[0],
    )
    return [config for _, config in near[:WARM]]


def _read_also(roots: tuple[Path, ...], own: Path) -> dict[Path, list[Record]]:
    """Records of other GPUs and from other folders.  Errors: RecordError for a file that cannot be read."""
    files = [path for root in roots for path in root.glob(f"*/{store.identity_path(own).name}")]
    folders = sorted({path.parent for path in files} - {own})
    return {folder: [record for d in DIRECTIONS for record in store.read(folder, d)] for folder in folders}


def _arch(folder: Path) -> str:
    return folder.name.partition("_")[0]


def _end_of(task: Task) -> Config:
    """What the trial says that stands for the end of a search."""
    return {"search": task.name}


def _key(task: Task) -> str:
    return key_of(_end_of(task))
