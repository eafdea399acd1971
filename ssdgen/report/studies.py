"""Searches as they went, and which axes mattered.  Optuna's storage -> History -> page

optuna-dashboard opens the same storage.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

# with fewer trials of a schedule an importance says more of chance than of the axis
LEAST_TRIALS = 8
# An importance says how well an axis tells the fastest share of the trials from the rest.  A search has tens of trials,
# and the best tenth of them, Optuna's default, is three.
FASTER = 0.5

# as tune.jobs gives it: the GPU, when the search began, the shape and the pass
_NAME = re.compile(
    r"[^/]+/(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)-(?P<hour>\d\d)(?P<minute>\d\d)\d\d-\w+/(?P<shape>.+)"
)


class StudyError(ValueError):
    """A storage cannot be read.  The message holds no user and no password."""


@dataclass(frozen=True)
class History:
    """One search.

    trials: (number, microseconds) of those that passed, in order; rejected: how many did not.  schedule: the one with
    the best trial; importances: of its axes, largest first, adding up to 1; empty with too few trials.
    """

    name: str
    trials: tuple[tuple[int, float], ...]
    rejected: int
    schedule: str
    importances: dict[str, float]

    @property
    def title(self) -> str:
        """What was searched for, and when the search began; any other name as it is."""
        found = _NAME.fullmatch(self.name)
        return (
            "{shape}, begun on {year}-{month}-{day} at {hour}:{minute}".format(**found.groupdict())
            if found
            else self.name
        )

    @property
    def best(self) -> tuple[tuple[int, float], ...]:
        """(number, microseconds) whenever a trial was faster than all before it."""
        found: list[tuple[int, float]] = []
        for number, time_us in self.trials:
            if not found or time_us < found[-1][1]:
                found.append((number, time_us))
        return tuple(found)


def read(where: str | Path) -> list[History]:
    """Every search in a journal file, or in a database if `where` is a URL; those that found nothing are left out.

    Errors: StudyError.
    """
    storage = _open(str(where))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
        studies = [optuna.load_study(study_name=each.study_name, storage=storage) for each in summaries]
        found = [history(study) for study in sorted(studies, key=lambda study: study.study_name)]
    except Exception as error:  # whatever a driver of a database raises; it may quote the address
        raise StudyError(f"cannot read the studies in {shown(str(where))}: {type(error).__name__}") from None
    return [each for each in found if each is not None]


def history(study: optuna.Study) -> History | None:
    """A study of the tuner's, or None if no trial of it passed or it is none of the tuner's."""
    ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    passed = [trial for trial in ended if trial.state == TrialState.COMPLETE and _schedule(trial)]
    passed = [trial for trial in passed if trial.value is not None and isfinite(trial.value)]
    if not passed:
        return None
    best = min(passed, key=lambda trial: trial.value or 0.0)
    schedule = _schedule(best)
    return History(
        name=study.study_name,
        trials=tuple((trial.number, float(trial.value or 0.0)) for trial in passed),
        rejected=len(ended) - len(passed),
        schedule=schedule,
        importances=_importances([trial for trial in passed if _schedule(trial) == schedule]),
    )


def _importances(trials: list[FrozenTrial]) -> dict[str, float]:
    """PED-ANOVA over the trials of one schedule, which share its axes.  It needs nothing but NumPy."""
    # a config that was given and is not in the space has no parameters
    trials = [trial for trial in trials if trial.params]
    common = Counter(name for trial in trials for name in trial.params)
    varied = [
        name
        for name, count in common.items()
        if count == len(trials) and name != "schedule" and len({trial.params[name] for trial in trials}) > 1
    ]
    if len(trials) < LEAST_TRIALS or not varied:
        return {}
    with warnings.catch_warnings():
        # the evaluator is called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        alone = optuna.create_study()
        alone.add_trials(trials)
        found = get_param_importances(
            alone, evaluator=PedAnovaImportanceEvaluator(target_quantile=FASTER), params=varied
        )
    # an axis that only one schedule has is called "schedule:axis"
    return {name.rpartition(":")[2]: float(value) for name, value in found.items() if isfinite(value)}


def _schedule(trial: FrozenTrial) -> str:
    """The schedule of a trial's config; "" where it is no trial of the tuner's."""
    try:
        config = json.loads(trial.user_attrs["config"])
        return str(config["schedule"])
    except (KeyError, TypeError, ValueError):
        return ""


def _open(where: str) -> BaseStorage:
    if "://" in where:
        try:
            return optuna.storages.get_storage(where)
        except Exception as error:  # see `read`
            raise StudyError(f"cannot open {shown(where)}: {type(error).__name__}; check the address") from None
    if not Path(where).is_file():
        raise StudyError(f"there is no journal {where}; `ssdgen tune` writes one, name it with --storage")
    try:
        with open(where, encoding="utf-8") as file:
            # Optuna takes a file without a single entry for an empty journal
            if (first := file.readline()) and "op_code" not in json.loads(first):
                raise ValueError
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(where))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise StudyError(f"{where} is no journal of trials ({type(error).__name__}); name another file") from error


def shown(where: str) -> str:
    """A file, or a database without what stands before its host."""
    scheme, found, rest = where.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if found else where
