"""Searches for the tests: a journal as the tuner leaves it, one schedule's chunk deciding the time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from ssdgen.report import studies
from ssdgen.report.studies import History

NAME = "sm90_h200/20260102-030405-0a1b/2.7b"


def history(name: str = NAME, seed: int = 0) -> History:
    found = studies.history(_study(None, name, seed))
    assert found is not None
    return found


def journal(path: Path) -> Path:
    _study(JournalStorage(JournalFileBackend(str(path))), NAME, 0)
    return path


def add_foreign(path: Path) -> None:
    """A study that is none of the tuner's, in the same file."""
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="of another program")
    study.tell(study.ask(), 1.0)


def _study(storage: BaseStorage | None, name: str, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    draw = random.Random(seed)
    study = optuna.create_study(storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler(seed=seed))
    for number in range(48):
        trial = study.ask()
        schedule = trial.suggest_categorical("schedule", ["split", "segments"])
        chunk = trial.suggest_categorical(f"{schedule}:chunk", [32, 64, 128, 256])
        warps = trial.suggest_categorical("num_warps", [2, 4, 8])
        trial.set_user_attr("config", json.dumps({"schedule": schedule, "chunk": chunk, "kernels": {}}))
        if number == 3:
            trial.set_user_attr("reason", "needs too much shared memory")
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        study.tell(trial, 50 + chunk + 0.1 * warps + draw.random() + (500 if schedule == "segments" else 0))
    return study
