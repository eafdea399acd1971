"""Links of pages to Markdown files outside of docs/.  ../CONTRIBUTING.md -> the page that includes it

In the sources they point to the files themselves, as the hosting page shows them.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

INCLUDED = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
}


def _on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    for outside, page in INCLUDED.items():
        source[0] = source[0].replace(f"]({outside}", f"]({page}")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _on_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
