"""The reference has every public name; each docstring says what arguments are, what comes out and what can fail."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import mamba2_ops
from mamba2_ops import errors, parallel, tensor_parallel
from tests.docs.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception|module):: ([\w.]+)$", re.MULTILINE)
NAMED = re.compile(r"`([\w.]+)`")


def documented() -> set[str]:
    """Full names in the reference pages."""
    found = set()
    for page in REFERENCE.glob("*.md"):
        text = page.read_text()
        module = "mamba2_ops." if ".. currentmodule:: mamba2_ops" in text else ""
        found |= {name if "." in name else module + name for name in DIRECTIVE.findall(text)}
    return found


def functions() -> Iterator[tuple[str, Any]]:
    """Public functions, and classes by what they are made with."""
    for module in (mamba2_ops, parallel, tensor_parallel):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, (Exception, Warning))):
                yield f"{module.__name__.removeprefix('ssdgen.')}.{name}", thing


def test_every_public_name_is_in_the_reference() -> None:
    public = {f"mamba2_ops.{name}" for name in mamba2_ops.__all__}
    for module, name in ((parallel, "parallel"), (tensor_parallel, "tensor_parallel")):
        public |= {f"mamba2_ops.{name}.{each}" for each in module.__all__}
    assert not public - documented()


def test_every_error_is_public_or_named_with_its_module() -> None:
    classes = {name for name, thing in vars(errors).items() if inspect.isclass(thing)}
    there = {name.rpartition(".")[2] for name in documented()}
    assert not classes - there


def said(thing: Any) -> str:
    """A docstring, with those of the functions that it names instead of repeating them."""
    text = inspect.getdoc(thing) or ""
    others = [vars(mamba2_ops).get(name) or vars(parallel).get(name) for name in NAMED.findall(text)]
    return "\n".join([text, *(inspect.getdoc(other) or "" for other in others if inspect.isroutine(other))])


@pytest.mark.parametrize("name, thing", functions(), ids=[name for name, _ in functions()])
def test_a_docstring_says_what_every_argument_is(name: str, thing: Any) -> None:
    text, signature = said(thing), inspect.signature(thing)
    arguments = [each for each in signature.parameters if each not in ("args", "kwargs", "options")]
    missing = [each for each in arguments if not re.search(rf"\b{each}\b[\w, ]*: ", text)]
    assert not missing, f"{name} says nothing of {', '.join(missing)}"
    if inspect.isfunction(thing):
        assert "Errors" in text, f"{name} says nothing of its errors"
        assert signature.return_annotation == "None" or "Returns" in text, f"{name} does not say what it returns"
