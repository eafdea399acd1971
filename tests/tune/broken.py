"""Objects for workers in other processes: one that behaves, and some that do not."""

from __future__ import annotations

import os
import subprocess
import time

from ssdgen.tune.errors import RejectedError


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def reject(self) -> None:
        raise RejectedError("too large")

    def fail(self) -> None:
        raise ZeroDivisionError("no such number\nand more")

    def die(self) -> None:
        os._exit(7)

    def hang(self) -> None:
        time.sleep(3600)

    def pid(self) -> int:
        return os.getpid()


class Unmade:
    def __init__(self) -> None:
        raise OSError("no driver")


class Family:
    """Starts a process of its own, as a compiler does its assembler, and hangs."""

    def start_child(self) -> int:
        self.child = subprocess.Popen(["sleep", "3600"])
        return self.child.pid

    def hang(self) -> None:
        time.sleep(3600)
