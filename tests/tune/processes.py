"""Processes of `stand_in`, and what they wrote.  For tests that kill some of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from optuna.trial import FrozenTrial

from ssdgen.pack import store
from ssdgen.pack.records import Record
from ssdgen.tune.storage import open_storage

ROOT = Path(__file__).resolve().parents[2]
# a process imports torch first, and there may be several on two cores
PATIENCE_S = 240.0


def start(folder: Path, storage: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """A process of the stand-in, which writes into the folder."""
    command = [sys.executable, "-m", "tests.tune.stand_in", "--folder", str(folder), "--storage", storage, *options]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "ssdgen" / "_alias")])
    # of this folder alone, and no log lines of a launcher
    own = {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it says on stdout; it must end well."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err[-3000:]
    return out


def kill(process: subprocess.Popen[str]) -> None:
    """As kill -9 does, at any moment."""
    process.kill()
    process.communicate()


def wait_until(true: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Wait for something that these processes do; one that ends is not waited for."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def noted(folder: Path, what: str, pid: int | None = None) -> list[str]:
    """Keys of the configs of which that was noted, by that process, in order."""
    path = folder / "log"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["key"] for line in lines if line["what"] == what and pid in (None, line["pid"])]


def trials(storage: str) -> list[FrozenTrial]:
    """All trials of the newest search in a storage."""
    kept = open_storage(storage).optuna
    newest = max((s for s in kept.get_all_studies() if s.study_name.count("/") == 2), key=lambda s: s._study_id)
    return kept.get_all_trials(newest._study_id)


def record(folder: Path, root: str = "records") -> Record:
    """The only record that was stored."""
    (found,) = store.read(folder / root / "sm90_h200")
    return found
