"""Which config comes next: the given ones, then what Optuna suggests.  Choices -> Trial -> study"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from .choices import Choices
from .results import Config, Result, key_of

# illegal or known suggestions in a row after which the space counts as searched through
MOST_IN_VAIN = 200
# trials that are drawn at random before the sampler models anything
RANDOM_TRIALS = 12


@dataclass(frozen=True)
class Trial:
    """A legal config that was not tried before.  optuna: None if the config is not in the space."""

    number: int
    config: Config
    optuna: optuna.Trial | None


class Trials:
    """Suggests configs and learns from what became of them.

    legal: the reason why a config is not, or None.  given: configs to begin with.  storage, name: where trials are
    kept; a study of that name goes on where it stopped.
    """

    def __init__(
        self,
        choices: Choices,
        legal: Callable[[Config], str | None],
        given: Iterable[Config],
        seed: int,
        storage: optuna.storages.BaseStorage | None = None,
        name: str | None = None,
    ) -> None:
        self._choices, self._legal = choices, legal
        self._study = _study(seed, storage, name)
        # what became of a config: its time, None if it was rejected or is being judged
        self._times: dict[str, float | None] = {}
        self._begun = 0
        self.earlier = [_result(trial) for trial in self._study.get_trials(states=[TrialState.COMPLETE])]
        self._times.update({key_of(result.config): result.time_us for result in self.earlier})
        self._given = deque(given)

    def next(self) -> Trial | None:
        """The next one, or None if nothing new is left."""
        while self._given:
            config = self._given.popleft()
            if self._legal(config) is None and key_of(config) not in self._times:
                return self._begin(config, self._enqueued(config))
        for _ in range(MOST_IN_VAIN):
            trial = self._study.ask()
            config = self._choices.config(trial)
            if self._legal(config) is not None:
                self._study.tell(trial, state=TrialState.PRUNED)
            elif key_of(config) not in self._times:
                return self._begin(config, trial)
            elif (time_us := self._times[key_of(config)]) is not None:
                self._remember(trial, Result(config, time_us))
            else:
                # the sampler does not learn from a failed trial, and what is being judged says nothing yet
                self._study.tell(trial, state=TrialState.FAIL)
        return None

    def passed(self, trial: Trial, result: Result) -> None:
        self._times[key_of(trial.config)] = result.time_us
        if trial.optuna is not None:
            self._remember(trial.optuna, result)

    def rejected(self, trial: Trial, reason: str) -> None:
        if trial.optuna is not None:
            trial.optuna.set_user_attr("reason", reason)
            # pruned: worse than all that have a time
            self._study.tell(trial.optuna, state=TrialState.PRUNED)

    def dropped(self, trial: Trial) -> None:
        """The search ends before it was judged, or in the middle of it."""
        if trial.optuna is not None:
            self._study.tell(trial.optuna, state=TrialState.FAIL, skip_if_finished=True)

    def _begin(self, config: Config, trial: optuna.Trial | None) -> Trial:
        self._times[key_of(config)] = None
        self._begun += 1
        return Trial(self._begun, config, trial)

    def _enqueued(self, config: Config) -> optuna.Trial | None:
        parameters = self._choices.parameters(config)
        if parameters is None:
            return None
        self._study.enqueue_trial(parameters)
        trial = self._study.ask()
        # taking the values in the order of the axes makes them the trial's own
        self._choices.config(trial)
        return trial

    def _remember(self, trial: optuna.Trial, result: Result) -> None:
        trial.set_user_attr("config", json.dumps(result.config, sort_keys=True))
        trial.set_user_attr("spread_us", result.spread_us)
        trial.set_user_attr("error", result.error)
        trial.set_user_attr("error_limit", result.error_limit)
        self._study.tell(trial, result.time_us)


def _study(seed: int, storage: optuna.storages.BaseStorage | None, name: str | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # three options of the sampler are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # axes of one schedule are modelled together, and candidates that are being judged count as bad
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    return optuna.create_study(sampler=sampler, storage=storage, study_name=name, load_if_exists=storage is not None)


def _result(trial: optuna.trial.FrozenTrial) -> Result:
    kept = trial.user_attrs
    assert trial.value is not None
    return Result(json.loads(kept["config"]), trial.value, kept["spread_us"], kept["error"], kept.get("error_limit"))
