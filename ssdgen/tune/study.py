"""The search for one problem: try, judge, learn, until the time is up.  Space, Bench, Ledger -> Outcome -> campaign"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from ..gpus import Gpu
from ..plan.problem import Problem
from .choices import Choices, Space
from .errors import RejectedError
from .ledger import Ledger
from .results import Bench, Config, Event, Listener, Outcome, Result, key_of
from .trials import Trial, Trials

# candidates that are judged once more at the end, beside the default
FINALISTS = 4
# how often a process with nothing to do looks at what the others do
POLL_S = 0.2


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Limits:
    """When to stop.  deadline: on `clock`, seconds, or None; over: whether another process has ended the search.

    least: seconds that a search has from its first result on, whatever the deadline is: until then workers start, and a
    first search would end with the default alone.
    """

    deadline: float | None = None
    least: float = 0.0
    clock: Callable[[], float] = time.monotonic
    over: Callable[[], bool] = _never


class Search:
    """The search for the fastest config of a problem.

    The default comes first, then `warm`, the starts of the space, `prior` and the minimal config of each schedule, then
    what the sampler (TPE, seeded) suggests.  Illegal suggestions are never judged.  What stands in the ledger is known
    already.  trials: candidates of all processes together at most, or None.

    Use: `begin`, if compilers are idle before its turn; `loop`; `finish`; at last, in any case, `close`.
    """

    def __init__(
        self,
        problem: Problem,
        gpu: Gpu,
        space: Space,
        bench: Bench,
        ledger: Ledger,
        *,
        seed: int,
        trials: int | None = None,
        warm: Iterable[Config] = (),
        prior: Iterable[Config] = (),
        listener: Listener = lambda event: None,
    ) -> None:
        choices = Choices(space, problem, gpu)
        default = space.default(problem, gpu)
        self._default = key_of(default)
        # a config from an older space may not even have the axes that legality is decided by
        given = [default, *(config for config in warm if choices.parameters(config) is not None)]
        given += [*space.starts(problem, gpu), *prior]
        given += [space.minimal(schedule, problem) for schedule in space.SCHEDULES]

        def legal(config: Config) -> str | None:
            # what runs without a record is judged, whatever the space thinks of it: it is what a record has to beat
            return None if key_of(config) == self._default else space.legal(config, problem, gpu)

        self._trials = Trials(choices, legal, given, seed, ledger, trials)
        self._ledger, self._bench, self._listener, self._given = ledger, bench, listener, len(given)
        self._limits = Limits()
        self._waiting: list[tuple[Trial, Future[Any]]] = []
        self._passed: dict[str, Result] = {}
        self._rejected = self._begun = 0
        self._reason = ""
        self._best: Result | None = None
        # when this process had its first result
        self._first: float | None = None
        self._hear_of_others()

    def begin(self) -> None:
        """Have the first candidates compiled, and return at once."""
        self._fill()

    def loop(self, limits: Limits) -> None:
        """Prepare, judge, learn.  Errors: TuneError and ProblemError from the bench, StorageError."""
        self._limits = limits
        while not limits.over():
            self._hear_of_others()
            self._fill()
            if self._late() and (self._best or not self._waiting):
                break
            if self._waiting:
                if (chosen := self._ready()) is not None:
                    self._judge(*self._waiting[chosen])
                    self._waiting.pop(chosen)
            elif self._ledger.elsewhere():
                # what they have may turn out to be the best, or become free when they die
                time.sleep(POLL_S)
            else:
                break
        self._drop()

    def finish(self) -> None:
        """Judge the best ones once more; who fails now is out.  A deadline is no end of this."""
        self._hear_of_others()
        others = sorted(self._passed.values(), key=lambda result: result.time_us)
        found: list[Result] = []
        while others and not found:
            batch, others = others[:FINALISTS], others[FINALISTS:]
            if self._default in self._passed and all(key_of(result.config) != self._default for result in batch):
                batch.append(self._passed[self._default])
            found = self._finals(batch)
        self._passed = {key_of(result.config): result for result in found}
        self._best = self._fastest()

    def close(self) -> None:
        """Give back what was not judged."""
        self._drop()

    def outcome(self, stopped: bool = False) -> Outcome:
        default = self._passed.get(self._default)
        reason = "" if self._best else self._reason
        return Outcome(self._best, default, self._begun, self._rejected, stopped, reason)

    def _fill(self) -> None:
        while len(self._waiting) < max(1, self._bench.ahead) and self._may_begin():
            trial = self._trials.next()
            if trial is None:
                break
            self._waiting.append((trial, self._bench.prepare(trial.config)))

    def _may_begin(self) -> bool:
        # a config that runs is worth more than the time, and the given ones are few
        return not self._late() or (self._best is None and self._begun + len(self._waiting) < self._given)

    def _late(self) -> bool:
        limits = self._limits
        if limits.deadline is None or limits.clock() < limits.deadline:
            return False
        return self._first is None or limits.clock() >= self._first + limits.least

    def _ready(self) -> int | None:
        """Which candidate to judge now; None if none is compiled yet, after a moment."""
        if self._bench.in_order:
            return 0
        done, _ = wait([prepared for _, prepared in self._waiting], POLL_S, FIRST_COMPLETED)
        return next((at for at, (_, prepared) in enumerate(self._waiting) if prepared in done), None)

    def _judge(self, trial: Trial, prepared: Future[Any]) -> None:
        self._tell("begun", trial)
        self._begun += 1
        try:
            result = self._bench.run(trial.config, prepared, self._best.time_us if self._best else None)
        except RejectedError as error:
            self._rejected += 1
            self._reason = str(error)
            self._trials.rejected(trial, self._reason)
            self._tell("rejected", trial, reason=self._reason)
            return
        # where the trial was taken from this process its result is as good, and the ledger has another
        self._trials.passed(trial, result)
        self._keep(result)
        self._first = self._limits.clock() if self._first is None else self._first
        self._tell("passed", trial, result=result)

    def _hear_of_others(self) -> None:
        for each in self._trials.others():
            self._begun += 1
            if each.result is None:
                self._rejected += 1
            else:
                self._keep(each.result)

    def _keep(self, result: Result) -> None:
        self._passed[key_of(result.config)] = result
        self._best = self._fastest()

    def _tell(self, kind: Any, trial: Trial, **more: Any) -> None:
        default = self._passed.get(self._default)
        self._listener(Event(kind, trial.number, trial.config, best=self._best, default=default, **more))

    def _drop(self) -> None:
        waiting, self._waiting = self._waiting, []
        for trial, prepared in waiting:
            prepared.cancel()
            self._trials.dropped(trial)

    def _finals(self, batch: list[Result]) -> list[Result]:
        try:
            return self._bench.finals(batch)
        except RejectedError as error:
            self._reason = str(error)
            # one of them takes the others down: each for itself, and the culprit is out
            return [] if len(batch) == 1 else [result for each in batch for result in self._finals([each])]

    def _fastest(self) -> Result | None:
        return min(self._passed.values(), key=lambda result: result.time_us, default=None)
