"""Calls in a process of their own, with a time limit.  factory -> Worker -> pool, measure

A compiler may hang and a kernel may break its process's CUDA context: neither may end the search.  Each process leads a
group of its own, which is killed as a whole: an assembler that hangs is a child of its.  When the search itself dies,
however it dies, its processes do too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Any

from .errors import RejectedError, TuneError

# how often a waiting thread looks whether it should give up
_POLL_S = 0.2


class Worker:
    """One object that lives in another process; started at the first call, and again after it was lost.

    factory, args: make the object there; both must pickle.  Calls of several threads wait for each other.
    """

    def __init__(self, factory: Callable[..., Any], *args: Any) -> None:
        self._made_by = (factory, args)
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._closed = threading.Event()
        self._alone = threading.RLock()
        # the call that made the object what it is, as far as the process that is alive has seen it
        self._prepared: tuple[str, tuple[Any, ...]] | None = None
        self.starts = 0

    def call(self, method: str, *args: Any, time_limit_s: float) -> Any:
        """What the method returns.

        Errors: RejectedError where the method raises it, and where the process died or overran its time: it is a fresh
        one next time.  TuneError where the object cannot be made at all.
        """
        with self._alone:
            pipe = self._started()
            kind, value = self._answer(pipe, time_limit_s, method, args)
            if kind == "ok":
                return value
            if kind == "rejected":
                raise RejectedError(value)
            # after an error that nobody foresaw nothing is known of the state there
            self._stop()
        if kind == "broken":
            raise TuneError(value)
        raise RejectedError(value)

    def prepare(self, method: str, args: tuple[Any, ...], time_limit_s: float) -> None:
        """Call a method unless it was the last one that was prepared with, in this process.  Errors: as `call`."""
        with self._alone:
            if self.alive and self._prepared == (method, args):
                return
            self._prepared = None
            self.call(method, *args, time_limit_s=time_limit_s)
            self._prepared = (method, args)

    def close(self) -> None:
        """End the process; a call that waits in another thread ends with RejectedError."""
        self._closed.set()
        self._stop()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def _started(self) -> Connection:
        if self._closed.is_set():
            raise RejectedError("the search was stopped")
        if self._pipe is None or not self.alive:
            self._stop()
            # not a fork: CUDA does not survive one
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, *self._made_by), daemon=True)
            process.start()
            self._process = process
            # or the end of the process would never be seen as the end of the pipe
            theirs.close()
            self.starts += 1
        return self._pipe

    def _answer(self, pipe: Connection, time_limit_s: float, method: str, args: tuple[Any, ...]) -> tuple[str, Any]:
        process, waited = self._process, 0.0
        try:
            pipe.send((method, args))
            while not pipe.poll(_POLL_S):
                waited += _POLL_S
                if self._closed.is_set():
                    return "failed", "the search was stopped"
                if waited >= time_limit_s:
                    return "failed", f"{method} took more than {time_limit_s:g} s"
            return pipe.recv()
        except (EOFError, OSError):
            if self._closed.is_set() or process is None:
                return "failed", "the search was stopped"
            # the pipe ends a moment before the process does
            process.join(2)
            return "failed", f"the process died in {method} (exit code {process.exitcode})"

    def _stop(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = self._prepared = None
        if process is not None:
            # it may hang in a kernel or in the compiler, deaf to anything milder
            _kill_group(process)
            process.join(5)
        if pipe is not None:
            pipe.close()


def _serve(pipe: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make the object, then answer calls until the pipe ends."""
    if hasattr(os, "setsid"):
        os.setsid()
    # Ctrl-C may still be sent to all; the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _answer_calls(pipe, factory, args)
    # the end of the pipe may be seen here before the thread sees the end of the parent
    _die()


def _answer_calls(pipe: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    made: Any = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            method, arguments = pipe.recv()
            try:
                if made is None:
                    try:
                        made = factory(*args)
                    except Exception as error:
                        pipe.send(("broken", _text(error)))
                        return
                pipe.send(("ok", getattr(made, method)(*arguments)))
            except RejectedError as error:
                pipe.send(("rejected", str(error)))
            # anything else is reported, whatever it is; the parent then ends this process
            except Exception as error:
                pipe.send(("failed", _text(error)))


def _kill_group(process: BaseProcess) -> None:
    """End a process and its children."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, OSError):
        # no groups here, or it was about to lead its own: then it has no children yet
        process.kill()


def _die_with_parent() -> None:
    """Wait for the end of the parent in a thread of its own: this one may be in a compiler that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    _die()


def _die() -> None:
    """End this process and what it has started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _text(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
