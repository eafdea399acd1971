"""What is known of a candidate.  bench -> Result -> study, campaign"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Config = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A candidate that passed.  time_us, spread_us: median and interquartile range of GPU time, microseconds.

    spread_us, error, error_limit: None if the time is a prediction.  error: |y - ref| / |ref| against float64, or that
    of the gradient that comes nearest to its limit; error_limit: what it may be.
    """

    config: Config
    time_us: float
    spread_us: float | None = None
    error: float | None = None
    error_limit: float | None = None


@dataclass(frozen=True)
class Event:
    """One step of a search.  number: of the trial, in the search of all processes together.

    reason: why the candidate is out; result: what it reached; best: the best up to here; default: what the default
    config reached, once it is known.
    """

    kind: Literal["begun", "passed", "rejected"]
    number: int
    config: Config
    result: Result | None = None
    reason: str = ""
    best: Result | None = None
    default: Result | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of a search for one problem.  best: None if no candidate passed; then `reason` is the last one's.

    default: what the default config reached, or None.  tried: candidates that were judged, by all processes; rejected:
    those that were out.  stopped: by Ctrl-C.
    """

    best: Result | None
    default: Result | None
    tried: int
    rejected: int
    stopped: bool = False
    reason: str = ""


Listener = Callable[[Event], None]


class Bench(Protocol):
    """Judges candidates for one problem.

    ahead: candidates to prepare at the same time, the one that is being judged included.  in_order: whether they are
    judged as they were prepared, or whichever is ready first.
    """

    @property
    def ahead(self) -> int: ...
    @property
    def in_order(self) -> bool: ...

    def prepare(self, config: Config) -> Future[Any]:
        """Begin what can be done while other candidates are judged."""
        ...

    def run(self, config: Config, prepared: Future[Any], best_us: float | None) -> Result:
        """Judge a candidate.  Errors: RejectedError."""
        ...

    def finals(self, results: list[Result]) -> list[Result]:
        """Judge the best ones again, side by side; those that fail now are left out."""
        ...


def key_of(config: Config) -> str:
    """The same text for the same config."""
    return json.dumps(config, sort_keys=True)
