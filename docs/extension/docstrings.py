"""The project's docstrings as reStructuredText.  docstring -> blocks -> what autodoc reads

They are plain text (CONTRIBUTING.md, Style): a sentence, paragraphs, indented formulas or code, and one line for each
argument, `x: [batch, seqlen], ...`, whose continuation is indented or not.  Nothing in them is markup but `names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

# one argument or several at the start of a line; a sentence with a colon has spaces before it
_ARGUMENT = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(\S.*)")
# paragraphs that say what comes out
_CLOSING = re.compile(r"(Returns|Errors|Source)\b")
_NAME = re.compile(r"`([^`]+)`")
# errors stand without marks
_ERROR = re.compile(r"\b[A-Z][A-Za-z]+Error\b")


def converted(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText."""
    out: list[str] = []
    for block in _blocks(lines):
        if block[0].startswith("    "):
            out += ["::", "", *block, ""]
        else:
            out += _prose(block)
    return out


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """What blank lines part; formulas and code in one piece with the blank lines in it."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _prose(block: list[str]) -> Iterator[str]:
    """Paragraphs and arguments, as they follow each other."""
    parts: list[list[str]] = []
    closing = False
    for line in block:
        found = _ARGUMENT.fullmatch(line)
        if starts_closing := bool(_CLOSING.match(line)):
            closing = True
        if starts_closing or not parts or (found and not closing):
            parts.append([line])
        elif closing or line.startswith(" ") or not _is_argument(parts[-1]) or not _ends(parts[-1]):
            parts[-1].append(line)
        else:
            # a sentence of its own after an argument that is complete
            parts.append([line])
    for part in parts:
        yield from _paragraph(" ".join(line.strip() for line in part), _is_argument(part))


def _is_argument(part: list[str]) -> bool:
    return bool(_ARGUMENT.fullmatch(part[0])) and not _CLOSING.match(part[0])


def _ends(part: list[str]) -> bool:
    return part[-1].endswith(".")


def _paragraph(text: str, argument: bool) -> Iterator[str]:
    if argument:
        names, rest = _ARGUMENT.fullmatch(text).groups()  # type: ignore[union-attr]
        bold = ", ".join(f"**{name}**" for name in names.split(", "))
        yield f"* {bold}: {_escaped(rest)}"
    elif found := _CLOSING.match(text):
        yield f"**{found[0]}**\\ {_escaped(text[found.end() :])}"
    else:
        yield _escaped(text)
    yield ""


def _escaped(text: str) -> str:
    """Text whose only markup are `names`: those of the package become links."""
    pieces = []
    for at, piece in enumerate(_NAME.split(text)):
        if at % 2:
            pieces.append(_link(piece))
        else:
            pieces.append(_ERROR.sub(lambda found: _link(found[0]), re.sub(r"([\\*|_])", r"\\\1", piece)))
    return "".join(pieces)


def _link(name: str) -> str:
    import mamba2_ops

    public = name.partition(".")[0] in mamba2_ops.__all__ and "(" not in name
    if not public:
        return name if _ERROR.fullmatch(name) else f"``{name}``"
    return f":py:obj:`~mamba2_ops.{name}`"


def _on_docstring(app: Sphinx, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
