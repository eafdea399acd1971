"""What lowering makes and what it leaves out: each value once, shared work shared, nothing above the diagonal."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import sympy

from ssdgen.plan import ir
from ssdgen.plan.lower import Lowering, Piece, Source, merge
from ssdgen.plan.schedules import passing, prepare, scan, walk
from ssdgen.plan.schedules.scan import Scan
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.dims import axes_of, entry, name_of
from ssdgen.spec.graph import Contract, Cumsum, Graph, Input, Last, Map, Sum
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_EXPAND, MULTI_HEAD, MULTI_INPUT
from ssdgen.spec.masks import FAMILIES, NONE

SHAPES = [
    Walk(),
    Walk(outputs=False),
    Walk(heads=2, row_tiles=2, n_tiles=2, p_tiles=2),
    Walk(outputs=False, heads=2, n_tiles=2, p_tiles=2),
    Walk(prepared=False, state_major="p"),
    Walk(descriptors=True, row_tiles=2),
]
KERNELS = [
    *(lambda layer, shape=shape: walk.kernel(layer, shape) for shape in SHAPES),
    *(lambda layer, n=n, p=p: scan.kernel(layer, Scan(n, p)) for n, p in ((1, 1), (2, 2))),
    lambda layer: prepare.kernel(layer),
    lambda layer: passing.kernel(layer),
    passing.both,
]
LAYERS = [Layer(family, layout) for family, layout in product(FAMILIES.values(), LAYOUTS.values())]


def dots(plan: ir.Kernel) -> Counter[str]:
    return Counter(stmt.out.name for stmt in ir.walk(plan.body) if isinstance(stmt, ir.Dot))


def loads(plan: ir.Kernel) -> Counter[str]:
    return Counter(stmt.tensor for stmt in ir.walk(plan.body) if isinstance(stmt, ir.Load))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.family.name}-{layer.layout.name}")
def test_plans_are_well_formed(layer: Layer):
    for make in KERNELS:
        plan = make(layer)
        names = [tensor.name for tensor in plan.tensors]
        assert len(set(names)) == len(names), plan.name
        touched = {stmt.tensor for stmt in ir.walk(plan.body) if isinstance(stmt, (ir.Load, ir.Store))}
        assert touched == set(names), f"{plan.name} has parameters that it does not touch, or the other way round"
        stored = {stmt.tensor for stmt in ir.walk(plan.body) if isinstance(stmt, ir.Store)}
        assert stored == {tensor.name for tensor in plan.tensors if tensor.out}, plan.name
        assert {tensor.flag for tensor in plan.tensors} - {None} <= set(plan.flags), plan.name
        positions = {stmt.name for stmt in ir.walk(plan.body) if isinstance(stmt, (ir.Arange, ir.Mask, ir.Scalar))}
        for stmt in ir.walk(plan.body):
            if isinstance(stmt, (ir.Load, ir.Store)):
                assert len(stmt.index) == len(plan.tensor(stmt.tensor).dims), f"{plan.name}: {stmt}"
            if isinstance(stmt, ir.Let):
                read = {(name_of(term), axes_of(term)) for term in stmt.formula.atoms(sympy.Indexed)}
                tiles = {(name, axes) for name, axes in read if name not in positions}
                assert tiles <= {(value.name, value.axes) for value in stmt.reads}, f"{plan.name}: {stmt}"


@pytest.mark.parametrize("layer", LAYERS[:5], ids=lambda layer: f"{layer.family.name}-{layer.layout.name}")
def test_the_same_plan_every_time(layer: Layer):
    for make in KERNELS:
        lowered = getattr(make(layer), "body", None)
        assert lowered == make(Layer(layer.family, layer.layout)).body


def test_nothing_is_loaded_twice():
    plan = walk.kernel(Layer(), Walk())
    # sequence numbers are read per token, before the chunk and at its end; running sums per token and at the end
    assert loads(plan) == Counter(
        {"x": 1, "B": 1, "C": 1, "dt": 1, "dA_cs": 2, "seq_idx": 3, "D": 1, "z": 1, "entering": 1}
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_of_a_program_share_what_their_layout_shares(heads: int):
    shared = walk.kernel(Layer(layout=MULTI_INPUT), Walk(heads=heads))
    assert (loads(shared)["B"], loads(shared)["C"], loads(shared)["x"]) == (1, 1, heads)
    assert dots(shared)["CB"] == 1
    apart = walk.kernel(Layer(layout=MULTI_HEAD), Walk(heads=heads))
    assert (loads(apart)["B"], loads(apart)["C"], loads(apart)["x"]) == (heads, heads, heads)
    assert sum(count for name, count in dots(apart).items() if name.startswith("CB")) == heads
    expand = walk.kernel(Layer(layout=MULTI_EXPAND), Walk(heads=heads))
    assert (loads(expand)["B"], loads(expand)["C"], loads(expand)["x"]) == (heads, 1, 1)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_tiles_above_the_diagonal_are_left_out(rows: int):
    plan = walk.kernel(Layer(), Walk(row_tiles=rows))
    count = {name: n for name, n in dots(plan).items() if name.startswith("CB")}
    assert sum(count.values()) == rows * (rows + 1) // 2
    # below the diagonal there is nothing to compare
    causal = [stmt.out.name for stmt in ir.walk(plan.body) if isinstance(stmt, ir.Let) and stmt.formula.has(sympy.Ge)]
    assert len(causal) == rows


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_value_of_all_tiles_is_summed_over_them(tiles: int):
    plan = walk.kernel(Layer(), Walk(n_tiles=tiles))
    assert dots(plan)["CB"] == tiles
    assert sum(count for name, count in dots(plan).items() if name.startswith("state")) == tiles


def test_a_family_without_decay_has_no_running_sums():
    for make in KERNELS:
        plan = make(Layer(NONE))
        assert "dA_cs" not in {tensor.name for tensor in plan.tensors}
        assert not [stmt for stmt in ir.walk(plan.body) if isinstance(stmt, ir.Cumsum)]
    assert [stmt.out.name for stmt in ir.walk(prepare.kernel(Layer()).body) if isinstance(stmt, ir.Cumsum)] == ["dA_cs"]


def test_what_does_not_change_stands_before_the_loop():
    plan = walk.kernel(Layer(), Walk(prepared=False))
    inner = next(stmt for stmt in plan.body if isinstance(stmt, ir.For))
    inside = {stmt.tensor for stmt in ir.walk(inner.body) if isinstance(stmt, ir.Load)}
    assert inside == {"x", "dt", "B", "C", "z", "seq_idx"}


def test_every_shape_has_a_name_of_its_own():
    shapes = [
        Walk(*chosen)
        for chosen in product((True, False), (1, 2), (1, 2), (1, 2), (1, 2), (True, False), (True, False), "np")
    ]
    assert len({shape.name for shape in shapes}) == len(shapes)
    assert Walk(heads=2, n_tiles=2, descriptors=True).name == "single_pass_2heads_2n_tma"
    assert Walk(outputs=False).name == "segment_state"
    assert [Scan(n, p).name for n, p in product((1, 2), (1, 2))] == [
        "chunk_scan",
        "chunk_scan_2p",
        "chunk_scan_2n",
        "chunk_scan_2n_2p",
    ]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Walk(prepared=False, row_tiles=2), "need one row tile per chunk"),
        (Walk(descriptors=True, p_tiles=2), "tensor descriptors need"),
        (Walk(descriptors=True, prepared=False), "tensor descriptors need"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shapes_that_cannot_be(shape: Walk, message: str):
    with pytest.raises(ValueError, match=message):
        walk.kernel(Layer(), shape)


# ---- lowering of small graphs

X, Y = entry("x", "j"), entry("y", "j")
WHOLE = Piece("", ir.Span("j", "col", "TILE"), position="col")


def lower(*nodes: Any, sources: dict[str, Source] | None = None, **options: Any) -> Lowering:
    source = {"x": Source("x", lambda at: (at["j"].span,))} if sources is None else sources
    return Lowering(Graph("small", (Input("x", ("j",), "x"), *nodes)), {"j": (WHOLE,)}, source, **options)


def test_a_value_is_made_once():
    lowering = lower(Map("y", ("j",), X + 1), Map("a", ("j",), Y * Y), Map("b", ("j",), Y + X))
    for name in ("a", "b", "a"):
        lowering.need(name, {"j": WHOLE})
    made = [stmt.out.name for stmt in lowering.scopes[1] if isinstance(stmt, (ir.Load, ir.Let))]
    assert made == ["x", "y", "a", "b"]


def test_an_option_updates_its_value_in_place():
    lowering = lower(Map("y", ("j",), 2 * X, "TWICE", X), rename={"y": "x"})
    lowering.need("y", {"j": WHOLE})
    last = lowering.scopes[1][-1]
    assert isinstance(last, ir.When) and last.condition == "TWICE"
    assert isinstance(last.body[0], ir.Let) and last.body[0].out.name == "x"


def test_a_value_from_outside_the_loop_is_not_updated_inside_it():
    """Every later trip would update it again."""
    nodes = (Input("z", ("j",), "z"), Map("y", ("j",), X + entry("z", "j"), "HAS_Z", X))
    sources = {
        "x": Source("x", lambda at: (at["j"].span,), level=0),
        "z": Source("z", lambda at: (at["j"].span,), level=1),
    }
    with pytest.raises(ValueError, match="y would update x, made outside the loop, inside it"):
        lower(*nodes, sources=sources).need("y", {"j": WHOLE})


def test_an_input_needs_a_source():
    with pytest.raises(ValueError, match="small: x is an input without a source; give it one"):
        lower(sources={}).need("x", {"j": WHOLE})


def test_only_the_last_entry_of_a_running_sum_is_a_sum():
    right = (Cumsum("s", ("j",), X, "j"), Last("end", (), entry("s", "j"), "j"))
    lowering = lower(*right)
    lowering.need("end", {})
    assert isinstance(lowering.scopes[1][-1], ir.Sum)
    with pytest.raises(ValueError, match="only the last entry of a running sum can be lowered, not of y"):
        lower(Map("y", ("j",), X + 1), Last("end", (), Y, "j")).need("end", {})


def test_a_running_sum_from_the_end_is_not_one_from_the_start():
    lowering = lower(Cumsum("s", ("j",), X, "j", reverse=True))
    lowering.need("s", {"j": WHOLE})
    last = lowering.scopes[1][-1]
    assert isinstance(last, ir.Cumsum) and last.reverse


def test_a_sum_adds_up_the_pieces_of_its_axis():
    lowering = lower(Sum("s", (), X, ("j",)))
    lowering.pieces["j"] = (replace(WHOLE, suffix="_0"), replace(WHOLE, suffix="_1", order=1))
    lowering.need("s", {})
    kinds = [type(stmt).__name__ for stmt in lowering.scopes[1]]
    assert kinds == ["Load", "Sum", "Load", "Sum", "Let"]


def test_a_sum_over_heads_is_left_to_a_loop():
    lowering = lower(Input("u", ("h",), "u"), Sum("s", (), entry("u", "h"), ("h",)))
    lowering.pieces["h"] = (Piece("", scalar="head"),)
    with pytest.raises(ValueError, match="s is a sum over h; a loop must add it up"):
        lowering.need("s", {})


def test_what_an_option_alone_needs_stands_under_it():
    lowering = lower(Map("y", ("j",), X + 1), Map("w", ("j",), Y * 2))
    with lowering.under("HAS_Z"):
        lowering.need("w", {"j": WHOLE})
    assert {stmt.condition for stmt in lowering.scopes[1] if isinstance(stmt, ir.When)} == {"HAS_Z"}
    made, _ = lowering.need("y", {"j": WHOLE}) or (None, 0)
    assert made is not None and isinstance(lowering.scopes[1][-1], ir.Let)


def test_a_value_that_is_kept_is_not_updated_in_place():
    lowering = lower(Map("y", ("j",), X * 2, "HAS_Z", X), kept=frozenset({"y"}))
    made, _ = lowering.need("y", {"j": WHOLE}) or (None, 0)
    assert made is not None and made.name == "y"
    *_, alias, update = lowering.scopes[1]
    assert isinstance(alias, ir.Let) and alias.formula == X
    assert isinstance(update, ir.When) and update.condition == "HAS_Z"


def test_a_position_past_the_end_is_zero_where_it_must_be():
    masked = Piece("", ir.Span("j", "col", "TILE", mask="col_in"), position="col")
    lowering = lower(Map("y", ("j",), X + 1), zero_past_end=frozenset({"y"}))
    lowering.pieces["j"] = (masked,)
    lowering.need("y", {"j": masked})
    last = lowering.scopes[1][-1]
    assert isinstance(last, ir.Let)
    assert last.formula == sympy.Piecewise((X + 1, sympy.Ne(entry("col_in", "j"), 0)), (0, True))


def test_a_sum_starts_from_what_is_added_to_a_product():
    nodes = (
        Input("B", ("j", "n"), "B"),
        Input("y0", ("n",), "y0"),
        Contract("xB", ("n",), X, entry("B", "j", "n"), "j"),
        Map("y", ("n",), entry("y0", "n") * 3 + entry("xB", "n")),
    )
    n = Piece("", ir.Span("n", "n", "N"))
    sources = {name: Source(name, lambda at: ()) for name in ("x", "B", "y0")}
    lowering = lower(*nodes, sources=sources)
    lowering.pieces["n"] = (n,)
    lowering.need("y", {"n": n})
    kinds = [stmt for stmt in lowering.scopes[1] if isinstance(stmt, (ir.Let, ir.Dot))]
    assert [type(stmt).__name__ for stmt in kinds] == ["Let", "Dot"]
    assert isinstance(kinds[1], ir.Dot) and kinds[1].acc and kinds[1].out.name == "y"


def test_neighbours_under_one_condition_are_joined():
    a, b, c = (ir.Note(text) for text in "abc")
    apart = (ir.When("F", (a,)), ir.When("F", (b,)), c, ir.When("F", (a,)), ir.When("G", (b,)))
    assert merge(apart) == (ir.When("F", (a, b)), c, ir.When("F", (a,)), ir.When("G", (b,)))
    # what stands after an `otherwise` does not belong to the condition any more than before
    other = (ir.When("F", (a,), (b,)), ir.When("F", (c,)))
    assert merge(other) == other
