"""One run of `ssdgen tune`: a campaign for each pass.  problems, Gpu, Options -> rows, printed and stored"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from ..emit import fingerprint
from ..gpus import Gpu
from ..mamba2_ops.backward_defaults import default_backward
from ..mamba2_ops.decode_defaults import default_decode
from ..mamba2_ops.defaults import default_config
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack import templates
from ..pack.records import BACKWARD, DECODE, FORWARD, MEASURED, PREDICTED, Direction
from ..plan import backward_space, decode_space, space
from ..plan.problem import Problem
from . import campaign, decoding, device, measure, predict, shapes
from .budget import Budget
from .campaign import Listener, Row, Setting
from .choices import Space
from .errors import TuneError
from .passes import PASSES
from .pool import default_jobs
from .progress import BarProgress, PlainProgress, table
from .results import Bench, Config


@dataclass(frozen=True)
class Options:
    """root: folder of the records.  predicted: by compiling, not on a GPU.  seconds: for all searches together.

    trials: per search at most, or None.  timing: "graph" or "eager"; l2: "cold" or "warm".  jobs: processes that
    compile, or None for one per core.  journal: file that keeps the trials, or None.  directions: the passes to search
    for, one after the other.
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
    directions: tuple[Direction, ...] = (FORWARD,)


def run(problems: dict[str, Problem], gpu: Gpu, options: Options) -> list[Row]:
    """Search, show progress, store records and print a table.  Errors: as `campaign.run`."""
    templates.load()
    console = Console(stderr=True)
    listener = BarProgress(console) if console.is_terminal else PlainProgress(lambda text: print(text, file=sys.stderr))
    budget, rows = Budget(options.seconds), []
    try:
        for index, setting in enumerate(_settings(gpu, options)):
            later = len(options.directions) - index - 1
            rows += _search(
                _named(problems, setting.direction), setting, options, budget, listener, later * len(problems)
            )
            if any(row.outcome.stopped for row in rows):
                break
    finally:
        listener.close()
    if rows:
        Console(soft_wrap=True).print(table(rows, options.predicted))
    return rows


def _settings(gpu: Gpu, options: Options) -> list[Setting]:
    """What the searches of each pass share."""
    jobs = options.jobs or default_jobs()
    kernels, storage = fingerprint.of_package(), _journal(options.journal)
    identity = device.predicted_identity(gpu) if options.predicted else device.identity(gpu)
    return [
        Setting(
            gpu=gpu,
            space=SPACES[direction],
            identity=identity,
            provenance=PREDICTED if options.predicted else MEASURED,
            kernels=kernels,
            used=partial(used_kernels, direction=direction),
            root=options.root,
            trials=options.trials,
            ahead=jobs,
            seed=options.seed,
            storage=storage,
            direction=direction,
        )
        for direction in options.directions
    ]


def _search(
    problems: dict[str, Problem], setting: Setting, options: Options, budget: Budget, listener: Listener, after: int
) -> list[Row]:
    """The campaign of one pass, with processes of its own."""
    benches: AbstractContextManager[Callable[[Problem], Bench]]
    if options.predicted:
        benches = predict.benches(setting.gpu, setting.ahead, setting.direction)
    else:
        gpu, how = setting.gpu, (options.timing, options.l2)
        benches = measure.benches(gpu, setting.ahead, options.seed, *how, setting.direction)
    with benches as bench_of:
        return campaign.run(problems, setting, bench_of, budget, listener, after)


def _named(problems: dict[str, Problem], direction: Direction) -> dict[str, Problem]:
    """The problems by names that say which pass is searched for."""
    if direction == DECODE:
        return decoding.problems(problems, shapes.NAMED)
    return problems if direction == FORWARD else {f"{name} {direction}": each for name, each in problems.items()}


class _ForwardSpace:
    """The search space of plans, with the default that a user without records gets."""

    def __getattr__(self, name: str) -> Any:
        return getattr(space, name)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        return default_config(CallProblem(**problem.to_json()), gpu.sms)


class _BackwardSpace:
    """The same for the backward pass."""

    def __getattr__(self, name: str) -> Any:
        return getattr(backward_space, name)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        return default_backward(CallProblem(**problem.to_json()), gpu.sms, gpu.arch)


class _DecodeSpace:
    """The same for a decode step."""

    def __getattr__(self, name: str) -> Any:
        return getattr(decode_space, name)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        return default_decode(CallProblem(**problem.to_json()), gpu.sms)


SPACES: dict[Direction, Space] = {FORWARD: _ForwardSpace(), BACKWARD: _BackwardSpace(), DECODE: _DecodeSpace()}


def used_kernels(config: Config, problem: Problem, direction: Direction = FORWARD) -> list[str]:
    """Names of the emitted kernels that a config launches."""
    it = PASSES[direction]
    return [launch.kernel.__name__ for launch in it.plan(config, it.draw(problem, "meta", 0, False), False).launches]


def _journal(path: Path | None) -> BaseStorage | None:
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError) as error:  # no right to it, or no journal
        raise TuneError(f"cannot use the journal {path}: {error}; name another file with --journal") from error
