"""Where trials are kept, and what is said when they cannot be: no user or password in any of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import psycopg
import pytest

from ssdgen.tune import storage
from ssdgen.tune.ledger import Ledger
from ssdgen.tune.results import Result
from ssdgen.tune.storage import StorageError, open_storage
from tests.tune import postgres

USER, PASSWORD = "tuner", "open sesame"


def refused(where: str | Path) -> str:
    """The message, which with its traceback holds no credentials."""
    with pytest.raises(StorageError) as caught:
        open_storage(where)
    whole = "".join(traceback.format_exception(caught.value, chain=True))
    assert PASSWORD not in whole and "sesame" not in whole and f"{USER}:" not in whole and f'"{USER}"' not in whole
    return str(caught.value)


def judged(kept: storage.Storage, *names: str) -> Ledger:
    """A ledger with one trial for each name."""
    ledger = Ledger(kept, "a")
    for name in names:
        claim = ledger.claim({"name": name})
        assert claim and ledger.complete(claim, Result({"name": name}, 1.0))
    return ledger


# ---- databases


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_server_that_is_not_there() -> None:
    said = refused(f"postgresql://{USER}:open%20sesame@127.0.0.1:{free_port()}/trials")
    assert "cannot use the database trials on 127.0.0.1" in said and "check the address" in said


@pytest.mark.parametrize("url", ["postgresql://", "nonsense://host/db", "mysql+nothing://tuner:open@host/db", "://"])
def test_what_is_no_address(url: str) -> None:
    refused(url)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_real_server(tmp_path: Path) -> None:
    with postgres.server(tmp_path / "server") as url:
        judged(open_storage(url), "x", "y")
        assert len(Ledger(open_storage(url), "a").ended()) == 2

        assert "does not exist" in refused(url.replace("/trials?", "/no_such_database?"))

        # tables that another version of Optuna made
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'v0.0.1.a'")
        assert "another version of Optuna" in refused(url)
        # a database of somebody else's, with a table of the same name
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        shop = url.replace("/trials?", "/shop?")
        with psycopg.connect(shop, autocommit=True) as connection:
            connection.execute("CREATE TABLE studies (price integer)")
            connection.execute("CREATE TABLE version_info (version text)")
        assert "shop" in refused(shop)

        # it goes away in the middle
        kept = open_storage(url.replace("/trials?", "/postgres?"))
        ledger = judged(kept, "x")
    with pytest.raises(StorageError, match="--resume") as caught:
        ledger.claim({"name": "z"})
    assert PASSWORD not in str(caught.value)


# ---- journals


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    judged(open_storage(path), "x", "y")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"stud')
    assert len(judged(open_storage(path), "z").ended()) == 3
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("line", [b"{broken\n", b"[]\n", b'{"no": "entry"}\n', b"\xff\xfe\n"])
def test_a_corrupt_line_is_named_and_nothing_is_changed(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    judged(open_storage(path), "x")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    before = path.read_bytes()
    said = refused(path)
    assert f"{path} is broken in line 3" in said and "remove that line" in said
    assert path.read_bytes() == before


def test_a_journal_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"op_code": 99, "worker_id": "x"}\n')
    assert "no journal of trials" in refused(path)


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    assert "name another with --storage" in refused(tmp_path)


def test_a_full_disk_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    """The system refuses to let the file grow, in the middle of a line."""
    path = tmp_path / "journal"
    code = f"""
import resource, signal
from tests.tune.test_storage import judged
from ssdgen.tune.storage import StorageError, open_storage
ledger = judged(open_storage({str(path)!r}), "x")
# a limit is an error only where the signal is not the end
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = {str(path)!r} and __import__("os").path.getsize({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 40))
try:
    ledger.claim({{"name": "y" * 100}})
except StorageError as error:
    print(error)
"""
    root = Path(__file__).resolve().parents[2]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "ssdgen" / "_alias")])}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"cannot write {path}" in done.stdout and "--resume" in done.stdout
    assert path.read_bytes().endswith(b"\n")
    assert len(judged(open_storage(path), "z").ended()) == 2


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = judged(open_storage(tmp_path / "journal"), "x")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("optuna.storages.journal._file.os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        ledger.claim({"name": "y"})


def test_processes_that_begin_together_wait_for_the_one_that_makes_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unique(Exception):
        sqlstate = "23505"

    class Wrapped(Exception):
        orig = Unique("Key (typname, typnamespace) already exists")

    tries: list[str] = []

    def made(address: str, engine_kwargs: dict) -> str:
        tries.append(address)
        if len(tries) < 3:
            raise Wrapped
        return "storage"

    monkeypatch.setattr(storage, "RDBStorage", made)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert storage._with_tables("postgresql://x", {}) == "storage" and len(tries) == 3
    monkeypatch.setattr(storage, "RDBStorage", lambda *_, **__: (_ for _ in ()).throw(ValueError("else")))
    with pytest.raises(ValueError, match="else"):
        storage._with_tables("postgresql://x", {})
