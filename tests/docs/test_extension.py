"""Docstrings and help texts on their way into the reference."""

from __future__ import annotations

import pytest

pytest.importorskip("sphinx")

from docs.extension import commands, docstrings

TEXT = """Scan a_t * x; `selective_state_update` and `other`.

    y = a * x

x: [b, L], input.  out_dtype: of y,
    default fp32.  Not two: one.
A, B: [H]; may be
less: never.
A sentence of its own.

Returns: y, x: both.
Errors: ShapeError, OddError."""


def test_a_docstring_becomes_items_formulas_and_links() -> None:
    found = docstrings.converted(TEXT.splitlines(), ["x", "out_dtype", "A", "B"])
    assert [line for line in found if line] == [
        # marks of reStructuredText mean nothing in a docstring
        r"Scan a\_t \* x; :py:obj:`~mamba2_ops.selective_state_update` and ``other``.",
        "::",
        "    y = a * x",
        "* **x**: [b, L], input.",
        r"* **out_dtype**: of y, default fp32.  Not two: one.",
        "* **A**, **B**: [H]; may be less: never.",
        "A sentence of its own.",
        r"**Returns**\ : y, x: both.",
        # an error of the package is a link, another one is a word
        r"**Errors**\ : :py:obj:`~mamba2_ops.ShapeError`, OddError.",
    ]


def test_only_arguments_are_items() -> None:
    assert docstrings.converted(["None: nothing.", "x: something."], ["y"]) == ["None: nothing. x: something.", ""]


def test_examples_of_a_command_keep_their_columns() -> None:
    lines = ["Words.", "", "| Examples:", "|   ssdgen tune --gpu h200     one", "", "More."]
    assert commands.with_code(lines) == [
        "Words.", "", "::", "", "    Examples:", "      ssdgen tune --gpu h200     one", "", "", "More.", "",
    ]  # fmt: skip
