"""The search for one problem: try, judge, learn, until the time is up.  Space, Bench -> Outcome -> campaign"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import optuna

from ..gpus import Gpu
from ..plan.problem import Problem
from .choices import Choices, Space
from .errors import RejectedError
from .results import Bench, Config, Event, Listener, Outcome, Result, key_of
from .trials import Trial, Trials

# candidates that are judged once more at the end, beside the default
FINALISTS = 4


@dataclass(frozen=True)
class Limits:
    """When to stop.  trials: candidates that are judged at most; deadline: on `clock`, seconds; None: no end.

    ahead: candidates that are prepared at the same time, the one that is being judged included.
    """

    trials: int | None = None
    deadline: float | None = None
    ahead: int = 1
    clock: Callable[[], float] = time.monotonic


def run(
    problem: Problem,
    gpu: Gpu,
    space: Space,
    bench: Bench,
    limits: Limits,
    *,
    seed: int,
    warm: Iterable[Config] = (),
    listener: Listener = lambda event: None,
    storage: optuna.storages.BaseStorage | None = None,
    name: str | None = None,
) -> Outcome:
    """Search for the fastest config of `problem`.

    The default comes first, then the minimal config of each schedule, those of `warm` and the starts of the space, then
    what the sampler (TPE, seeded) suggests.  Illegal suggestions are never judged.  A deadline or Ctrl-C ends the
    search and keeps what was found; past a deadline the given configs are still judged until one passes.
    storage, name: where trials are kept; a study of that name goes on where it stopped.
    Errors: TuneError from the bench.
    """
    choices = Choices(space, problem, gpu)
    default = space.default(problem, gpu)
    given = [default, *(space.minimal(schedule, problem) for schedule in space.SCHEDULES)]
    # a config from an older space may not even have the axes that legality is decided by
    given += [config for config in warm if choices.parameters(config) is not None]
    given += space.starts(problem, gpu)

    def legal(config: Config) -> str | None:
        # what runs without a record is judged, whatever the space thinks of it: it is what a record has to beat
        return None if key_of(config) == key_of(default) else space.legal(config, problem, gpu)

    trials = Trials(choices, legal, given, seed, storage, name)
    search = _Search(trials, bench, limits, listener, key_of(default), len(given))
    stopped = False
    try:
        search.loop()
        search.finish()
    except KeyboardInterrupt:
        stopped = True
    return search.outcome(stopped)


class _Search:
    """The state of one search."""

    def __init__(
        self, trials: Trials, bench: Bench, limits: Limits, listener: Listener, default: str, given: int
    ) -> None:
        self._trials, self._bench, self._limits, self._listener = trials, bench, limits, listener
        self._default, self._given = default, given
        self._passed: dict[str, Result] = {key_of(result.config): result for result in trials.earlier}
        self._best = self._fastest()
        self._tried = self._rejected = self._begun = 0
        self._reason = ""

    def loop(self) -> None:
        """Prepare, judge, learn."""
        waiting: deque[tuple[Trial, Future[Any]]] = deque()
        try:
            while True:
                while len(waiting) < max(1, self._limits.ahead) and self._may_begin():
                    trial = self._trials.next()
                    if trial is None:
                        break
                    self._begun += 1
                    waiting.append((trial, self._bench.prepare(trial.config)))
                if not waiting or (self._late() and self._best):
                    break
                self._judge(*waiting[0])
                waiting.popleft()
        finally:
            for trial, prepared in waiting:
                prepared.cancel()
                self._trials.dropped(trial)

    def finish(self) -> None:
        """Judge the best ones once more; who fails now is out."""
        others = sorted(self._passed.values(), key=lambda result: result.time_us)
        found: list[Result] = []
        while others and not found:
            batch, others = others[:FINALISTS], others[FINALISTS:]
            if self._default in self._passed and all(key_of(result.config) != self._default for result in batch):
                batch.append(self._passed[self._default])
            found = self._finals(batch)
        self._passed = {key_of(result.config): result for result in found}
        self._best = self._fastest()

    def outcome(self, stopped: bool) -> Outcome:
        default = self._passed.get(self._default)
        return Outcome(self._best, default, self._tried, self._rejected, stopped, "" if self._best else self._reason)

    def _may_begin(self) -> bool:
        if self._limits.trials is not None and self._begun >= self._limits.trials:
            return False
        # a config that runs is worth more than the time, and the given ones are few
        return not self._late() or (self._best is None and self._begun < self._given)

    def _late(self) -> bool:
        return self._limits.deadline is not None and self._limits.clock() >= self._limits.deadline

    def _judge(self, trial: Trial, prepared: Future[Any]) -> None:
        self._listener(Event("begun", trial.number, trial.config, best=self._best))
        self._tried += 1
        try:
            result = self._bench.run(trial.config, prepared, self._best.time_us if self._best else None)
        except RejectedError as error:
            self._rejected += 1
            self._reason = str(error)
            self._trials.rejected(trial, self._reason)
            self._listener(Event("rejected", trial.number, trial.config, reason=self._reason, best=self._best))
            return
        self._passed[key_of(trial.config)] = result
        self._best = self._fastest()
        self._trials.passed(trial, result)
        self._listener(Event("passed", trial.number, trial.config, result=result, best=self._best))

    def _finals(self, batch: list[Result]) -> list[Result]:
        try:
            return self._bench.finals(batch)
        except RejectedError as error:
            self._reason = str(error)
            # one of them takes the others down: each for itself, and the culprit is out
            return [] if len(batch) == 1 else [result for each in batch for result in self._finals([each])]

    def _fastest(self) -> Result | None:
        return min(self._passed.values(), key=lambda result: result.time_us, default=None)
