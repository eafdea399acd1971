"""Which config comes next: lost ones, the given ones, then what Optuna suggests.  Choices, Ledger -> Trial -> study

The sampler has a study in memory, where it learns from every trial of the ledger, from what others judged too.  What it
suggests in vain stays there.
"""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from .choices import Choices, Parameters
from .ledger import Claim, Ended, Ledger
from .results import Config, Result, key_of

# known suggestions in a row after which the space counts as searched through, and draws for a legal one
MOST_IN_VAIN = 200
# trials that are drawn at random before the sampler models anything
RANDOM_TRIALS = 12


@dataclass(frozen=True)
class Trial:
    """A legal config that nobody tried before, entered in the ledger.

    sampled: its number in the sampler's study; None if it is not in the space.
    """

    claim: Claim
    config: Config
    sampled: int | None

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
        self._sampled, self._numbers = _study(seed), random.Random(seed)
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
                state = TrialState.COMPLETE if each.result else TrialState.PRUNED
                time_us = each.result.time_us if each.result else None
                self._add(state, each.parameters, each.distributions, time_us)
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
            if trial := self._begin(config, self._choices.parameters(config)):
                return trial
            if self._full():
                return None
        for _ in range(MOST_IN_VAIN):
            suggested = self._sampled.ask()
            config = self._legal_near(self._choices.suggest(suggested))
            if config is None or key_of(config) in taken:
                known = None if config is None else self._times.get(key_of(config))
                # once more what it is worth, or the sampler would not see that it repeats itself
                self._tell(suggested.number, TrialState.FAIL if known is None else TrialState.COMPLETE, known)
                continue
            if config == self._choices.config(suggested.params):
                trial = self._begin(config, suggested.params, suggested.number)
            else:
                self._tell(suggested.number, TrialState.FAIL)
                trial = self._begin(config, self._choices.parameters(config))
            if trial is not None:
                return trial
            if self._full():
                return None
        return None

    def passed(self, trial: Trial, result: Result) -> bool:
        """Write the result; False if another process has taken the trial over."""
        self._times[key_of(trial.config)] = result.time_us
        self._tell(trial.sampled, TrialState.COMPLETE, result.time_us)
        return self._ledger.complete(trial.claim, result)

    def rejected(self, trial: Trial, reason: str) -> bool:
        """Write that it is out; False as with `passed`."""
        # pruned: worse than all that have a time
        self._tell(trial.sampled, TrialState.PRUNED)
        return self._ledger.reject(trial.claim, reason)

    def dropped(self, trial: Trial) -> None:
        """The search ends before it was judged, or in the middle of it."""
        self._tell(trial.sampled, TrialState.FAIL)
        self._ledger.drop(trial.claim)

    def _full(self) -> bool:
        return self._most is not None and self._ledger.count() >= self._most

    def _legal_near(self, parameters: Parameters) -> Config | None:
        """The config of a suggestion or, if that is illegal, of one near to it.

        Most suggestions are illegal in a space of many axes.  To tell the sampler so would cost it its speed, which
        goes down with every trial that it knows.
        """
        tried = parameters
        for _ in range(MOST_IN_VAIN):
            config = self._choices.config(tried)
            if self._legal(config) is None:
                return config
            tried = self._choices.near(parameters, self._numbers)
        return None

    def _begin(self, config: Config, parameters: Parameters | None, sampled: int | None = None) -> Trial | None:
        """Enter a trial in the ledger and, where the sampler did not suggest it, in the sampler's study."""
        distributions = self._choices.distributions(parameters) if parameters else None
        claim = self._ledger.claim(config, parameters, distributions, self._most)
        if claim is None:
            self._tell(sampled, TrialState.FAIL)
            return None
        self._known.add(claim.number)
        if parameters and sampled is None:
            sampled = self._add(TrialState.RUNNING, parameters, distributions or {})
        return Trial(claim, config, sampled)

    def _add(
        self,
        state: TrialState,
        parameters: Parameters,
        distributions: dict[str, BaseDistribution],
        time_us: float | None = None,
    ) -> int:
        """Let the sampler know of a trial that it did not suggest; the number of that."""
        self._sampled.add_trial(
            create_trial(state=state, value=time_us, params=parameters, distributions=distributions)
        )
        return self._sampled.get_trials(deepcopy=False)[-1].number

    def _tell(self, sampled: int | None, state: TrialState, time_us: float | None = None) -> None:
        if sampled is not None:
            self._sampled.tell(sampled, time_us, state=state, skip_if_finished=True)


def _study(seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        # three options of the sampler are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # axes of one schedule are modelled together, and candidates that are being judged count as bad
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, group=True, constant_liar=True
        )
    return optuna.create_study(sampler=sampler)
