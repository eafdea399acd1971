"""What a person sees of a campaign: a bar on a terminal, plain lines elsewhere.  Event -> text"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .campaign import Row
from .results import Config, Event

# where nothing better is found, a line this often says that it is not over
QUIET_S = 20.0

# the largest kernel of each schedule
MAIN = ("single_pass", "chunk_scan", "chunk_gradients", "reverse_walk")


class Share:
    """How much of a search is done.  trials: at most, or None; seconds: that it may take, or None."""

    def __init__(self, trials: int | None, seconds: float | None, clock: Callable[[], float]) -> None:
        self._trials, self._seconds, self._clock, self._begun = trials, seconds, clock, clock()

    def done(self, number: int) -> tuple[float, float | None]:
        """The share of the time or of the trials, whichever ends first; and the seconds that are left, if known."""
        passed = self._clock() - self._begun
        shares = [passed / self._seconds] if self._seconds else []
        shares += [number / self._trials] if self._trials else []
        share = min(1.0, max(shares, default=0.0))
        return share, passed / share - passed if share > 0 else None


class PlainProgress:
    """Lines for a log: one per improvement, and one now and then."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._name = ""
        self._spoke = clock()
        self._best: float | None = None

    def begin(self, name: str, index: int, count: int, trials: int | None, seconds: float | None) -> None:
        self._name, self._best, self._share = name, None, Share(trials, seconds, self._clock)
        self._say(f"shape {index + 1} of {count}" + (f", {eta(seconds)} for it" if seconds else ""))

    def event(self, event: Event) -> None:
        if event.kind == "passed" and event.best and event.best.time_us != self._best:
            self._best = event.best.time_us
            self._say(f"trial {event.number}: {reached(event)}  {describe(event.config)}")
        elif event.kind == "rejected" and event.best is None:
            self._say(f"trial {event.number}: {event.reason}  {describe(event.config)}")
        elif event.kind == "begun" and self._clock() - self._spoke > QUIET_S:
            left = self._share.done(event.number)[1]
            known = [f"best {reached(event)}"] if event.best else []
            known += [f"{eta(left)} left"] if left is not None else []
            self._say(", ".join([f"trial {event.number}: {describe(event.config)}", *known]))

    def end(self, row: Row) -> None:
        # it may have ended before it began here
        self._name = row.name
        self._say(verdict(row))

    def close(self) -> None:
        pass

    def _say(self, text: str) -> None:
        self._spoke = self._clock()
        self._write(f"{self._name}: {text}")


class BarProgress:
    """A bar per shape: schedule, trial, best so far, speed-up over the default, time left."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("trial {task.fields[trial]}  {task.fields[schedule]}  best {task.fields[best]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._bar.start()
        self._task: TaskID | None = None

    def begin(self, name: str, index: int, count: int, trials: int | None, seconds: float | None) -> None:
        self._share = Share(trials, seconds, self._clock)
        self._task = self._bar.add_task(
            f"{name} ({index + 1}/{count})", total=1.0, trial=0, schedule="", best="-", eta=""
        )

    def event(self, event: Event) -> None:
        assert self._task is not None
        share, left = self._share.done(event.number)
        self._bar.update(
            self._task,
            completed=share,
            trial=event.number,
            schedule=event.config["schedule"],
            best=reached(event) if event.best else "-",
            eta=f"{eta(left)} left" if left is not None else "",
        )

    def end(self, row: Row) -> None:
        # it may have ended before it began here
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._console.print(f"{row.name}: {verdict(row)}", highlight=False)

    def close(self) -> None:
        self._bar.stop()


def reached(event: Event) -> str:
    """The best so far, and how many times the default's speed that is."""
    assert event.best is not None
    times = f" ({event.default.time_us / event.best.time_us:.2f}x)" if event.default else ""
    return f"{event.best.time_us:.1f} us{times}"


def describe(config: Config) -> str:
    """A config in one line: what its schedule is and the numbers of its largest kernel."""
    numbers = {name: value for name, value in config.items() if name not in ("schedule", "kernels")}
    kernels = config["kernels"]
    if main := next((kernels[name] for name in MAIN if name in kernels), None):
        numbers |= main
    return " ".join([config["schedule"], *(f"{name}={value}" for name, value in numbers.items())])


def verdict(row: Row) -> str:
    """How the search for a shape ended, in one line."""
    found = row.outcome
    counted = f"{found.tried} tried, {found.rejected} rejected" + (", as found before or elsewhere" * row.elsewhere)
    if found.best is None:
        return f"nothing found ({counted})" + (f": {found.reason}" if found.reason else "")
    parts = [f"{found.best.time_us:.1f} us"]
    if row.speedup:
        parts.append(f"{row.speedup:.2f} times the default's speed")
    if found.best.error is not None:
        parts.append(f"error {found.best.error:.1e}")
    parts += [counted, describe(found.best.config)]
    return ", ".join(parts) + ("" if row.stored else "; what was stored before is kept")


def table(rows: list[Row], predicted: bool) -> Table:
    """The campaign at a glance."""
    made = Table(title="predicted by compiling" if predicted else "measured", title_justify="left")
    made.add_column("shape")
    for name in ("tried", "default us", "best us", "speed-up", "error"):
        made.add_column(name, justify="right")
    made.add_column("schedule")
    for row in rows:
        best, default = row.outcome.best, row.outcome.default
        made.add_row(
            row.name,
            str(row.outcome.tried),
            f"{default.time_us:.1f}" if default else "-",
            f"{best.time_us:.1f}" if best else "-",
            f"{row.speedup:.2f}" if row.speedup else "-",
            f"{best.error:.1e}" if best and best.error is not None else "-",
            best.config["schedule"] if best else "-",
        )
    return made


def eta(seconds: float) -> str:
    """Seconds as "45 s" or "7 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
