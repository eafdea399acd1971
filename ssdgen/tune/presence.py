"""Which processes of a search are alive, on this machine and on others.  Storage -> Presence -> ledger

Each process counts up a number beside its name, and the others look whether it moves: by their own clocks, so that no
two machines need to agree on the time.  Of a process on the same machine the system says at once that it is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import TuneError
from .storage import Storage

# how often the number moves, and how long it may stand still; a database that restarts takes less
BEAT_S, GRACE_S = 5.0, 45.0
# who asks again by then gets the answer of before
_FRESH_S = 0.5

_LEFT = -1


@dataclass(frozen=True)
class Pace:
    """beat_s, grace_s: seconds between two beats, and without one before a process counts as dead."""

    beat_s: float = BEAT_S
    grace_s: float = GRACE_S


class Presence:
    """This process among those of a study.  study_id: where they all write; describe: what others may read of it."""

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        describe: dict[str, Any],
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._storage, self._study_id, self._pace, self._clock = storage, study_id, pace, clock
        self._about = {
            **describe,
            "name": self.name,
            "process": _process(os.getpid()),
            "pid": os.getpid(),
            "place": _place(),
        }
        self._beats = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # {name: (beat, when it was first seen)}
        self._seen: dict[str, tuple[int, float]] = {}
        self._others: dict[str, Any] = {}
        self._asked = float("-inf")

    def __enter__(self) -> Presence:
        with self._storage.guard():
            self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="ssdgen-presence", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._pace.beat_s + 5)
        self._beats = _LEFT
        # where it cannot be written the others find out by waiting
        with suppress(TuneError), self._storage.guard():
            self._write()

    def alive(self, name: str) -> bool:
        """Whether a process that has this name, in this study, still runs.  Errors: StorageError."""
        if name == self.name:
            return True
        now = self._clock()
        if now - self._asked > _FRESH_S:
            with self._storage.guard():
                self._others = self._storage.optuna.get_study_user_attrs(self._study_id)
            self._asked = now
        about = self._others.get(_key(name))
        if not about or about["beat"] == _LEFT:
            return False
        if about["place"] is not None and about["place"] == self._about["place"]:
            return _process(about["pid"]) == about["process"]
        beat, since = self._seen.get(name, (None, now))
        if beat != about["beat"]:
            since = now
        self._seen[name] = (about["beat"], since)
        return now - since <= self._pace.grace_s

    def others(self) -> list[dict[str, Any]]:
        """What the other processes say of themselves, dead ones included.  Errors: StorageError."""
        with self._storage.guard():
            found = self._storage.optuna.get_study_user_attrs(self._study_id)
        return [about for key, about in found.items() if key.startswith(_key("")) and key != _key(self.name)]

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._pace.beat_s):
            # a storage that is away for a moment; if it stays away, the search itself says so
            with suppress(TuneError), self._storage.guard():
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._write()

    def _write(self) -> None:
        about = {**self._about, "beat": self._beats}
        self._storage.optuna.set_study_user_attr(self._study_id, _key(self.name), about)


def _key(name: str) -> str:
    return f"process/{name}"


def _place() -> str | None:
    """Where process numbers mean the same: this boot of this machine, in this container.  None: nobody says."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _process(pid: int) -> str | None:
    """When a process began, which tells it from a later one with its number; None if there is none, or a dead one."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
