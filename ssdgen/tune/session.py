"""One run of `ssdgen tune`: a campaign with everything it needs.  problems, Gpu, Options -> rows, printed and stored"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from ..emit import fingerprint
from ..gpus import Gpu
from ..mamba2_ops.defaults import default_config
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack import templates
from ..pack.records import MEASURED, PREDICTED
from ..plan import space
from ..plan.problem import Problem
from . import campaign, device, inputs, kernels, measure, predict
from .budget import Budget
from .campaign import Row, Setting
from .errors import TuneError
from .pool import default_jobs
from .progress import BarProgress, PlainProgress, table
from .results import Bench, Config


@dataclass(frozen=True)
class Options:
    """root: folder of the records.  predicted: by compiling, not on a GPU.  seconds: for all problems together.

    trials: per problem at most, or None.  timing: "graph" or "eager"; l2: "cold" or "warm".  jobs: processes that
    compile, or None for one per core.  journal: file that keeps the trials, or None.
    """

    root: Path
    predicted: bool
    seconds: float
    trials: int | None
    seed: int
    timing: Any
    l2: Any
    jobs: int | None
    journal: Path | None


def run(problems: dict[str, Problem], gpu: Gpu, options: Options) -> list[Row]:
    """Search, show progress, store records and print a table.  Errors: as `campaign.run`."""
    templates.load()
    jobs = options.jobs or default_jobs()
    setting = Setting(
        gpu=gpu,
        space=_Space(),
        identity=device.predicted_identity(gpu) if options.predicted else device.identity(gpu),
        provenance=PREDICTED if options.predicted else MEASURED,
        kernels=fingerprint.of_package(),
        used=used_kernels,
        root=options.root,
        trials=options.trials,
        ahead=jobs,
        seed=options.seed,
        storage=_journal(options.journal),
    )
    benches: AbstractContextManager[Callable[[Problem], Bench]]
    if options.predicted:
        benches = predict.benches(gpu, jobs)
    else:
        benches = measure.benches(gpu, jobs, options.seed, options.timing, options.l2)
    console = Console(stderr=True)
    listener = BarProgress(console) if console.is_terminal else PlainProgress(lambda text: print(text, file=sys.stderr))
    try:
        with benches as bench_of:
            rows = campaign.run(problems, setting, bench_of, Budget(options.seconds), listener)
    finally:
        listener.close()
    if rows:
        Console(soft_wrap=True).print(table(rows, options.predicted))
    return rows


class _Space:
    """The search space of plans, with the default that a user without records gets."""

    def __getattr__(self, name: str) -> Any:
        return getattr(space, name)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        return default_config(CallProblem(**problem.to_json()), gpu.sms)


def used_kernels(config: Config, problem: Problem) -> list[str]:
    """Names of the emitted kernels that a config launches."""
    return [launch.kernel.__name__ for launch in kernels.plan(config, inputs.random(problem, "meta", 0)).launches]


def _journal(path: Path | None) -> BaseStorage | None:
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError) as error:  # no right to it, or no journal
        raise TuneError(f"cannot use the journal {path}: {error}; name another file with --journal") from error
