"""Examples in the help of commands, as code.  what sphinx_click made of click's help -> what the reference shows

Click keeps the lines of a paragraph after a `\\b`; sphinx_click makes verse of it, which would lose its columns.
"""

from __future__ import annotations

from typing import Any

import click
from sphinx.application import Sphinx

_VERSE = "| "


def with_code(lines: list[str]) -> list[str]:
    """Runs of verse as literal blocks."""
    out: list[str] = []
    in_code = False
    for line in lines:
        is_verse = line.startswith(_VERSE)
        if is_verse and not in_code:
            out += ["::", ""]
        elif in_code and not is_verse:
            out.append("")
        out.append("    " + line.removeprefix(_VERSE) if is_verse else line)
        in_code = is_verse
    return [*out, ""]


def _on_description(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    lines[:] = with_code(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("sphinx-click-process-description", _on_description)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
