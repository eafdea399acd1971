"""The interpreter itself, on kernels of a few statements: what a statement means and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy

from ssdgen.plan import ir
from ssdgen.plan.interpret import BrokenPlan, Misfit, OutOfBounds, Race, Undefined, run
from ssdgen.spec.dims import entry

A, B = ir.Tensor("a", ("rows", "cols"), "operand"), ir.Tensor("b", ("rows", "cols"), "operand", out=True)
ROW, COL = ir.Span("i", "row", "TILE", "row0", "row_in"), ir.Span("n", "col", "4", "0", "col_in")
TILE = ir.Value("tile", ("i", "n"))
INDICES = (
    ir.Scalar("row0", "program_id(0) * TILE"),
    ir.Arange("row", "i", "TILE"),
    ir.Arange("col", "n", "4"),
    ir.Mask("row_in", "i", "row", "rows - row0"),
    ir.Mask("col_in", "n", "col", "cols"),
)
LOAD, STORE = ir.Load(TILE, "a", (ROW, COL)), ir.Store("b", (ROW, COL), TILE)


def kernel(*body: ir.Stmt, tensors: tuple[ir.Tensor, ...] = (A, B), grid: tuple[str, ...] = ("cdiv(rows, TILE)",)):
    return ir.Kernel("copy", "", (), tensors, ("rows", "cols"), (), ("TILE",), ("DOUBLE",), grid, (*INDICES, *body))


def result(plan: ir.Kernel, rows: int = 5, cols: int = 3, tile: int = 2, double: bool = False, **arrays: Any) -> Any:
    """What the kernel makes of a = 0, 1, 2, ... in b."""
    tensors = {
        "a": np.arange(rows * cols, dtype=float).reshape(rows, cols),
        "b": np.full((rows, cols), np.nan),
    } | arrays
    run(plan, tensors, {"rows": rows, "cols": cols}, {"TILE": tile}, {"DOUBLE": double}, {})
    return tensors["b"]


A_ARRAY = np.arange(15.0).reshape(5, 3)


@pytest.mark.parametrize("tile", [1, 2, 8])
def test_a_copy_in_tiles(tile: int):
    np.testing.assert_array_equal(result(kernel(LOAD, STORE), tile=tile), A_ARRAY)


def test_positions_outside_the_mask_read_zero():
    total = ir.Value("total", ("i",))
    rows = ir.Sum(total, TILE, "n")
    spread = ir.Let(TILE, entry("total", "i") + entry("col", "n"))
    wanted = A_ARRAY.sum(axis=1)[:, None] + np.arange(3.0)
    np.testing.assert_array_equal(result(kernel(LOAD, rows, spread, STORE)), wanted)


# pairs along the columns: 4 positions are 2 of them
HALVES = (ir.Value("first", ("i", "r")), ir.Value("second", ("i", "r")))
SPLIT = ir.Split(*HALVES, TILE, ("TILE", "2"))


def test_pairs_are_split_and_joined():
    joined, swapped = (ir.Join(TILE, *halves, ("TILE", "4")) for halves in (HALVES, HALVES[::-1]))
    wide = np.arange(20.0).reshape(5, 4)
    found = result(kernel(LOAD, SPLIT, joined, STORE), cols=4)
    np.testing.assert_array_equal(found, wide)
    found = result(kernel(LOAD, SPLIT, swapped, STORE), cols=4)
    np.testing.assert_array_equal(found, wide.reshape(5, 2, 2)[..., ::-1].reshape(5, 4))
    # what is masked is a number 0 of a pair like any other
    np.testing.assert_array_equal(result(kernel(LOAD, SPLIT, joined, STORE)), A_ARRAY)


@pytest.mark.parametrize(
    "stmt", [ir.Split(*HALVES, TILE, ("TILE", "4")), ir.Join(TILE, TILE, TILE, ("TILE", "4"))], ids=["split", "join"]
)
def test_pairs_that_are_not_as_many_as_the_plan_says(stmt: ir.Stmt):
    with pytest.raises(Misfit, match=r"the pairs of tile have extents \(2, .*; the plan has them as \(2, 4"):
        result(kernel(LOAD, stmt, STORE))


def test_a_formula_says_how_far_each_axis_goes():
    for formula, absent in ((sympy.Integer(1), "i, n"), (entry("row", "i") + 1, "n")):
        with pytest.raises(Misfit, match=f"has nothing along {absent}$"):
            result(kernel(ir.Let(TILE, formula), STORE))


@pytest.mark.parametrize("where", [LOAD, STORE], ids=["load", "store"])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_unmasked_position_outside_the_tensor_is_an_error(where: Any, axis: int):
    index = tuple(replace(at, mask=None) if k == axis else at for k, at in enumerate((ROW, COL)))
    broken = replace(where, index=index)
    plan = kernel(*(broken if stmt is where else stmt for stmt in (LOAD, STORE)))
    with pytest.raises(OutOfBounds, match=r"has no (rows 5|cols 3), its shape is \(5, 3\); mask it"):
        result(plan)
    # it is right where the tiles divide the extents
    np.testing.assert_array_equal(result(plan, rows=4, cols=4), np.arange(16.0).reshape(4, 4))


def test_a_negative_position_is_an_error():
    up = replace(ROW, origin="row0 - 1")
    with pytest.raises(OutOfBounds, match="has no rows -1"):
        result(kernel(replace(LOAD, index=(up, COL)), STORE))


def test_a_mask_that_keeps_nothing_reaches_nothing():
    """Rows all past the end: the columns do not matter, masked or not."""
    away = replace(ROW, origin="row0 + 100", mask="none_in")
    none = ir.Mask("none_in", "i", "row", "0")
    wide = replace(COL, mask=None)
    plan = kernel(none, replace(LOAD, index=(away, wide)), STORE)
    np.testing.assert_array_equal(result(plan), np.zeros((5, 3)))


def test_a_descriptor_goes_by_the_tensor_and_not_by_the_masks():
    one = ir.Mask("row_in", "i", "row", "1")
    np.testing.assert_array_equal(result(kernel(one, replace(LOAD, descriptor=True), STORE))[::2], A_ARRAY[::2])
    left = result(kernel(LOAD, one, STORE))
    assert np.isnan(left[1]).all() and np.isnan(left[3]).all()
    whole = result(kernel(LOAD, one, replace(STORE, descriptor=True)))
    np.testing.assert_array_equal(whole, A_ARRAY)
    before = replace(LOAD, index=(replace(ROW, origin="row0 - 1"), COL), descriptor=True)
    np.testing.assert_array_equal(result(kernel(before, STORE)), np.vstack([np.zeros(3), A_ARRAY[:-1]]))


def test_a_descriptor_has_one_block():
    whole = replace(LOAD, descriptor=True)
    half = replace(whole, index=(ROW, replace(COL, offsets="few", size="2", mask=None)))
    few = ir.Arange("few", "n", "2")
    result(kernel(few, whole, whole, STORE))
    result(kernel(few, half, replace(half, index=(ROW, replace(half.index[1], origin="2")))))
    with pytest.raises(Misfit, match=r"the descriptor of a has a block of \(2, 4\); here it is one of \(2, 2\)"):
        result(kernel(few, whole, half))


def test_two_programs_may_not_store_one_element():
    with pytest.raises(Race, match="programs 1 and 0 both touch an element of b"):
        result(kernel(LOAD, STORE, grid=("cdiv(rows, TILE)", "2")))


def test_a_program_may_not_read_what_another_one_stores():
    before = ir.Load(replace(TILE, name="other"), "b", (replace(ROW, origin="0", mask=None), COL))
    with pytest.raises(Race):
        result(kernel(before, LOAD, STORE), rows=4)
    # in place is right
    own = ir.Load(TILE, "b", (ROW, COL))
    np.testing.assert_array_equal(result(kernel(own, STORE), b=A_ARRAY.copy()), A_ARRAY)


def test_one_program_may_store_an_element_again():
    np.testing.assert_array_equal(result(kernel(LOAD, STORE, STORE)), A_ARRAY)


def test_only_outputs_are_stored_to():
    with pytest.raises(BrokenPlan, match="stores to a, which is no output"):
        result(kernel(LOAD, replace(STORE, tensor="a")))


def test_flags_and_conditions():
    twice = ir.When("DOUBLE", (ir.Let(TILE, 2 * entry("tile", "i", "n")),), (ir.Note("as it is"),))
    np.testing.assert_array_equal(result(kernel(LOAD, twice, STORE), double=True), 2 * A_ARRAY)
    np.testing.assert_array_equal(result(kernel(LOAD, twice, STORE)), A_ARRAY)
    first = result(kernel(LOAD, ir.When("row0 == 0", (STORE,))))
    assert np.isfinite(first[:2]).all() and np.isnan(first[2:]).all()


def test_a_loop_carries_what_was_there_before():
    count = ir.Value("count", ("i", "n"))
    start = ir.Full(count, ("TILE", "4"), 0.5)
    add = ir.Let(count, entry("count", "i", "n") + sympy.Symbol("step", real=True))
    store = replace(STORE, value=count)
    np.testing.assert_array_equal(result(kernel(start, ir.For("step", "4", (add,)), store)), np.full((5, 3), 6.5))
    np.testing.assert_array_equal(result(kernel(start, ir.For("step", "-2", (add,)), store)), np.full((5, 3), 0.5))


def test_what_a_loop_makes_ends_with_the_trip():
    with pytest.raises(Undefined, match="reads tile before it is made"):
        result(kernel(ir.For("step", "1", (LOAD,)), STORE))
    later = ir.When("step == 0", (LOAD,)), ir.When("step == 1", (STORE,))
    with pytest.raises(Undefined, match="reads tile before it is made"):
        result(kernel(ir.For("step", "2", later)))


def test_a_loop_keeps_extents():
    shrunk = ir.Sum(ir.Value("tile", ("i",)), TILE, "n")
    with pytest.raises(Misfit, match=r"tile enters the loop as \(2, 4\) and leaves it as \(2,\)"):
        result(kernel(LOAD, ir.For("step", "1", (shrunk,))))


def test_products_sums_and_running_sums():
    seen = np.random.default_rng(0).normal(size=(4, 4))
    square = ir.Value("square", ("i", "j"))
    transposed = ir.Value("tile", ("j", "n"))
    out = ir.Store("b", (ROW, replace(COL, axis="j")), square)
    dot = ir.Dot(square, TILE, transposed, "n")
    plan = kernel(LOAD, dot, replace(dot, acc=True), out)
    np.testing.assert_allclose(result(plan, 4, 4, 4, a=seen), 2 * seen @ seen.T)
    # axes go by name
    turned = kernel(LOAD, replace(dot, out=replace(square, axes=("j", "i")), right=transposed), out)
    np.testing.assert_allclose(result(turned, 4, 4, 4, a=seen), seen @ seen.T)
    along_rows = kernel(LOAD, ir.Cumsum(TILE, TILE, "i"), STORE)
    np.testing.assert_allclose(result(along_rows, 4, 4, 4, a=seen), np.cumsum(seen, axis=0))
    along_columns = kernel(LOAD, ir.Cumsum(TILE, TILE, "n"), STORE)
    np.testing.assert_allclose(result(along_columns, 4, 4, 2, a=seen), np.cumsum(seen, axis=1))


def test_a_scalar_index_is_one_position():
    """Row by row: the tile has one axis, the tensor two."""
    line = ir.Value("line", ("n",))
    plan = kernel(ir.Load(line, "a", ("row0", COL)), ir.Store("b", ("row0", COL), line))
    np.testing.assert_array_equal(result(plan, tile=1), A_ARRAY)
    single = ir.Value("single", ())
    plan = kernel(ir.Load(single, "a", ("row0", "cols - 1")), ir.Store("b", ("row0", "0"), single))
    np.testing.assert_array_equal(result(plan, tile=1)[:, 0], A_ARRAY[:, -1])


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ((STORE,), Undefined, "copy reads tile before it is made"),
        ((ir.Scalar("lost", "nowhere + 1"),), Undefined, "nowhere"),
        ((LOAD, ir.Let(TILE, entry("gone", "i", "n"))), Undefined, "gone"),
        ((LOAD, ir.Let(TILE, entry("tile", "i", "j"))), Misfit, "tile has 4 along j"),
        ((LOAD, ir.Let(TILE, entry("tile", "i", "n") * entry("row", "n"))), Misfit, "along n"),
        ((LOAD, ir.Let(TILE, entry("tile", "n"))), Misfit, r"read over \(n\); it has extents \(2, 4\)"),
        ((LOAD, ir.Dot(TILE, TILE, TILE, "n")), Misfit, "is not"),
        ((LOAD, ir.Dot(ir.Value("d", ("i", "j")), TILE, ir.Value("row", ("n",)), "n")), Misfit, "is not"),
        ((LOAD, ir.Dot(ir.Value("d", ("i",)), TILE, ir.Value("row", ("n",)), "n")), Misfit, "disagree along n"),
        ((replace(LOAD, out=replace(TILE, axes=("i", "p"))),), Misfit, "its place in a is over"),
        ((LOAD, replace(STORE, index=(ROW, "0"))), Misfit, "its place in b is over"),
        ((replace(LOAD, index=(replace(ROW, size="4"), COL)),), Misfit, "with 2 offsets"),
        ((LOAD, replace(STORE, index=(ROW, replace(COL, offsets="row", size="TILE", mask=None)))), Misfit, "tile is"),
        ((ir.Arange("half", "i", "TILE / 4"),), Misfit, "it must be one integer"),
    ],
)
def test_what_is_refused(body: tuple[ir.Stmt, ...], error: type, message: str):
    with pytest.raises(error, match=message):
        result(kernel(*body))


def test_a_load_of_a_tensor_that_is_not_there():
    optional = replace(A, flag="DOUBLE")
    with pytest.raises(Undefined, match="touches a, which is not there without DOUBLE"):
        result(kernel(LOAD, tensors=(optional, B)), a=None)
    with pytest.raises(ValueError, match="copy needs the tensor a"):
        result(kernel(ir.When("DOUBLE", (LOAD,)), tensors=(optional, B)), a=None, double=True)
    result(kernel(ir.When("DOUBLE", (LOAD,)), tensors=(optional, B)), a=None)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"a has shape \(3, 5\); copy has it as \(rows, cols\) = \(5, 3\)"):
        result(kernel(LOAD, STORE), a=np.ones((3, 5)))
    with pytest.raises(ValueError, match="copy needs the tensor b"):
        result(kernel(LOAD, STORE), b=None)
    with pytest.raises(ValueError, match="copy needs the sizes cols; give them"):
        run(kernel(), {}, {"rows": 1}, {"TILE": 1}, {"DOUBLE": False}, {})


def test_integers_stay_integers_and_the_rest_is_float64():
    places = ir.Tensor("places", ("rows",), "index")
    move = ir.Load(ir.Value("to", (), "int"), "places", ("row0",))
    line = ir.Value("line", ("n",))
    body = (move, ir.Load(line, "a", ("row0", COL)), ir.Store("b", ("to", COL), line))
    given = {"places": np.array([4, 3, 2, 1, 0]), "a": A_ARRAY.astype(np.float32)}
    np.testing.assert_array_equal(result(kernel(*body, tensors=(A, B, places)), tile=1, **given), A_ARRAY[::-1])
