"""A Markdown page as a program: its code blocks run in order, and what it shows of their output is compared.

    ```python      runs; all blocks of a page share their names, and what they print is kept
    ```console     each line after `$ ` runs in a shell; the lines below it are its output
    ```text        directly below a python block: what it printed

Where the page leaves something out it says `...`, as in doctest; runs of blanks count as one.  Sybil finds the blocks
and puts the page's line numbers into tracebacks.  `<!--- skip: next -->` above a block leaves it out.
"""

from __future__ import annotations

import contextlib
import doctest
import glob
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# seconds that one command of a page may take
PATIENCE = 120


@dataclass
class Run:
    """One page on its way.  folder: where it writes; printed: by the last python block, None once it was compared."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    printed: str | None = None
    blocks: int = 0

    def parsed(self, page: Path) -> Document:
        parsers = [
            SkipParser(),
            CodeBlockParser("python", self.python),
            CodeBlockParser("console", self.console),
            CodeBlockParser("text", self.text),
        ]
        return Sybil(parsers, patterns=["*"], path=str(page.parent)).parse(page)

    def python(self, example: Example) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), _inside(self.folder):
            PythonEvaluator()(example)
        self.printed = out.getvalue()
        self.blocks += 1

    def text(self, example: Example) -> str | None:
        """What is wrong with the output that the page shows, or None."""
        if self.printed is None:
            return None
        printed, self.printed = self.printed, None
        return _difference("the block above", str(example.parsed), printed)

    def console(self, example: Example) -> str | None:
        for command, wanted in commands(str(example.parsed)):
            code, out, err = self._here(command) if _stays_here(command) else self._shell(command)
            if code:
                return f"{command!r} ended with {code}:\n{out}{err}"
            # what a command says only in passing goes to stderr, and a page that shows nothing wants nothing compared
            if wanted and (wrong := _difference(repr(command), wanted, out)):
                return wrong
            self.blocks += 1
        return None

    def _shell(self, command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout, done.stderr

    def _here(self, command: str) -> tuple[int, str, str]:
        """The same without another Python, which would take seconds to import what is imported already."""
        from ssdgen.commands import main

        with _inside(self.folder):
            words = [each for word in shlex.split(command)[1:] for each in sorted(glob.glob(word)) or [word]]
            done = CliRunner().invoke(main, words, env={**self.environment}, prog_name="ssdgen")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr


def _stays_here(command: str) -> bool:
    """Whether a command is a call of ssdgen that starts no processes, and needs nothing of the shell but patterns."""
    words = shlex.split(command)
    return words[0] == "ssdgen" and words[1] in ("show", "doctor", "pack") and not set(command) & set("|;&<>$`")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def commands(block: str) -> list[tuple[str, str]]:
    """(command, output below it) of a console block; a command goes on after a backslash."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found and found[-1][0][-1].endswith("\\") and not found[-1][1]:
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"a console block begins with a command after '$ ', not with {line!r}")
    return [("\n".join(command), "\n".join(output).strip()) for command, output in found]


def _difference(what: str, wanted: str, found: str) -> str | None:
    if doctest.OutputChecker().check_output(wanted.strip() + "\n", found.strip() + "\n", LEFT_OUT):
        return None
    return f"{what} printed\n{found}\nand the page shows\n{wanted}"


def run(page: Path, folder: Path, names: Mapping[str, Any] | None = None) -> int:
    """Run a page below an empty folder.  names: what its first block finds.  Returns how many blocks and commands ran.

    Errors: what a block raises, with the page's line; sybil's failure where an output differs.
    """
    programs = folder / "programs"
    programs.mkdir()
    for name, command in {
        "ssdgen": [sys.executable, str(ROOT / "cli.py")],
        "python": [sys.executable],
        "pip": [sys.executable, "-m", "pip", "--disable-pip-version-check"],
    }.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
        program.chmod(0o755)
    work = folder / "work"
    work.mkdir()
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "ssdgen" / "_alias"))),
        # nothing of the user's own records and packs, and none of his folders
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    state = Run(work, environment)
    document = state.parsed(page)
    document.namespace.update(names or {})
    for example in document.examples():
        example.evaluate()
    return state.blocks
