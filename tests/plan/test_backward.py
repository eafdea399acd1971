"""The backward pass, interpreted, is the oracle's: every gradient, mask family, head layout, option and length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssdgen.plan import ir
from ssdgen.plan.interpret import backward
from ssdgen.plan.schedules import adjoint, groups, reverse, states, steps
from ssdgen.plan.schedules.groups import Groups
from ssdgen.plan.schedules.reverse import Reverse
from ssdgen.plan.schedules.states import States
from ssdgen.spec import oracle_gradient
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, MULTI_HEAD, HeadLayout
from ssdgen.spec.masks import FAMILIES, NONE, MaskFamily
from tests.plan.agree import TOLERANCE, inputs_of
from tests.spec.cases import Sizes

SMALL = Sizes(batch=2, seqlen=21, nheads=4, headdim=5, dstate=6, ngroups=2)
EVERYTHING = Layer(skip="headdim", gate=True, dt_bias=True, dt_softplus=True, initial_states=True, boundaries=True)
LIMITS = (0.05, 1.5)
# tokens per segment, in chunks of 8: a walk, segments of two chunks, split
SEGMENTS = {"walk": None, "segments": 16, "split": 8}
each_segment = pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS)


def compare(
    layer: Layer,
    sizes: Sizes,
    seed: int,
    segment: int | None,
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
    found = backward(layer, inputs, d_y, d_final, chunk=chunk, segment=segment, needs=needs)
    wanted = oracle_gradient.backward(layer, inputs, d_y, d_final, chunk=chunk)
    wanted = {name: value for name, value in wanted.items() if needs is None or name.removeprefix("d_") in needs}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        atol = TOLERANCE * (1 + np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=TOLERANCE, atol=atol, err_msg=name)


@each_segment
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_layouts_and_masks(layout: HeadLayout, family: MaskFamily, segment: int | None, seed: int):
    compare(Layer(family, layout), SMALL, seed, segment)
    compare(replace(EVERYTHING, family=family, layout=layout), SMALL, seed, segment)


@each_segment
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
def test_each_option_alone(options: dict[str, Any], segment: int | None, seed: int):
    compare(Layer(**options), Sizes(seqlen=21, headdim=5, dstate=6), seed, segment)
    compare(Layer(**options), Sizes(seqlen=21, headdim=5, dstate=6), seed, segment, final=False)


@each_segment
@pytest.mark.parametrize("seqlen", [1, 7, 8, 13, 21, 64])
def test_odd_lengths(seqlen: int, segment: int | None, seed: int):
    layer = Layer(skip="head", gate=True, initial_states=True, boundaries=True)
    compare(layer, Sizes(seqlen=seqlen), seed, segment)


@each_segment
@pytest.mark.parametrize("limits", [(0.3, np.inf), (0.0, 0.4), (0.0, np.inf)], ids=str)
def test_limits(limits: tuple[float, float], segment: int | None, seed: int):
    compare(Layer(dt_softplus=True), Sizes(seqlen=21), seed, segment, limits=limits)


@each_segment
def test_few_boundaries(segment: int | None, seed: int):
    """Some chunks and segments have none."""
    layer = Layer(initial_states=True, boundaries=True)
    seq_idx = np.repeat([[3, 5, 9]], [11, 29, 5], axis=1)
    compare(layer, Sizes(seqlen=45), seed, segment, seq_idx=seq_idx)


@each_segment
@pytest.mark.parametrize(("headdim", "dstate"), [(24, 16), (16, 24), (40, 96)])
def test_two_tiles(headdim: int, dstate: int, segment: int | None, seed: int):
    compare(EVERYTHING, Sizes(seqlen=13, headdim=headdim, dstate=dstate), seed, segment)


@each_segment
@pytest.mark.parametrize(
    "needs",
    [{"x"}, {"B"}, {"C", "x"}, {"dt"}, {"A"}, {"dt_bias"}, {"D"}, {"z"}, {"initial_states"}, set()],
    ids=lambda needs: "-".join(sorted(needs)) or "nothing",
)
def test_only_what_is_asked_for(needs: set[str], segment: int | None, seed: int):
    compare(EVERYTHING, Sizes(seqlen=13), seed, segment, needs=frozenset(needs))


@each_segment
def test_a_decay_to_nothing(segment: int | None, seed: int):
    """Running sums in the thousands: nothing is infinite or NaN."""
    compare(Layer(), Sizes(seqlen=21), seed, segment, A=np.array([-1e4, -2e4]))


KERNELS = [
    lambda layer: states.kernel(layer, States(2)),
    lambda layer: reverse.kernel(layer, Reverse(n_tiles=2, p_tiles=2)),
    lambda layer: reverse.kernel(layer, Reverse(outputs=False, n_tiles=2)),
    lambda layer: groups.kernel(layer, Groups(2, 2)),
    steps.kernel,
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
        assert conditions <= set(plan.flags), plan.name
        outs = [stmt.out for stmt in statements if isinstance(stmt, ir.Dot) and not stmt.acc]
        assert len(outs) == len(set(outs)), plan.name


def test_a_kernel_without_outputs_shares_out_headdim():
    with pytest.raises(ValueError, match="use p_tiles=1"):
        reverse.kernel(Layer(), Reverse(outputs=False, p_tiles=2))


def test_a_sum_in_two_parts_is_the_sum():
    """What the reverse walk leaves waits for nothing that is made from the entering states."""
    graph = adjoint.graph(Layer())
    for part in ("d_dA_cs_walk", "d_dt_walk"):
        assert not {node.name for node in graph.closure((part,), frozenset())} & set(adjoint.LATE)
    later = {node.name for node in graph.closure(("d_dA_cs_scaled",), frozenset())}
    assert {"d_dA_cs_walk", "d_left_decay"} <= later
