"""Who judges which candidate, and what came of it, shared by all processes of a search.  Storage <-> Ledger -> trials

One study of Optuna is the ledger of one search.  A trial is written before it begins, with its config and the process
that has it, and again when it ends; what a dead process had under way is taken over.  Of two processes that begin the
same config at the same moment the first in the ledger goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .presence import Presence
from .results import Config, Result, key_of
from .storage import Storage

# processes that a candidate may take down with it before nobody tries it again
MOST_LOST = 2

_JUDGED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Claim:
    """A trial that this process has.  number: in the ledger, from 1."""

    trial_id: int
    number: int
    key: str


@dataclass(frozen=True)
class Ended:
    """A trial with an end.  result: None if the candidate is out.  parameters, distributions: Optuna's, if any."""

    number: int
    config: Config
    result: Result | None
    parameters: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class Ledger:
    """The trials of one search.  presence: this process; None where there is no other.

    Errors of every method: StorageError.
    """

    def __init__(self, storage: Storage, name: str, presence: Presence | None = None) -> None:
        self._storage, self._presence = storage, presence
        self._me = presence.name if presence else "alone"
        with storage.guard():
            self._study_id = open_study(storage, name)

    def claim(
        self,
        config: Config,
        parameters: dict[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
        most: int | None = None,
    ) -> Claim | None:
        """Begin a trial, unless another process has the config or `most` trials have begun before it: then None."""
        key = key_of(config)
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(parameters or {}),
            distributions=dict(distributions or {}),
            user_attrs={"config": key, "process": self._me},
            system_attrs={},
            intermediate_values={},
        )
        with self._storage.guard():
            trial_id = self._storage.optuna.create_new_trial(self._study_id, template_trial=trial)
            number = self._storage.optuna.get_trial(trial_id).number
            before = [other for other in self._trials() if other.number < number and self._stands(other)]
            found = Claim(trial_id, number + 1, key)
            if any(other.user_attrs["config"] == key for other in before) or (most is not None and len(before) >= most):
                self._end(found, TrialState.FAIL, {"withdrawn": True})
                return None
        return found

    def complete(self, claim: Claim, result: Result, **more: Any) -> bool:
        """Write a result; False if the trial was taken from this process, which was thought dead."""
        known = {name: value for name, value in asdict(result).items() if name not in ("config", "time_us")}
        with self._storage.guard():
            return self._end(claim, TrialState.COMPLETE, {"result": known, **more}, result.time_us)

    def reject(self, claim: Claim, reason: str) -> bool:
        """The candidate is out: worse than any that has a time."""
        with self._storage.guard():
            return self._end(claim, TrialState.PRUNED, {"reason": reason})

    def drop(self, claim: Claim) -> None:
        """The search ends before it was judged."""
        with self._storage.guard():
            self._end(claim, TrialState.FAIL, {"dropped": True})

    def count(self) -> int:
        """Trials that were judged or are under way."""
        with self._storage.guard():
            return sum(self._stands(trial) for trial in self._trials())

    def taken(self) -> set[str]:
        """Keys of the configs that nobody should begin: judged, under way, or the end of too many processes."""
        with self._storage.guard():
            trials = self._trials()
            deadly = {key for key, times in _losses(trials).items() if times >= MOST_LOST}
            return deadly | {trial.user_attrs["config"] for trial in trials if self._stands(trial)}

    def elsewhere(self) -> bool:
        """Whether a living process has a trial under way that is not of this one."""
        with self._storage.guard():
            return any(
                trial.state == TrialState.RUNNING and trial.user_attrs["process"] != self._me and self._stands(trial)
                for trial in self._trials()
            )

    def ended(self, after: int = 0) -> list[Ended]:
        """Trials with an end and a number above `after`."""
        with self._storage.guard():
            return [_ended(trial) for trial in self._trials() if trial.state in _JUDGED and trial.number >= after]

    def attribute(self, number: int, name: str) -> Any:
        """What `complete` was given beside the result of a trial."""
        with self._storage.guard():
            return self._trials()[number - 1].user_attrs[name]

    def lost(self) -> list[Config]:
        """Take from dead processes what they had; configs that somebody must begin again, oldest first."""
        with self._storage.guard():
            trials = self._trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and not self._stands(trial):
                    self._end(Claim(trial._trial_id, trial.number + 1, ""), TrialState.FAIL, {"lost": True})
            trials = self._trials()
            standing = {trial.user_attrs["config"] for trial in trials if self._stands(trial)}
        return [json.loads(key) for key, times in _losses(trials).items() if key not in standing and times < MOST_LOST]

    def _trials(self) -> list[FrozenTrial]:
        return self._storage.optuna.get_all_trials(self._study_id, deepcopy=False)

    def _stands(self, trial: FrozenTrial) -> bool:
        """Whether a trial was judged, or is under way in a process that lives."""
        if trial.state != TrialState.RUNNING:
            return trial.state in _JUDGED
        owner = trial.user_attrs["process"]
        return owner == self._me or (self._presence is not None and self._presence.alive(owner))

    def _end(self, claim: Claim, state: TrialState, notes: dict[str, Any], value: float | None = None) -> bool:
        optuna = self._storage.optuna
        try:
            # first what came of it, then that it is over: whoever sees the end sees all
            for name, note in notes.items():
                optuna.set_trial_user_attr(claim.trial_id, name, note)
            optuna.set_trial_state_values(claim.trial_id, state, None if value is None else [value])
        except UpdateFinishedTrialError:
            return False
        return True


def open_study(storage: Storage, name: str) -> int:
    """The id of a study, which is made if it is not there."""
    optuna = storage.optuna
    try:
        return optuna.create_new_study([StudyDirection.MINIMIZE], name)
    except DuplicatedStudyError:
        return optuna.get_study_id_from_name(name)


def _losses(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Of each config that was begun and not judged: how many processes died in it."""
    found: dict[str, int] = {}
    for trial in trials:
        if "lost" in trial.user_attrs or "dropped" in trial.user_attrs:
            key = trial.user_attrs["config"]
            found[key] = found.get(key, 0) + ("lost" in trial.user_attrs)
    return found


def _ended(trial: FrozenTrial) -> Ended:
    config = json.loads(trial.user_attrs["config"])
    result = None
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        result = Result(config, trial.value, **trial.user_attrs["result"])
    return Ended(trial.number + 1, config, result, trial.params, trial.distributions)
