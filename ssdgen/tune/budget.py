"""How long a search may take.  "8m" -> seconds -> Budget -> study"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from statistics import median_low

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class BudgetError(ValueError):
    """A duration that cannot be understood."""


def seconds(text: str) -> float:
    """Seconds of "90s", "8m", "1.5h", "1h30m" or a plain number of seconds.  Errors: BudgetError."""
    plain = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", plain)
    if parts and "".join(number + unit for number, unit in parts) == plain:
        total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", plain):
        total = float(plain)
    else:
        raise BudgetError(f"budget is {text!r}; give a time such as 90s, 8m or 1h30m")
    if total <= 0:
        raise BudgetError(f"budget is {text!r}; it must be more than nothing")
    return total


class Budget:
    """Time that is left, shared out evenly among the problems that are still to come.

    What a search takes after its deadline, to judge its finalists once more, is expected of the next ones too: else the
    first ones would have all of a short time.  total_s: seconds, or None for no end.  clock: seconds, for tests.
    """

    def __init__(self, total_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if total_s is None else clock() + total_s
        self._last: float | None = None
        self._beyond: list[float] = []

    def deadline(self, problems_left: int) -> float | None:
        """When the next of so many problems has had its share, on the clock of `now`; None for never."""
        if self._end is None:
            return None
        now = self._clock()
        if self._last is not None:
            self._beyond.append(max(0.0, now - self._last))
        share = max(0.0, self._end - now) / problems_left
        # one that was late for another reason, as the first is, must not leave the next ones nothing
        expected = min(median_low(self._beyond), share / 2) if self._beyond else 0.0
        self._last = now + share - expected
        return self._last

    def now(self) -> float:
        return self._clock()
