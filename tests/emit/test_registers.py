"""What the kernels that are specialised by warps do not keep in registers, nor move between threads."""

from __future__ import annotations

import ast
import re

import pytest

from ssdgen.spec.layer import Layer
from tests.emit import sources
from tests.emit.roles import functions, stage_loop
from tests.emit.test_warps import NAMES, has_roles


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("reverse_walk")])
def test_where_registers_are_full_a_trip_keeps_nothing_for_the_next(name: str) -> None:
    """The chunk's last sum is read from the tile that has it, once and where it is first needed.

    That the number of the chunk goes down by one is not seen: the compiler would move a pointer on for each address.
    """
    text = sources.consumers(Layer())[name]
    assert "dA_cs_ptr" not in text and text.count("hidden(step)") == 2
    body = [ast.unparse(stmt) for stmt in stage_loop(functions(text)["compute"]).body]
    made = [at for at, line in enumerate(body) if line.startswith("dA_last = ")]
    read = [at for at, line in enumerate(body) if re.search(r"(?<!\w)dA_last\b(?! =)", line)]
    assert len(made) == 1 and "dA_cs_tile.slice(CHUNK - 1, 1)" in body[made[0]]
    there = next(at for at, line in enumerate(body) if line.startswith("mbarrier.wait(full"))
    assert there < made[0] < min(read) and min(read) - made[0] <= 3


@pytest.mark.parametrize("name", [name for name in NAMES if has_roles(name)])
def test_gradients_are_summed_along_rows(name: str) -> None:
    """A sum down the columns of a matrix goes through all warps; those that do are of one number each."""
    found = re.findall(r"(\w+) = gl\.sum\(.*axis=0\)", sources.consumers(Layer())[name])
    assert found and all(of.startswith(("d_centre_decay", "dA_last")) for of in found)
