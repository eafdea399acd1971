"""The searches for a list of problems, one after the other, each record stored as it is found.  problems -> records"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Literal, Protocol

import optuna

from ..gpus import Gpu
from ..pack import store
from ..pack.records import DIRECTIONS, FORWARD, MEASURED, Direction, Identity, Record
from ..plan.problem import Problem
from . import study
from .budget import Budget
from .choices import Space
from .errors import RejectedError
from .results import Bench, Config, Event, Outcome
from .study import Limits

# configs of other problems that a search begins with
WARM = 4


class Listener(Protocol):
    """Hears what happens; see progress."""

    def begin(self, name: str, index: int, count: int, trials: int | None, seconds: float | None) -> None: ...
    def event(self, event: Event) -> None: ...
    def end(self, row: Row) -> None: ...


@dataclass(frozen=True)
class Row:
    """The end of one search.  stored: whether its record is better than what was there."""

    name: str
    problem: Problem
    outcome: Outcome
    stored: bool

    @property
    def speedup(self) -> float | None:
        """Over the default config, if both are known."""
        found = self.outcome
        return found.default.time_us / found.best.time_us if found.best and found.default else None


@dataclass(frozen=True)
class Setting:
    """What all searches of a campaign share.

    kernels: {kernel: fingerprint} of the emitted kernels of today.  used: names of the emitted kernels that a config
    launches for a problem.  root: folder of the records.  direction: the pass that is searched for.
    """

    gpu: Gpu
    space: Space
    identity: Identity
    provenance: Literal["measured", "predicted"]
    kernels: dict[str, str]
    used: Callable[[Config, Problem], Iterable[str]]
    root: Path
    trials: int | None
    ahead: int
    seed: int
    storage: optuna.storages.BaseStorage | None = None
    direction: Direction = FORWARD


def run(
    problems: dict[str, Problem],
    setting: Setting,
    bench_of: Callable[[Problem], Bench],
    budget: Budget,
    listener: Listener,
    after: int = 0,
) -> list[Row]:
    """Search for each problem and store what is found.  Ctrl-C ends the campaign after the record of that problem.

    after: problems of later campaigns that share the budget.
    Errors: RecordError for a file that cannot be read, before anything is searched; StoreError; TuneError.
    """
    folder = setting.root / setting.identity.folder
    # what is stored is merged into all of them, and none must turn out to be broken by then
    stored = {direction: store.read(folder, direction) for direction in DIRECTIONS}
    known = list(stored[setting.direction])
    store.read_identity(folder)
    store.check_writable(setting.root, setting.identity.folder)
    rows: list[Row] = []
    for index, (name, problem) in enumerate(problems.items()):
        left = len(problems) - index
        deadline = budget.deadline(left + after)
        listener.begin(name, index, len(problems), setting.trials, deadline and deadline - budget.now())
        try:
            outcome = study.run(
                problem,
                setting.gpu,
                setting.space,
                bench_of(problem),
                Limits(setting.trials, deadline, setting.ahead, budget.now),
                seed=setting.seed,
                warm=warm_start(problem, known),
                listener=listener.event,
                storage=setting.storage,
                name=study_name(problem, setting),
            )
        except KeyboardInterrupt:
            # before the search itself had begun
            outcome = Outcome(None, None, 0, 0, stopped=True)
        except RejectedError as error:
            # the problem itself does not fit; the others may
            outcome = Outcome(None, None, 0, 0, reason=str(error))
        kept: list[Record] = []
        if outcome.best:
            record = record_of(problem, outcome, setting)
            kept = store.save(setting.root, setting.identity, [record], setting.kernels)
            known.append(record)
        rows.append(Row(name, problem, outcome, bool(kept)))
        listener.end(rows[-1])
        if outcome.stopped:
            break
    return rows


def record_of(problem: Problem, outcome: Outcome, setting: Setting) -> Record:
    """The record of a search that found something."""
    best = outcome.best
    assert best is not None
    names = sorted(set(setting.used(best.config, problem)))
    return Record(
        problem=problem,
        config=best.config,
        provenance=setting.provenance,
        time_us=best.time_us,
        spread_us=best.spread_us,
        default_us=outcome.default.time_us if outcome.default else None,
        error=best.error,
        error_limit=best.error_limit,
        fingerprint={name: setting.kernels[name] for name in names},
        space=setting.space.fingerprint(),
        direction=setting.direction,
    )


def warm_start(problem: Problem, known: Iterable[Record]) -> list[Config]:
    """Configs of the most similar problems, the problem itself first; legality is the search's to check."""

    def distance(record: Record) -> tuple[float, bool]:
        other = record.problem
        sizes = ("batch", "seqlen", "nheads", "ngroups")
        tiles = ("headdim", "dstate")
        far = sum(abs(log2(getattr(problem, size) / getattr(other, size))) for size in sizes)
        # what fits into a tile decides more than how many tiles there are
        far += 4 * sum(abs(log2(getattr(problem, size) / getattr(other, size))) for size in tiles)
        return far + (problem.dtype != other.dtype), record.provenance != MEASURED

    return [record.config for record in sorted(known, key=distance)[:WARM]]


def study_name(problem: Problem, setting: Setting) -> str:
    """A study goes on only for the same problem, GPU, space and kernels."""
    sizes = ",".join(str(value) for value in problem.to_json().values())
    kernels = ",".join(sorted(setting.kernels.values()))
    meaning = hashlib.sha256(kernels.encode()).hexdigest()[:16]
    return f"{setting.identity.folder}/{setting.provenance}/{sizes}/{setting.space.fingerprint()}/{meaning}"
