"""The one Jinja environment: line statements, strict names, templates given as text.  templates -> rendered text

Emission is pure: the texts of the templates are handed over once by whoever reads files (`pack.templates`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jinja2

_sources: dict[str, str] = {}


def use(sources: dict[str, str]) -> None:
    """Set the template texts, {path below templates/: text}; later renderings use these."""
    _sources.clear()
    _sources.update(sources)
    _environment.cache_clear()


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    if not _sources:
        raise RuntimeError("no templates were given; call ssdgen.pack.templates.load() first, which reads templates/")
    return jinja2.Environment(
        loader=jinja2.DictLoader(_sources),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="%%",
        line_comment_prefix="%#",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(template: str, **names: Any) -> str:
    """The template's text with `names` filled in; a name that is missing is an error."""
    return _environment().get_template(template).render(**names)


class macros:
    """The macros of a template as functions that return one stripped line."""

    def __init__(self, template: str):
        self._module = _environment().get_template(template).module

    def __getattr__(self, name: str):
        macro = getattr(self._module, name)
        return lambda *args: str(macro(*args)).strip()
