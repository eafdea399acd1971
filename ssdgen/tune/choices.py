"""The search space as Optuna sees it.  plan.space axes <-> categorical parameters -> study"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from ..gpus import Gpu
from ..mamba2_ops.problem import Problem as CallProblem
from ..plan.problem import Problem
from .results import Config

# {parameter of Optuna: value}, the schedule among them
Parameters = dict[str, Any]

# how many axes of an illegal suggestion are drawn anew at a time
CHANGED = (1, 2, 3)


class Axis(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def values(self) -> tuple[Any, ...]: ...


class Space(Protocol):
    """What `plan.space` offers, as a module or as an object."""

    @property
    def SCHEDULES(self) -> tuple[str, ...]: ...
    def axes(self, schedule: str, problem: Problem, gpu: Gpu) -> tuple[Axis, ...]: ...
    def config(self, schedule: str, assignment: dict[str, Any]) -> Config: ...
    def flatten(self, config: Config) -> dict[str, Any]: ...
    def legal(self, config: Config, problem: Problem, gpu: Gpu) -> str | None: ...
    def minimal(self, schedule: str, problem: Problem) -> Config: ...
    def default(self, problem: Problem, gpu: Gpu) -> Config: ...
    def starts(self, problem: Problem, gpu: Gpu) -> tuple[Config, ...]: ...
    def fingerprint(self) -> str: ...


class PackagedSpace:
    """A space of plans, with the default of the package: what runs where nobody tuned.

    plans: `plan.space` or another module or object with its names.
    """

    def __init__(self, plans: Any, default: Callable[[CallProblem, Gpu], Config]) -> None:
        self._plans, self._default = plans, default

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plans, name)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        return self._default(CallProblem(**problem.to_json()), gpu)


class Choices:
    """The axes of every schedule, conditional on the schedule that a trial takes."""

    def __init__(self, space: Space, problem: Problem, gpu: Gpu) -> None:
        self._space = space
        self._axes = {s: tuple(space.axes(s, problem, gpu)) for s in space.SCHEDULES}

    def suggest(self, trial: optuna.Trial) -> Parameters:
        """What a trial takes for each axis of its schedule."""
        schedule = trial.suggest_categorical("schedule", list(self._axes))
        for axis in self._axes[schedule]:
            trial.suggest_categorical(self._parameter(schedule, axis), list(axis.values))
        return trial.params

    def config(self, parameters: Parameters) -> Config:
        """The config of a trial; it may be illegal."""
        schedule = parameters["schedule"]
        chosen = {axis.name: parameters[self._parameter(schedule, axis)] for axis in self._axes[schedule]}
        return self._space.config(schedule, chosen)

    def near(self, parameters: Parameters, numbers: random.Random) -> Parameters:
        """The same schedule with a few other values, by chance."""
        schedule = parameters["schedule"]
        changed = numbers.sample(self._axes[schedule], k=min(len(self._axes[schedule]), numbers.choice(CHANGED)))
        return {**parameters, **{self._parameter(schedule, axis): numbers.choice(axis.values) for axis in changed}}

    def distributions(self, parameters: Parameters) -> dict[str, BaseDistribution]:
        """What each parameter is drawn from, as Optuna has it."""
        schedule = parameters["schedule"]
        found: dict[str, BaseDistribution] = {"schedule": CategoricalDistribution(list(self._axes))}
        for axis in self._axes[schedule]:
            found[self._parameter(schedule, axis)] = CategoricalDistribution(list(axis.values))
        return found

    def parameters(self, config: Config) -> Parameters | None:
        """The trial that would suggest this config, or None if it is not in the space."""
        schedule = config["schedule"]
        if schedule not in self._axes:
            return None
        flat = self._space.flatten(config)
        found: Parameters = {"schedule": schedule}
        for axis in self._axes[schedule]:
            # what does not matter to a config does not stand in it, and may be anything
            value = flat.get(axis.name, axis.values[0])
            if value not in axis.values:
                return None
            found[self._parameter(schedule, axis)] = value
        return found if self.config(found) == config else None

    def _parameter(self, schedule: str, axis: Axis) -> str:
        """The axis's own name where all schedules that have it agree on its values: what is learned is then shared.

        Optuna allows a name one list of values only.
        """
        same = (
            other.values == axis.values for axes in self._axes.values() for other in axes if other.name == axis.name
        )
        return axis.name if all(same) else f"{schedule}:{axis.name}"
