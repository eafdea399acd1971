"""The project's docstrings as reStructuredText.  docstring -> blocks -> what autodoc reads

They are plain text (CONTRIBUTING.md, Style): a sentence, paragraphs, indented formulas or code, and arguments as
`x: [batch, seqlen], ...`, at the start of a line or after a sentence, whose text may go on in the next lines, indented
or not.  Nothing in them is markup but `names`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from typing import Any

from sphinx.application import Sphinx

# one argument or several, before their text
_ARGUMENT = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(\S.*)")
# paragraphs that say what comes out
_CLOSING = re.compile(r"(Returns|Errors|Source)\b")
# the end of a sentence, after which another argument may begin
_SENTENCE = re.compile(r"(?<=\.)  +")
_NAME = re.compile(r"`([^`]+)`")
# errors stand without marks
_ERROR = re.compile(r"\b[A-Z][A-Za-z]+Error\b")
# where a file sits in the project, at the end of its first line
_PLACE = re.compile(r"(?<=\.)  .*->.*$")


def converted(lines: list[str], arguments: Collection[str]) -> list[str]:
    """A docstring as reStructuredText.  arguments: the names that may be explained in it."""
    out: list[str] = []
    for block in _blocks(lines):
        if block[0].startswith("    "):
            out += ["::", "", *block, ""]
        else:
            for part in _parts(block, arguments):
                out += [_item(part, arguments), ""]
    return out


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """What blank lines part."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _explains(text: str, arguments: Collection[str]) -> re.Match[str] | None:
    found = _ARGUMENT.fullmatch(text)
    return found if found and set(found[1].split(", ")) <= set(arguments) else None


def _parts(block: list[str], arguments: Collection[str]) -> list[str]:
    """Paragraphs and arguments in one line each, as they follow each other."""
    parts: list[str] = []
    closing = False
    for line in block:
        whole = not parts or parts[-1].endswith(".")
        closes = bool(_CLOSING.match(line)) and whole
        closing = closing or closes
        pieces = [line] if closing or line.startswith(" ") else _SENTENCE.split(line)
        for at, piece in enumerate(pieces):
            begins = not parts or (
                closes if closing else bool(_explains(piece, arguments)) and not piece.startswith(" ")
            )
            # after an argument that is complete, a line of its own is a sentence about all of them
            after = not closing and at == 0 and whole and bool(parts and _explains(parts[-1], arguments))
            if begins or (after and not line.startswith(" ")):
                parts.append(piece.strip())
            else:
                parts[-1] += " " + piece.strip()
    return parts


def _item(text: str, arguments: Collection[str]) -> str:
    if found := _CLOSING.match(text):
        return f"**{found[0]}**\\ {_escaped(text[found.end() :])}"
    if found := _explains(text, arguments):
        return f"* {', '.join(f'**{name}**' for name in found[1].split(', '))}: {_escaped(found[2])}"
    return _escaped(text)


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

    if name.partition(".")[0] in mamba2_ops.__all__ and "(" not in name:
        return f":py:obj:`~mamba2_ops.{name}`"
    return name if _ERROR.fullmatch(name) else f"``{name}``"


def _arguments(thing: Any) -> list[str]:
    """Parameters of a function, or of what a class is made with, and its attributes."""
    try:
        names = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *(inspect.get_annotations(thing) if inspect.isclass(thing) else ())]


def _on_docstring(app: Sphinx, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    if what == "module" and lines:
        lines[0] = _PLACE.sub("", lines[0])
    lines[:] = converted(lines, _arguments(object))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
