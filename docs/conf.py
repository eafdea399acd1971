"""The site.  docs/*.md, docstrings, click commands -> `make docs` -> build/site

Pages are Markdown as the hosting page shows it too; only those of the reference hold directives.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# the package of this checkout, under both of its names, and the extension beside this file
sys.path[:0] = [str(ROOT), str(ROOT / "ssdgen" / "_alias"), str(ROOT / "docs")]

import ssdgen  # noqa: E402

project = "ssdgen"
author = "the ssdgen authors"
version = release = ssdgen.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "extension.docstrings",
    "extension.commands",
    "extension.outside",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["extension"]

# ---- pages
myst_heading_anchors = 3
myst_links_external_new_tab = False

# ---- reference
default_role = "code"
add_module_names = False
# formulas and plans are no Python
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# `inf` and constants as they are written
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
nitpicky = True
# types of others: their sites are not read while ours is built
nitpick_ignore_regex = [
    (
        "py:(class|obj|exc|data)",
        r"(torch|numpy|np|nn|dist|sympy|collections|dataclasses|enum|typing|click|pathlib)\..*",
    ),
    ("py:(class|obj)", "Tensor|Any|Callable|Mapping|Iterator|Literal|ProcessGroup|DeviceMesh|ParallelStyle|inf"),
    # a default that is a factory is no Python, so that Sphinx cuts such a signature at its commas
    ("py:class", r"dict\[int"),
]

# ---- look
html_theme = "furo"
html_title = "ssdgen"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
# two dashes begin an option
smartquotes = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"
pygments_dark_style = "github-dark"

# ---- `make docs-links`
linkcheck_timeout = 20
linkcheck_retries = 2
# headings of other sites are theirs to rename
linkcheck_anchors = False
