"""The backward pass, interpreted, is the oracle's: every gradient, mask family, head layout, option and length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssdgen.plan import ir
from ssdgen.plan.interpret import backward, run
from ssdgen.plan.schedules import adjoint, gradients, groups, passing, reverse, states, steps
from ssdgen.plan.schedules.gradients import Gradients
from ssdgen.plan.schedules.groups import Groups
from ssdgen.plan.schedules.reverse import Reverse
from ssdgen.plan.schedules.states import States
from ssdgen.plan.schedules.steps import Steps
from ssdgen.spec import oracle_gradient
from ssdgen.spec.graph import reads
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, MULTI_HEAD, HeadLayout
from ssdgen.spec.masks import FAMILIES, NONE, MaskFamily
from tests.plan.agree import TOLERANCE, inputs_of
from tests.spec.cases import Sizes

SMALL = Sizes(batch=2, seqlen=21, nheads=4, headdim=5, dstate=6, ngroups=2)
EVERYTHING = Layer(skip="headdim", gate=True, dt_bias=True, dt_softplus=True, initial_states=True, boundaries=True)
LIMITS = (0.05, 1.5)
# schedule and tokens per segment, in chunks of 8: one walk, segments of two chunks, split
WAYS: dict[str, dict[str, Any]] = {
    "walk": {},
    "walk-segments": {"segment": 16},
    "walk-split": {"segment": 8},
    "chunks": {"schedule": "chunks"},
    "chunks-segments": {"schedule": "chunks", "segment": 16},
    "chunks-split": {"schedule": "chunks", "segment": 8},
    "specialised": {"schedule": "chunks", "specialised": True},
    "specialised-segments": {"schedule": "chunks", "segment": 16, "specialised": True},
    "specialised-three-roles": {"schedule": "chunks", "specialised": True, "three": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def compare(
    layer: Layer,
    sizes: Sizes,
    seed: int,
    way: dict[str, Any],
    *,
    chunk: int = 8,
    final: bool = True,
    needs: frozenset[str] | None = None,
    limits: tuple[float, float] = LIMITS,
    **changes: Any,
) -> None:
    """Every gradient that is asked for against the oracle's; a NaN that was left is a disagreement."""
    random = np.random.default_rng(seed)
    inputs = {**inputs_of(layer, sizes, seed, limits), **changes}
    d_y = random.normal(size=(sizes.batch, sizes.seqlen, sizes.nheads, sizes.headdim))
    d_final = random.normal(size=(sizes.batch, sizes.nheads, sizes.headdim, sizes.dstate)) if final else None
    found = backward(layer, inputs, d_y, d_final, chunk=chunk, needs=needs, **way)
    wanted = oracle_gradient.backward(layer, inputs, d_y, d_final, chunk=chunk)
    wanted = {name: value for name, value in wanted.items() if needs is None or name.removeprefix("d_") in needs}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        atol = TOLERANCE * (1 + np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=TOLERANCE, atol=atol, err_msg=name)


@each_way
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_layouts_and_masks(layout: HeadLayout, family: MaskFamily, way: dict[str, Any], seed: int):
    compare(Layer(family, layout), SMALL, seed, way)
    compare(replace(EVERYTHING, family=family, layout=layout), SMALL, seed, way)


@each_way
@pytest.mark.parametrize(
    "options",
    [
        {"skip": "head"},
        {"skip": "headdim"},
        {"gate": True},
        {"skip": "head", "gate": True},
        {"dt_bias": True},
        {"dt_softplus": True},
        {"initial_states": True},
        {"boundaries": True},
        {"boundaries": True, "initial_states": True},
    ],
    ids=lambda options: "-".join(str(value) for pair in options.items() for value in pair),
)
def test_each_option_alone(options: dict[str, Any], way: dict[str, Any], seed: int):
    compare(Layer(**options), Sizes(seqlen=21, headdim=5, dstate=6), seed, way)
    compare(Layer(**options), Sizes(seqlen=21, headdim=5, dstate=6), seed, way, final=False)


@each_way
@pytest.mark.parametrize("seqlen", [1, 7, 8, 13, 21, 64])
def test_odd_lengths(seqlen: int, way: dict[str, Any], seed: int):
    layer = Layer(skip="head", gate=True, initial_states=True, boundaries=True)
    compare(layer, Sizes(seqlen=seqlen), seed, way)


@each_way
@pytest.mark.parametrize("limits", [(0.3, np.inf), (0.0, 0.4), (0.0, np.inf)], ids=str)
def test_limits(limits: tuple[float, float], way: dict[str, Any], seed: int):
    compare(Layer(dt_softplus=True), Sizes(seqlen=21), seed, way, limits=limits)


@each_way
def test_few_boundaries(way: dict[str, Any], seed: int):
    """Some chunks and segments have none."""
    layer = Layer(initial_states=True, boundaries=True)
    seq_idx = np.repeat([[3, 5, 9]], [11, 29, 5], axis=1)
    compare(layer, Sizes(seqlen=45), seed, way, seq_idx=seq_idx)


@each_way
@pytest.mark.parametrize(("headdim", "dstate"), [(24, 16), (16, 24), (40, 96)])
def test_two_tiles(headdim: int, dstate: int, way: dict[str, Any], seed: int):
    compare(EVERYTHING, Sizes(seqlen=13, headdim=headdim, dstate=dstate), seed, way)


@pytest.mark.parametrize(
    "how", [{"block_p": 16}, {"block_n": 16}, {"block_p": 16, "block_n": 32, "segment": 8}], ids=str
)
@pytest.mark.parametrize(("headdim", "dstate"), [(24, 16), (40, 96)])
def test_parts_of_what_decays_get_are_added_up(headdim: int, dstate: int, how: dict[str, int], seed: int):
    """By one kernel or both, where a segment is a chunk too; of a kernel whose programs share nothing out is one."""
    compare(EVERYTHING, Sizes(seqlen=13, headdim=headdim, dstate=dstate), seed, how)


@pytest.mark.parametrize("needs", [None, {"B"}, {"x", "A"}], ids=("all", "B", "A-x"))
@pytest.mark.parametrize(
    "layer",
    [Layer(), Layer(NONE, MULTI_HEAD), replace(EVERYTHING, layout=MULTI_CONTRACT)],
    ids=("ssd", "none-multi_head", "everything-multi_contract"),
)
def test_programs_share_out_headdim_and_dstate(layer: Layer, needs: set[str] | None, seed: int):
    sizes = Sizes(batch=2, seqlen=21, nheads=4, headdim=20, dstate=18, ngroups=2)
    how = {"segment": 16, "block_p": 16, "block_n": 16}
    compare(layer, sizes, seed, how, needs=needs and frozenset(needs))


@each_way
@pytest.mark.parametrize(
    "needs",
    [{"x"}, {"B"}, {"C", "x"}, {"dt"}, {"A"}, {"dt_bias"}, {"D"}, {"z"}, {"initial_states"}, set()],
    ids=lambda needs: "-".join(sorted(needs)) or "nothing",
)
def test_only_what_is_asked_for(needs: set[str], way: dict[str, Any], seed: int):
    compare(EVERYTHING, Sizes(seqlen=13), seed, way, needs=frozenset(needs))


@each_way
def test_a_decay_to_nothing(way: dict[str, Any], seed: int):
    """Running sums in the thousands: nothing is infinite or NaN."""
    compare(Layer(), Sizes(seqlen=21), seed, way, A=np.array([-1e4, -2e4]))


KERNELS = [
    lambda layer: states.kernel(layer, States(n_tiles=2)),
    lambda layer: states.kernel(layer, States(True, n_tiles=2)),
    lambda layer: states.kernel(layer, States(True, False, 2)),
    lambda layer: states.kernel(layer, States(True, consumers=2)),
    lambda layer: reverse.kernel(layer, Reverse(n_tiles=2, p_tiles=2)),
    lambda layer: reverse.kernel(layer, Reverse(n_tiles=2, blocks=True)),
    lambda layer: gradients.kernel(layer, Gradients(2, 2)),
    lambda layer: groups.kernel(layer, Groups(2, 2)),
    lambda layer: groups.kernel(layer, Groups(p_tiles=2, blocks=True)),
    steps.kernel,
    lambda layer: steps.kernel(layer, Steps(blocks=True)),
]


@pytest.mark.parametrize("layer", [Layer(), Layer(NONE, MULTI_HEAD), Layer(layout=MULTI_CONTRACT)])
def test_plans_are_well_formed(layer: Layer):
    """Tensors and flags are those that the statements use, and nothing is loaded twice."""
    for make in KERNELS:
        plan = make(layer)
        statements = list(ir.walk(plan.body))
        used = {stmt.tensor for stmt in statements if isinstance(stmt, (ir.Load, ir.Store))}
        assert used <= {tensor.name for tensor in plan.tensors}
        conditions = {stmt.condition for stmt in statements if isinstance(stmt, ir.When)}
        assert conditions <= {*plan.flags, "walk < walks"}, plan.name
        outs = [stmt.out for stmt in statements if isinstance(stmt, ir.Dot) and not stmt.acc]
        assert len(outs) == len(set(outs)), plan.name


@pytest.mark.parametrize("left", [False, True], ids=("right", "left"))
@pytest.mark.parametrize("needs", [None, {"B"}, {"x", "dt"}, {"D", "C"}], ids=("all", "B", "dt-x", "C-D"))
@pytest.mark.parametrize(("headdim", "dstate", "segment"), [(24, 96, None), (40, 16, 16), (20, 140, None)])
def test_consumers_have_a_tile_of_headdim_each(
    headdim: int, dstate: int, segment: int | None, needs: set[str] | None, left: bool, seed: int
):
    """And four tiles of dstate, or two of which one overhangs; d_D is left by chunk.

    left: where the state is a left operand; heads are added up in three roles then.
    """
    sizes = Sizes(batch=2, seqlen=29, nheads=2, headdim=headdim, dstate=dstate)
    how = {"specialised": True, "segment": segment, "left": left, "three": left}
    compare(replace(EVERYTHING, gate=False), sizes, seed, how, needs=needs and frozenset(needs))


def test_segments_of_the_forward_pass_are_its_own():
    with pytest.raises(ValueError, match="use walk.kernel"):
        states.kernel(Layer(), States(each=False))


def test_programs_that_share_an_extent_out_have_one_tile_of_it():
    with pytest.raises(ValueError, match="one tile of it, not 2"):
        reverse.kernel(Layer(), Reverse(p_tiles=2, blocks=True))
    with pytest.raises(ValueError, match="one tile of it, not 2"):
        groups.kernel(Layer(), Groups(n_tiles=2, blocks=True))


def test_only_consumers_have_their_state_on_a_side():
    with pytest.raises(ValueError, match="only consumers"):
        reverse.kernel(Layer(), Reverse(2, blocks=True, left=True))


def test_a_third_role_needs_decays():
    with pytest.raises(ValueError, match="without decays"):
        groups.kernel(Layer(NONE), Groups(blocks=True, specialised=True, three=True))
    with pytest.raises(ValueError, match="without decays"):
        gradients.kernel(Layer(NONE), Gradients(specialised=True, three=True))


def test_roles_need_what_heads_share():
    for layer, shape in (
        (Layer(), Gradients(2, specialised=True)),
        (Layer(layout=MULTI_HEAD), Gradients(specialised=True)),
    ):
        with pytest.raises(ValueError, match="shared B and C"):
            gradients.kernel(layer, shape)
    for make in (
        lambda layer, whole: reverse.kernel(layer, Reverse(2, blocks=not whole, consumers=2)),
        lambda layer, whole: groups.kernel(layer, Groups(blocks=not whole, specialised=True)),
    ):
        for layer, whole in ((Layer(), True), (Layer(layout=MULTI_HEAD), False)):
            with pytest.raises(ValueError, match="shared B and C"):
                make(layer, whole)


def test_what_is_scaled_first_is_the_same():
    """The adjoint of C before and after the change of order is one number; the sums over heads need no other tile."""
    graph = adjoint.graph(Layer())
    assert "d_C_y_state" not in {name for node in graph.nodes for name in reads(node)}
    assert {"d_y_skip", "y_state"} <= set(reads(graph["d_left_decay_terms"]))
    assert reads(graph["d_dA_cs_scores_columns"]) == ("d_dt_scores", "dt")


@pytest.mark.parametrize("nsegments", [1, 3, 4, 9])
@pytest.mark.parametrize("given", [False, True])
def test_passing_both_ways_is_passing_each(given: bool, nsegments: int, seed: int):
    """The bits of two launches: of states, and of their adjoints."""
    random = np.random.default_rng(seed)
    batch, nheads, size = 2, 3, 10
    summaries = random.normal(size=(2, batch, nsegments, nheads, size))
    first, leaving = random.normal(size=(2, batch, nheads, size)) if given else (None, None)
    total = -random.uniform(0, 2, (batch, nsegments, nheads))
    sizes = {"batch": batch, "nheads": nheads, "nsegments": nsegments, "state_size": size}

    def ends() -> Any:
        return np.full((batch, nheads, size), np.nan) if given else None

    def made(kernel: ir.Kernel, **tensors: Any) -> None:
        there = {name: tensors[name] is not None for name in ("initial_states", "d_final_states", "d_initial")}
        names = ("HAS_ENTERING", "HAS_LEAVING", "STORE_INITIAL")
        flags = dict(zip(names, there.values(), strict=True)) | {"STORE_FINAL": tensors.get("final_states") is not None}
        known = {tensor.name for tensor in kernel.tensors}
        tensors = {name: value for name, value in tensors.items() if name in known}
        run(kernel, tensors, sizes, {"BLOCK": 4}, {name: flags[name] for name in kernel.flags}, {})

    ours, adjoints, d_initial = *(each.copy() for each in summaries), ends()
    rest = {"total": total, "d_final_states": leaving, "d_initial": d_initial}
    made(passing.both(Layer()), summary=ours, d_summary=adjoints, initial_states=first, **rest)
    alone, back, d_first = *(each.copy() for each in summaries), ends()
    rest = {"total": total, "d_final_states": None, "d_initial": None}
    made(passing.kernel(Layer()), summary=alone, initial_states=first, final_states=None, **rest)
    made(passing.kernel(Layer(), True), summary=back, initial_states=leaving, final_states=d_first, **rest)
    for found, wanted in ((ours, alone), (adjoints, back), (d_initial, d_first)):
        np.testing.assert_array_equal(found, wanted)
