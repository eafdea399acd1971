"""The plan as data: strides, statements in order, and integer expressions as text."""

from __future__ import annotations

import pytest
import sympy

from ssdgen.plan import ir
from ssdgen.plan.problem import Problem
from ssdgen.plan.scalars import integer_text
from ssdgen.spec.dims import NGROUPS, NHEADS
from ssdgen.spec.layouts import MULTI_CONTRACT, MULTI_HEAD

DIMS = ("batch", "seqlen", "nheads", "HEADDIM")


@pytest.mark.parametrize(
    ("strided", "strides", "parameters"),
    [
        ("no", ("seqlen * nheads * HEADDIM", "nheads * HEADDIM", "HEADDIM", "1"), ()),
        (
            "unit",
            ("stride_x_batch", "stride_x_seqlen", "stride_x_nheads", "1"),
            ("stride_x_batch", "stride_x_seqlen", "stride_x_nheads"),
        ),
        (
            "all",
            ("stride_x_batch", "stride_x_seqlen", "stride_x_nheads", "stride_x_headdim"),
            ("stride_x_batch", "stride_x_seqlen", "stride_x_nheads", "stride_x_headdim"),
        ),
    ],
)
def test_strides(strided: str, strides: tuple[str, ...], parameters: tuple[str, ...]):
    tensor = ir.Tensor("x", DIMS, "operand", strided)
    assert tuple(tensor.stride(axis) for axis in range(4)) == strides
    assert tensor.stride_parameters() == parameters


def test_a_walk_over_statements_goes_inside():
    note = {text: ir.Note(text) for text in "abcde"}
    when = ir.When("FLAG", (note["b"],), (note["c"],))
    loop = ir.For("step", "3", (when, note["d"]))
    assert list(ir.walk((note["a"], loop, note["e"]))) == [
        note["a"],
        loop,
        when,
        note["b"],
        note["c"],
        note["d"],
        note["e"],
    ]


HEAD = sympy.Symbol("head", integer=True, nonnegative=True)
X, Y = sympy.symbols("x y", integer=True, nonnegative=True)


@pytest.mark.parametrize(
    "expr",
    [
        sympy.Integer(3),
        HEAD,
        MULTI_CONTRACT.index("B", HEAD),
        sympy.floor(X / Y),
        sympy.floor((X + 1) / 4),
        3 * X + Y,
        X * (Y + 1),
    ],
    ids=str,
)
def test_integers_as_text(expr: sympy.Expr):
    numbers = {"head": 7, "x": 13, "y": 4, "nheads": 12, "ngroups": 3}
    wanted = expr.subs({HEAD: 7, X: 13, Y: 4, NHEADS: 12, NGROUPS: 3})
    assert eval(integer_text(expr), {}, numbers) == wanted


def test_the_index_map_of_a_layout_as_text():
    assert integer_text(MULTI_HEAD.index("B", HEAD)) == "head"
    assert integer_text(MULTI_CONTRACT.index("B", HEAD)) == "head // (nheads // ngroups)"


@pytest.mark.parametrize("expr", [sympy.sqrt(X), X / Y, sympy.Rational(1, 2), sympy.sin(X)], ids=str)
def test_what_is_no_integer_has_no_text(expr: sympy.Expr):
    with pytest.raises(ValueError, match="no integer form for"):
        integer_text(expr)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 0}, "batch is 0; a problem needs at least 1"),
        ({"dstate": -1}, "dstate is -1"),
        ({"nheads": 6, "ngroups": 4}, "nheads 6 is not divisible by ngroups 4"),
    ],
)
def test_problems_that_cannot_be(sizes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        Problem(**{"batch": 1, "seqlen": 8, "nheads": 4, "headdim": 16, "dstate": 16, **sizes})


def test_a_problem_as_a_record():
    problem = Problem(1, 2048, 80, 64, 128, dtype="float32")
    assert Problem(**problem.to_json()) == problem  # type: ignore[arg-type]
    assert problem.element_bytes == 4
