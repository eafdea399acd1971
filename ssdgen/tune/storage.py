"""Where trials are kept: a journal file here, or a database for many machines.  path or URL -> Storage -> ledger, job

A journal is one line of JSON for each thing that happened.  It is safe between processes of one machine, and after a
kill: the last line may be torn, and is then cut off.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from .errors import TuneError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# a server that does not answer by then is not there
CONNECT_S = 10
# codes of PostgreSQL for what another process made at the same moment: a row, a table, a type; then we look again
_MADE_MEANWHILE = frozenset(("23505", "42P07", "42710"))
_MADE_WAITS_S = (0.2, 0.5, 1.0, 2.0)
# what SQLAlchemy is told for the name that people write
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


class StorageError(TuneError):
    """Trials cannot be kept or read there.  No message holds a user or a password."""


@dataclass(frozen=True)
class Storage:
    """name: as messages have it, without credentials.  optuna: the storage itself."""

    name: str
    optuna: BaseStorage

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what goes wrong in here into a StorageError, which names the place and says what to do."""
        try:
            yield
        except (StorageError, DuplicatedStudyError, UpdateFinishedTrialError):
            raise
        except OSError as error:
            reason = error.strerror or type(error).__name__
            # without the cause: it may quote the address
            raise StorageError(
                f"cannot write {self.name}: {reason}; free some space or make it writable, then --resume: "
                "what was written before is kept"
            ) from None
        except optuna.exceptions.StorageInternalError as error:
            raise StorageError(
                f"{self.name} fails: {_reason(error)}; when it is back, `ssdgen tune --resume` goes on"
            ) from None


def memory() -> Storage:
    """Trials that end with the process."""
    _quiet()
    return Storage("memory", InMemoryStorage())


def open_storage(where: str | Path) -> Storage:
    """A database if `where` is a URL, else a journal file, made if it is not there.  Errors: StorageError."""
    _quiet()
    text = str(where)
    return _database(text) if "://" in text else _journal(Path(text))


def _quiet() -> None:
    # what a person has to know is said by the search
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _journal(path: Path) -> Storage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        storage = JournalStorage(_Journal(str(path)))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"cannot use the journal {path}: {reason}; name another with --storage") from error
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        # every line is JSON, but they do not say what a journal says
        raise StorageError(
            f"{path} is no journal of trials, or of another version of Optuna; name another file with --storage"
        ) from error
    return Storage(str(path), storage)


class _Journal(JournalFileBackend):
    """A journal that a full disk, or Ctrl-C in the middle of a line, leaves whole."""

    def __init__(self, path: str) -> None:
        super().__init__(path, _lock(path))
        self._path = Path(path)

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        try:
            super().append_logs(logs)
        except BaseException:
            # half a line may be there, and the next one would be glued to it
            with suppress(OSError, StorageError):
                _mend(self._path)
            raise


class _Lock:
    """Holds a journal against other processes; the system lets go when this one dies, however it dies."""

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._descriptor = -1

    def acquire(self) -> bool:
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # type: ignore[union-attr]
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        os.close(self._descriptor)


def _lock(path: str) -> Any:
    # Optuna's own waits half a minute for whoever died with it
    return _Lock(path) if fcntl else JournalFileSymlinkLock(path)


def _mend(path: Path) -> None:
    """Cut off a last line that was not written to its end.  Errors: StorageError for any other line that is broken."""
    if not path.exists():
        return
    lock = _lock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            end = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    file.truncate(end)
                    return
                end += len(line)
                if not _is_entry(line):
                    raise StorageError(
                        f"{path} is broken in line {number}, which is not an entry of a journal; remove that line, or "
                        "move the file away and begin anew: records are kept elsewhere"
                    )
    finally:
        lock.release()


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry


def _database(url: str) -> Storage:
    # a dependency of Optuna, slow to import, and needed here alone
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StorageError(
            "the storage is not the URL of a database; it looks like postgresql://user:password@host:5432/database"
        ) from None
    driver = _DRIVERS.get(parsed.drivername, parsed.drivername)
    host = parsed.host or "this machine"
    name = f"the database {parsed.database} on {host}" + (f":{parsed.port}" if parsed.port else "")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if driver.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    try:
        address = parsed.set(drivername=driver).render_as_string(hide_password=False)
        return Storage(name, get_storage(_with_tables(address, options)))
    except ImportError:
        raise StorageError(
            f"no driver for {parsed.drivername} is installed; pip install 'ssdgen[postgres]' for PostgreSQL"
        ) from None
    except RuntimeError:
        # Optuna's word for tables of another version
        raise StorageError(
            f"{name} has tables of another version of Optuna than {optuna.__version__}; use the version that made "
            "them, `optuna storage upgrade`, or another database"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(f"cannot use {name}: {_reason(error)}; check the address, or start the server") from None
    except Exception as error:
        raise StorageError(f"{name} is no storage of trials ({type(error).__name__}); use another database") from None


def _with_tables(address: str, options: dict[str, Any]) -> RDBStorage:
    """The storage; its tables are made where they are missing, by one of several processes that begin together."""
    for wait_s in (*_MADE_WAITS_S, None):
        try:
            return RDBStorage(address, engine_kwargs=options)
        except Exception as error:
            if wait_s is None or _state_of(error) not in _MADE_MEANWHILE:
                raise
        time.sleep(wait_s)
    raise AssertionError("the last attempt raises")


def _state_of(error: BaseException | None) -> str | None:
    """PostgreSQL's code of what went wrong, if that is the cause."""
    while error is not None:
        if state := getattr(getattr(error, "orig", error), "sqlstate", None):
            return state
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """The driver's own words in one line, without the statement, its values, or who asked."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = re.sub(r"\w+://\S+", "its address", text)
    text = re.sub(r'(user|role) "[^"]*"', r"\1", text)
    return text[:200]
