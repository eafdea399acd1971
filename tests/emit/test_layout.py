"""Line breaks change nothing but lines, and ruff has nothing to add to them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdgen.emit.layout import WIDTH, fit

NAMES = st.sampled_from(["x", "row0", "stride_x_seqlen", "C_base", "padded", "nheads", "dA_cs_ptr", "HEADDIM", "mask"])
INDEXED = st.builds(lambda name, at: f"{name}{at}", NAMES, st.sampled_from(["", "[:, None]", "[None, :]"]))
PRODUCT = st.lists(INDEXED, min_size=1, max_size=4).map(" * ".join)
SUM = st.lists(PRODUCT, min_size=1, max_size=6).map(" + ".join)
CALL = st.builds(
    lambda name, arguments: f"tl.{name}({', '.join(arguments)})",
    st.sampled_from(["dot", "where", "load"]),
    st.lists(SUM, min_size=1, max_size=4),
)
LOAD = st.builds(
    lambda pointer, mask, cast: f"tl.load({pointer}, mask={mask}, other=0.0){cast}",
    SUM,
    st.lists(INDEXED, min_size=1, max_size=2).map(" & ".join),
    st.sampled_from(["", ".to(tl.float32)"]),
)
STORE = st.builds(lambda pointer, value: f"tl.store({pointer}, {value}, mask=mask)", SUM, NAMES)
COPY = st.builds(
    lambda corner, tile: f"tma.copy(x_desc, [{', '.join(corner)}], {tile})",
    st.lists(SUM, min_size=2, max_size=5),
    NAMES,
)
VALUE = st.one_of(SUM, CALL, LOAD)
STATEMENT = st.one_of(st.builds(lambda name, value: f"{name} = {value}", NAMES, VALUE), STORE, COPY)
COMMENT = st.sampled_from(["", "  # [CHUNK, BLOCK_P]"])


@settings(max_examples=300, deadline=None)
@given(STATEMENT, COMMENT, st.sampled_from([4, 8, 12]))
def test_the_meaning_stays(statement: str, comment: str, indent: int) -> None:
    lines = fit(statement + comment, indent)
    assert ast.dump(ast.parse("if True:\n" + "\n".join(lines))) == ast.dump(ast.parse(f"if True:\n    {statement}"))
    assert all(line.startswith(" " * indent) and line == line.rstrip() for line in lines)


@settings(max_examples=300, deadline=None)
@given(STATEMENT, COMMENT, st.sampled_from([4, 8, 12]))
def test_what_fits_stays_on_its_line(statement: str, comment: str, indent: int) -> None:
    lines = fit(statement + comment, indent)
    if len(statement + comment) + indent <= WIDTH:
        assert lines == [" " * indent + statement + comment]
    elif comment and len(statement) + indent <= WIDTH:
        assert lines == [" " * indent + statement]
    else:
        assert len(lines) > 1


def test_ruff_has_nothing_to_change(tmp_path: Path) -> None:
    """Many statements of the forms that kernels have, in one file."""
    text = ["def f():"]
    found: list[str] = []

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(st.one_of(st.builds(lambda name, value: f"{name} = {value}", NAMES, st.one_of(LOAD, CALL)), STORE))
    def collect(statement: str) -> None:
        found.append(statement)

    collect()
    assert sum(len(statement) + 4 > WIDTH for statement in found) > 20
    for statement in found:
        text += fit(statement, 4)
    path = tmp_path / "lines.py"
    path.write_text("\n".join(text) + "\n")
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", f"--line-length={WIDTH}", "--diff", str(path)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", ["f(a))" + "x" * 200, "y = g(]" + "a" * 150 + ")"])
def test_unbalanced_brackets_are_an_error_or_kept(text: str) -> None:
    try:
        lines = fit(text, 4)
    except ValueError as error:
        assert "unbalanced" in str(error)
    else:
        assert "".join(line.strip() for line in lines).replace("(", "").replace(")", "").replace(" ", "")
