"""The oracle against Mamba-2 written out by hand, which shares nothing with the description."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, HeadLayout
from ssdgen.spec.masks import CONSTANT, FAMILIES, GATED, NONE, SSD, MaskFamily
from ssdgen.spec.oracle import OracleInput, oracle
from tests.spec.cases import Sizes, draw

SIZES = Sizes(batch=2, seqlen=9, nheads=6, headdim=3, dstate=4, ngroups=2)
SHARED = {"multi-input": "BC", "multi-head": "", "multi-contract": "xB", "multi-expand": "xC"}


def by_hand(arrays: dict[str, Any], mask: str, layout: str, softplus: bool, limits=(0.0, math.inf)) -> tuple[Any, Any]:
    """y and last states of a layer, one number at a time in Python, as the paper writes it."""
    x, dt, A, B, C = (arrays[name] for name in ("x", "dt", "A", "B", "C"))
    batch, seqlen, nheads = dt.shape
    headdim, dstate = x.shape[3], B.shape[3]
    y, last = np.zeros((batch, seqlen, nheads, headdim)), np.zeros((batch, nheads, headdim, dstate))
    for b in range(batch):
        for h in range(nheads):
            at = {name: h * arrays[name].shape[2] // nheads if name in SHARED[layout] else h for name in "xBC"}
            state = arrays["initial_states"][b, h].copy() if "initial_states" in arrays else last[b, h]
            for t in range(seqlen):
                step = float(dt[b, t, h])
                step += float(arrays["dt_bias"][h]) if "dt_bias" in arrays else 0.0
                step = math.log(1.0 + math.exp(step)) if softplus else step
                step = min(max(step, limits[0]), limits[1])
                if mask == "gated":
                    kept = math.exp(A[b, t, h])
                else:
                    kept = {"ssd": math.exp(step * A[h]), "constant": math.exp(A[h]), "none": 1.0}[mask]
                if "seq_idx" in arrays and t > 0 and arrays["seq_idx"][b, t] != arrays["seq_idx"][b, t - 1]:
                    kept = 0.0
                state = kept * state + step * np.outer(x[b, t, at["x"]], B[b, t, at["B"]])
                out = state @ C[b, t, at["C"]]
                if "D" in arrays:
                    out = out + arrays["D"][h] * x[b, t, at["x"]]
                if "z" in arrays:
                    z = arrays["z"][b, t, h]
                    out = out * z / (1.0 + np.exp(-z))
                y[b, t, h] = out
            last[b, h] = state
    return y, last


def agrees(layer: Layer, seed: int, limits=(0.0, math.inf)) -> bool:
    arrays = draw(layer, SIZES, seed)
    y, last = by_hand(arrays, layer.family.name, layer.layout.name, layer.dt_softplus, limits)
    found = oracle(layer, **arrays, dt_limit=limits)
    return np.allclose(found.y, y, 1e-10, 1e-10) and np.allclose(found.final_states, last, 1e-10, 1e-10)


@pytest.mark.parametrize("family", (*FAMILIES.values(), GATED), ids=lambda family: family.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_layouts_and_masks(family: MaskFamily, layout: HeadLayout, seed: int):
    assert agrees(Layer(family, layout), seed)
    everything = Layer(family, layout, "headdim", True, True, True, True, True)
    assert agrees(everything, seed, limits=(0.2, 0.9))


@pytest.mark.parametrize(
    "options",
    [
        {"skip": "head"},
        {"skip": "headdim"},
        {"gate": True},
        {"dt_bias": True},
        {"dt_softplus": True},
        {"initial_states": True},
        {"boundaries": True},
    ],
    ids=lambda options: "-".join(str(value) for pair in options.items() for value in pair),
)
def test_each_option_alone(options: dict[str, Any], seed: int):
    assert agrees(Layer(**options), seed)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_packed_sequences_are_sequences_apart(rows: int, seed: int):
    layer = Layer(dt_softplus=True, skip="head")
    sizes = Sizes(batch=1, seqlen=12, nheads=2, headdim=3, dstate=4)
    arrays, bounds = draw(layer, sizes, seed), [0, 5, 6, 12]
    initial = np.random.default_rng(seed).normal(size=(rows, 2, 3, 4)) if rows else None
    packed = oracle(layer, **arrays, initial_states=initial, cu_seqlens=np.array(bounds))
    assert packed.varlen_states is not None
    for s, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        alone = {name: arrays[name][:, start:stop] for name in ("x", "dt", "B", "C")}
        state = initial[[s]] if initial is not None and s < rows else None
        expected = oracle(layer, A=arrays["A"], D=arrays["D"], **alone, initial_states=state)
        np.testing.assert_allclose(packed.y[:, start:stop], expected.y, rtol=1e-12)
        np.testing.assert_allclose(packed.varlen_states[s], expected.final_states[0], rtol=1e-12)
    np.testing.assert_array_equal(packed.final_states[0], packed.varlen_states[-1])


def test_packed_sequences_are_runs_of_seq_idx(seed: int):
    arrays = draw(Layer(), Sizes(seqlen=12), seed)
    runs = np.repeat([[4, 9, 2]], [5, 1, 6], axis=1)
    packed = oracle(Layer(), **arrays, cu_seqlens=np.array([0, 5, 6, 12]))
    np.testing.assert_allclose(oracle(Layer(), **arrays, seq_idx=runs).y, packed.y, rtol=1e-12)


def test_an_empty_sequence_keeps_its_state(seed: int):
    arrays = draw(Layer(initial_states=True), Sizes(seqlen=4), seed)
    found = oracle(Layer(), **arrays, cu_seqlens=np.array([0, 0, 4]))
    assert found.varlen_states is not None
    np.testing.assert_array_equal(found.varlen_states[0], arrays["initial_states"][0])


def test_no_batch_at_all():
    arrays = draw(Layer(), Sizes(batch=0, seqlen=3), 0)
    assert oracle(Layer(), **arrays).y.shape == (0, 3, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": np.ones((1, 7))}, r"dt has shape \(1, 7\)"),
        ({"B": np.ones((1, 7, 3, 4)), "C": np.ones((1, 7, 3, 4))}, "all must agree and divide the heads"),
        ({"C": np.ones((1, 7, 2, 4))}, "all must agree"),
        ({"x": np.ones((1, 7, 1, 3))}, "x has 1 heads; layout multi-input needs 2"),
        ({"C": np.ones((1, 7, 1, 5))}, r"C has shape \(1, 7, 1, 5\); it must be \(1, 7, 1, 4\)"),
        ({"A": np.ones(3)}, "A has shape"),
        ({"z": np.ones((1, 7, 2, 4))}, "z has shape"),
        ({"cu_seqlens": np.array([0, 3, 6])}, "it must rise from 0 to seqlen"),
        ({"initial_states": np.ones((2, 2, 3, 4))}, "initial_states has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str):
    arrays = draw(Layer(), Sizes(), 0)
    with pytest.raises(OracleInput, match=message):
        oracle(Layer(), **{**arrays, **change})


def test_a_layer_gets_what_it_asks_for():
    arrays = draw(Layer(), Sizes(), 0)
    with pytest.raises(OracleInput, match="the layer has D, z, which was not given"):
        oracle(Layer(skip="head", gate=True), **arrays)


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("sign of the decay", MaskFamily("ssd", -SSD.log_decay, "")),
        ("no step in the decay", MaskFamily("ssd", CONSTANT.log_decay, "")),
        ("twice the decay", MaskFamily("ssd", 2 * SSD.log_decay, "")),
        ("no decay", MaskFamily("ssd", NONE.log_decay, "")),
    ],
)
def test_a_broken_mask_is_noticed(what: str, broken: MaskFamily, seed: int):
    assert not agrees(Layer(broken), seed), what


@pytest.mark.parametrize(
    ("name", "broken", "options"),
    [
        ("input_weight", lambda dt: 1, {}),
        ("input_weight", lambda dt: -dt, {}),
        ("add_bias", lambda dt, bias: dt - bias, {"dt_bias": True}),
        ("rectify", lambda dt: dt, {"dt_softplus": True}),
        ("clamp", lambda dt, low, high: dt, {}),
        ("skip", lambda y, d, x: y + d, {"skip": "head"}),
        ("skip", lambda y, d, x: y - d * x, {"skip": "head"}),
        ("gate", lambda y, z: y * z, {"gate": True}),
    ],
)
def test_a_broken_formula_is_noticed(name: str, broken: Any, options: dict[str, Any], seed: int, monkeypatch):
    assert agrees(Layer(**options), seed)
    monkeypatch.setattr(f"ssdgen.spec.layer.{name}", broken)
    assert not agrees(Layer(**options), seed)


def test_a_broken_index_map_is_noticed(seed: int):
    class Interleaved(HeadLayout):
        def index(self, operand, head=None):
            return super().index(operand) if self.per_head(operand) else super().index(operand) * 0

    layout = Interleaved(MULTI_CONTRACT.name, x=False, b=False, c=True, about="")
    assert agrees(Layer(layout=MULTI_CONTRACT), seed)
    assert not agrees(Layer(layout=layout), seed)
