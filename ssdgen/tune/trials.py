"""Which config comes next: lost ones, the given ones, then what Optuna suggests.  Choices, Ledger -> Trial -> study

The sampler has a study in memory, where it learns from every trial of the ledger, from what others judged too, and from
illegal suggestions; these are many, and no storage sees them.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState, create_trial

from .choices import Choices
from .ledger import Claim, Ended, Ledger
from .results import Config, Result, key_of

# illegal or known suggestions in a row after which the space counts as searched through
MOST_IN_VAIN = 200
# trials that are drawn at random before the sampler models anything
RANDOM_TRIALS = 12


@dataclass(frozen=True)
class Trial:
    """A legal config that nobody tried before, entered in the ledger.  optuna: None if it is not in the space."""

    claim: Claim
    config: Config
    optuna: optuna.Trial | None

    @property
    def number(self) -> int:
        return self.claim.number


class Trials:
    """Suggests configs and learns from what became of them.

    legal: the reason why a config is not, or None.  given: configs to begin with.  most: trials of all processes
    together, or None.
    """

    def __init__(
        self,
        choices: Choices,
        legal: Callable[[Config], str | None],
        given: Iterable[Config],
        seed: int,
        ledger: Ledger,
        most: int | None = None,
    ) -> None:
        self._choices, self._legal, self._ledger, self._most = choices, legal, ledger, most
        self._sampled = _study(seed)
        self._given = deque(given)
        # numbers of trials that the sampler knows, or will know from this process
        self._known: set[int] = set()
        # of configs that passed, here or elsewhere
        self._times: dict[str, float] = {}

    def others(self) -> list[Ended]:
        """Trials that ended elsewhere since the last time; the sampler learns from them."""
        ended = [each for each in self._ledger.ended() if each.number not in self._known]
        self._known |= {each.number for each in ended}
        for each in ended:
            if each.result:
                self._times[key_of(each.config)] = each.result.time_us
            if each.parameters:
                self._sampled.add_trial(
                    create_trial(
                        state=TrialState.COMPLETE if each.result else TrialState.PRUNED,
                        value=each.result.time_us if each.result else None,
                        params=each.parameters,
                        distributions=each.distributions,
                    )
                )
        return ended

    def next(self) -> Trial | None:
        """The next one, or None if nothing new is left, or others have begun the last."""
        if self._full():
            return None
        taken = self._ledger.taken()
        # in front of all others: somebody had begun them
        self._given.extendleft(config for config in reversed(self._ledger.lost()) if config not in self._given)
        while self._given:
            config = self._given.popleft()
            if self._legal(config) is not None or key_of(config) in taken:
                continue
            if trial := self._begin(config, self._suggested(config)):
                return trial
            if self._full():
                return None
        for _ in range(MOST_IN_VAIN):
            suggested = self._sampled.ask()
            config = self._choices.config(suggested)
            if self._legal(config) is not None:
                self._sampled.tell(suggested, state=TrialState.PRUNED)
            elif (time_us := self._times.get(key_of(config))) is not None:
                # once more, or the sampler would not see that it repeats itself
                self._sampled.tell(suggested, time_us)
            elif key_of(config) in taken:
                # it does not learn from a failed trial, and what is being judged says nothing yet
                self._sampled.tell(suggested, state=TrialState.FAIL)
            elif trial := self._begin(config, suggested):
                return trial
            elif self._full():
                return None
        return None

    def passed(self, trial: Trial, result: Result) -> bool:
        """Write the result; False if another process has taken the trial over."""
        self._times[key_of(trial.config)] = result.time_us
        if trial.optuna is not None:
            self._sampled.tell(trial.optuna, result.time_us)
        return self._ledger.complete(trial.claim, result)

    def rejected(self, trial: Trial, reason: str) -> bool:
        """Write that it is out; False as with `passed`."""
        if trial.optuna is not None:
            # pruned: worse than all that have a time
            self._sampled.tell(trial.optuna, state=TrialState.PRUNED)
        return self._ledger.reject(trial.claim, reason)

    def dropped(self, trial: Trial) -> None:
        """The search ends before it was judged, or in the middle of it."""
        if trial.optuna is not None:
            self._sampled.tell(trial.optuna, state=TrialState.FAIL, skip_if_finished=True)
        self._ledger.drop(trial.claim)

    def _full(self) -> bool:
        return self._most is not None and self._ledger.count() >= self._most

    def _begin(self, config: Config, suggested: optuna.Trial | None) -> Trial | None:
        parameters = suggested.params if suggested else None
        claim = self._ledger.claim(config, parameters, suggested.distributions if suggested else None, self._most)
        if claim is None:
            if suggested is not None:
                self._sampled.tell(suggested, state=TrialState.FAIL)
            return None
        self._known.add(claim.number)
        return Trial(claim, config, suggested)

    def _suggested(self, config: Config) -> optuna.Trial | None:
        """A config as the sampler would have suggested it, or None if it is not in the space."""
        parameters = self._choices.parameters(config)
        if parameters is None:
            return None
        self._sampled.enqueue_trial(parameters)
        trial = self._sampled.ask()
        # taking the values in the order of the axes makes them the trial's own
        self._choices.config(trial)
        return trial


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # three options of the sampler are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # axes of one schedule are modelled together, and candidates that are being judged count as bad
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    return optuna.create_study(sampler=sampler)
