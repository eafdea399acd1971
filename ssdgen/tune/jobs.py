"""What a run of `ssdgen tune` is to search for, as other processes and later ones read it.  Storage <-> Job -> session

A job is a study of its own.  Its attributes say what to do and who is at work, its trials are the ends of its searches:
one process re-times the finalists of a search, and what it found is the record for all.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..pack.records import Direction
from ..plan.problem import Problem
from .errors import TuneError
from .ledger import Ledger, open_study
from .storage import Storage

# of what stands in a storage: another number, and neither understands the other
SCHEMA = 1
_ATTRIBUTE = "ssdgen"


class JobError(TuneError):
    """There is no job to go on with, or it is not for this process: another GPU, version or set of kernels."""


@dataclass(frozen=True)
class Task:
    """One search: a pass of a problem.  name: as people read it."""

    name: str
    direction: Direction
    problem: Problem

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "direction": self.direction, "problem": self.problem.to_json()}


@dataclass(frozen=True)
class Job:
    """gpu: folder of its records, "sm90_h100".  kernels: digest of the emitted kernels.  spaces: {pass: fingerprint}.

    trials: candidates of a search at most, of all processes together, or None.  seconds: for all searches together.
    max_error: what a candidate's error may be at most, beside the limits that all have, or None.
    searches: the job whose searches this one takes further, or None where it has its own.
    """

    gpu: str
    predicted: bool
    tasks: tuple[Task, ...]
    trials: int | None
    seconds: float
    seed: int
    timing: str
    l2: str
    kernels: str
    spaces: Mapping[str, str]
    max_error: float | None = None
    searches: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tasks": [task.to_json() for task in self.tasks], "schema": SCHEMA}


@dataclass(frozen=True)
class Stored:
    """A job in a storage.  name: of its study; study_id: Optuna's number of that."""

    job: Job
    name: str
    study_id: int

    def study_of(self, task: Task) -> str:
        """The name of the study that is the ledger of a search."""
        return f"{self.job.searches or self.name}/{task.name}"


def digest(kernels: Mapping[str, str]) -> str:
    """One short text for the meaning of all kernels.  kernels: {name: fingerprint}."""
    return hashlib.sha256(",".join(f"{name}={kernels[name]}" for name in sorted(kernels)).encode()).hexdigest()[:16]


def create(storage: Storage, job: Job) -> Stored:
    """Write a new job.  Errors: StorageError."""
    name = f"{job.gpu}/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    with storage.guard():
        study_id = open_study(storage, name)
        storage.optuna.set_study_user_attr(study_id, _ATTRIBUTE, job.to_json())
    return Stored(job, name, study_id)


def prolong(storage: Storage, stored: Stored, seconds: float) -> Stored:
    """A job that takes the searches of one that is done further, for so long.  Errors: StorageError."""
    return create(
        storage, replace(stored.job, seconds=seconds, trials=None, searches=stored.job.searches or stored.name)
    )


def named(storage: Storage, name: str) -> Stored:
    """The job of a study.  Errors: JobError if it is none; StorageError."""
    with storage.guard():
        for study in storage.optuna.get_all_studies():
            if study.study_name == name and _ATTRIBUTE in study.user_attrs:
                job = _from_json(study.user_attrs[_ATTRIBUTE], f"the study {name} in {storage.name}")
                return Stored(job, name, study._study_id)
    raise JobError(f"{storage.name} has no job {name}; all processes of a job need the same storage")


def is_done(storage: Storage, stored: Stored) -> bool:
    """Whether all of its searches have ended.  Errors: StorageError."""
    return len(Ledger(storage, stored.name).ended()) >= len(stored.job.tasks)


def latest(storage: Storage, wanted: Job) -> Stored | None:
    """The newest job for the GPU and the kernels of `wanted`, which need not have the same tasks; None: there is none.

    Errors: JobError where there are jobs, and all are for others; StorageError.
    """
    with storage.guard():
        studies = [study for study in storage.optuna.get_all_studies() if _ATTRIBUTE in study.user_attrs]
    jobs = [(study, study.user_attrs[_ATTRIBUTE]) for study in sorted(studies, key=lambda study: study._study_id)]
    if not jobs:
        return None
    if not (readable := [each for each in jobs if isinstance(each[1], dict) and each[1].get("schema") == SCHEMA]):
        found = {str(data.get("schema") if isinstance(data, dict) else None) for _, data in jobs}
        raise JobError(
            f"{storage.name} holds studies of schema {', '.join(sorted(found))}, and this ssdgen reads {SCHEMA}; use "
            "the ssdgen that made them, or another storage"
        )
    if not (here := [each for each in readable if _for(each[1]) == _for(wanted.to_json())]):
        others = ", ".join(sorted({_for(data) for _, data in readable}))
        raise JobError(
            f"the studies in {storage.name} are for {others}, and this is {_for(wanted.to_json())}: times do not "
            "compare; start `ssdgen tune` for it without --resume or --worker"
        )
    study, data = here[-1]
    job = _from_json(data, f"the study {study.study_name} in {storage.name}")
    if job.kernels != wanted.kernels or any(wanted.spaces.get(name) != value for name, value in job.spaces.items()):
        raise JobError(
            f"the study {study.study_name} in {storage.name} is for other kernels than this ssdgen has; use the ssdgen "
            "that made it, or start anew without --resume"
        )
    return Stored(job, study.study_name, study._study_id)


def _for(data: dict[str, Any]) -> str:
    return f"{data['gpu']}, predicted" if data["predicted"] else data["gpu"]


def _from_json(data: dict[str, Any], source: str) -> Job:
    try:
        tasks = tuple(Task(each["name"], each["direction"], Problem(**each["problem"])) for each in data["tasks"])
        rest = {name: value for name, value in data.items() if name not in ("schema", "tasks")}
        return Job(tasks=tasks, **rest)
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(f"{source} cannot be understood ({error}); start anew without --resume") from error
