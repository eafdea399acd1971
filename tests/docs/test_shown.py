"""Files, names and commands that the pages mention are there, and what they show as Python is Python."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ssdgen.commands import main
from tests.docs.pages import ROOT, commands

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# where pages look from, beside the checkout itself: docs/architecture.md has the parts of ssdgen by their own names
BASES = [ROOT, ROOT / "ssdgen", ROOT / "ssdgen" / "plan", ROOT / "ssdgen" / "tune", ROOT / "docs"]
FILE = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|jinja|toml|md|json|txt|png|svg)|[\w./-]+/")
# written by a command, somebody else's, or a name that the reader chooses
NOT_HERE = re.compile(r"^(?:/|~|tuned/|code/|host/|sources/|src/|launchers/|dist/|build/|\.venv/)|NAME")


def _tokens(page: Path) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def spans(page: Path) -> list[str]:
    return [token.content for token in _tokens(page) if token.type == "code_inline"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = {span for span in spans(page) if FILE.fullmatch(span) and not NOT_HERE.search(span)}
    bases = [*BASES, page.parent]
    assert not [name for name in sorted(named) if not any((base / name).exists() for base in bases)]


# ---- names in tables: | step | `file` | `name`, ... |


def named_in_tables(page: Path) -> Iterator[tuple[str, str]]:
    """(file, name) of the rows whose first code span of a cell is a file, for the code spans of the cells after it."""
    file, cell = None, 0
    for token in _tokens(page):
        if token.type == "tr_open":
            file, cell = None, 0
        elif token.type == "table_close":
            file = None
        elif token.type == "td_open":
            cell += 1
        elif token.type == "code_inline" and cell:
            if FILE.fullmatch(token.content):
                file = token.content
            elif file and re.fullmatch(r"\w+", token.content):
                yield file, token.content


def defined(path: Path) -> set[str]:
    """What a file defines or assigns anywhere, and in a template every word of it."""
    text = path.read_text()
    if path.suffix != ".py":
        return set(re.findall(r"\w+", text))
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("name, least", [("add_a_schedule.md", 30), ("add_a_mask_family.md", 4)])
def test_names_that_a_table_has_are_in_their_files(name: str, least: int) -> None:
    rows = list(named_in_tables(ROOT / "docs" / name))
    assert len(rows) >= least
    assert not [f"{file} has no {each}" for file, each in rows if each not in defined(ROOT / file)]


# ---- commands


def shown_commands(page: Path) -> Iterator[tuple[str, bool]]:
    """(line that calls ssdgen, whether it is whole): those of code blocks are, a code span may leave something out."""
    for token in _tokens(page):
        lines: list[str] = []
        if token.type == "fence" and token.info == "console":
            lines = [command for command, _ in commands(token.content)]
        elif token.type == "fence" and not token.info:
            lines = token.content.replace("\\\n", " ").splitlines()
        for line in lines:
            if found := re.search(r"^(?:torchrun .* )?(ssdgen .*)", line):
                yield found[1], True
        if token.type == "code_inline" and token.content.startswith("ssdgen ") and "..." not in token.content:
            yield token.content, False


def wrong_with(line: str, whole: bool) -> str | None:
    """What click has against a command line, down to the values of its options; nothing is run."""
    # the pages about new families call theirs by the name that they give it
    words = shlex.split(line.replace("--family input", "--family constant"), comments=True)[1:]
    command: click.Command | None = main
    while isinstance(command, click.Group) and words:
        command = command.commands.get(words.pop(0))
    if command is None or (whole and isinstance(command, click.Group)):
        return f"{line}: no such command"
    try:
        if words or whole:
            command.make_context(command.name, words)
    except (click.MissingParameter, click.BadOptionUsage) as error:
        return f"{line}: {error.format_message()}" if whole else None
    except click.UsageError as error:
        return f"{line}: {error.format_message()}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_a_page_shows_are_understood(page: Path) -> None:
    plain = [(re.sub(r"[\[\]]", "", line), whole) for line, whole in shown_commands(page)]
    assert not [wrong for line, whole in plain if (wrong := wrong_with(line, whole))]


@pytest.mark.parametrize(
    "line", ["ssdgen tun", "ssdgen tune --trial-count 3", "ssdgen show spec --family retention", "ssdgen pack build"]
)
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    assert wrong_with(line, whole=True)


# ---- Python


def _blocks(page: Path) -> list[str]:
    return [token.content for token in _tokens(page) if token.type == "fence" and token.info == "python"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_that_a_page_shows_is_python(page: Path) -> None:
    for block in _blocks(page):
        compile(block, str(page), "exec")
