"""One token as a graph is the recurrence, for every family and layout; with a replay too, whatever was kept."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from ssdgen.spec import layer as formulas
from ssdgen.spec import notation
from ssdgen.spec.evaluate import evaluate
from ssdgen.spec.graph import Input
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_HEAD
from ssdgen.spec.masks import FAMILIES, SSD
from ssdgen.spec.oracle import oracle
from ssdgen.spec.step import step_graph

HEADS, P, N, KEPT = 2, 3, 5, 4
LIMITS = (0.05, 0.6)


def drawn(layer: Layer, tokens: int, seed: int) -> dict[str, Any]:
    """Arguments of the oracle for one group of heads, and the state before."""
    rng = np.random.default_rng(seed)
    heads = {name: HEADS if layer.layout.per_head(name) else 1 for name in "xBC"}
    return {
        "x": rng.normal(size=(1, tokens, heads["x"], P)),
        "dt": rng.normal(size=(1, tokens, HEADS)),
        "A": -rng.uniform(0.1, 1, HEADS),
        "B": rng.normal(size=(1, tokens, heads["B"], N)),
        "C": rng.normal(size=(1, tokens, heads["C"], N)),
        "D": rng.normal(size=(HEADS, P)),
        "z": rng.normal(size=(1, tokens, HEADS, P)),
        "dt_bias": rng.normal(size=HEADS),
        "initial_states": rng.normal(size=(1, HEADS, P, N)),
    }


def token(layer: Layer, args: dict[str, Any], t: int) -> dict[str, Any]:
    """The inputs of the graph of token t, beside the state."""
    found = {name: args[name][0, t] for name in ("x", "B", "C")}
    found = {name: value if layer.layout.per_head(name) else value[0] for name, value in found.items()}
    found |= {"dt_raw": args["dt"][0, t], "z": args["z"][0, t], **{name: args[name] for name in ("A", "D", "dt_bias")}}
    return {**found, "dt_min": LIMITS[0], "dt_max": LIMITS[1]}


FLAGS = {"HAS_D": True, "HAS_Z": True, "HAS_DT_BIAS": True, "DT_SOFTPLUS": True}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_step_is_the_oracle(family, layout) -> None:
    layer = Layer(family=family, layout=layout, dt_softplus=True)
    args = drawn(layer, 1, 0)
    exact = oracle(layer, **args, dt_limit=LIMITS)
    inputs = {**token(layer, args, 0), "stored": args["initial_states"][0]}
    found = evaluate(step_graph(layer), inputs, FLAGS, ("y", "state_out"))
    np.testing.assert_allclose(found["y"], exact.y[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found["state_out"], exact.final_states[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "layout", "kept"),
    [
        *product(FAMILIES.values(), LAYOUTS.values(), [KEPT]),
        # where nothing is kept, a token without step and input stands for it, which a constant decay would see
        *product([SSD], LAYOUTS.values(), [0, 1]),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_replay_is_the_oracle(family, layout, kept: int) -> None:
    """y of the last token from the state before the kept ones: the row of the block decomposition."""
    layer = Layer(family=family, layout=layout, dt_softplus=True)
    args = drawn(layer, kept + 1, 1)
    exact = oracle(layer, **args, dt_limit=LIMITS)
    graph = step_graph(layer, replay=True)
    steps = [evaluate(step_graph(layer), token(layer, args, t), FLAGS, ("dt",))["dt"] for t in range(max(kept, 1))]
    dt = np.stack(steps, axis=1) if kept else np.zeros((HEADS, 1))
    columns = slice(0, max(kept, 1))
    inputs = {**token(layer, args, kept), "stored": args["initial_states"][0], "kept_dt": dt}
    for name in "xB":
        value = args[name][0, columns]
        inputs[f"kept_{name}"] = value.transpose(1, 0, 2) if layer.layout.per_head(name) else value[:, 0]
    found = evaluate(graph, inputs, FLAGS, ("y",))["y"]
    np.testing.assert_allclose(found, exact.y[0, kept], rtol=1e-10)


def test_a_step_of_every_entry_has_the_rates_of_mamba_1() -> None:
    rng = np.random.default_rng(2)
    layer = Layer(layout=MULTI_HEAD)
    inputs = {
        "dt_raw": rng.uniform(0.1, 1, (HEADS, P)),
        "A": -rng.uniform(0.1, 1, (HEADS, P, N)),
        "x": rng.normal(size=(HEADS, P)),
        "B": rng.normal(size=(HEADS, N)),
        "C": rng.normal(size=(HEADS, N)),
        "stored": rng.normal(size=(HEADS, P, N)),
        "dt_min": 0.0,
        "dt_max": np.inf,
    }
    found = evaluate(step_graph(layer, tied=False), inputs, {}, ("y", "state_out"))
    dt = inputs["dt_raw"][..., None]
    state = np.exp(dt * inputs["A"]) * inputs["stored"] + dt * inputs["x"][..., None] * inputs["B"][:, None]
    np.testing.assert_allclose(found["state_out"], state, rtol=1e-12)
    np.testing.assert_allclose(found["y"], (state * inputs["C"][:, None]).sum(-1), rtol=1e-12)


def test_a_scale_makes_the_largest_of_a_row_the_largest_there_is() -> None:
    layer = Layer()
    args = drawn(layer, 1, 3)
    scale = np.full((HEADS, P), 0.5)
    inputs = {
        **token(layer, args, 0),
        "stored": args["initial_states"][0] / 0.5,
        "scale": scale,
        "stored_step": 1 / 127,
    }
    flags = {**FLAGS, "HAS_SCALE": True}
    found = evaluate(step_graph(layer), inputs, flags, ("state_out", "scale_out", "state_scaled"))
    exact = oracle(Layer(dt_softplus=True), **args, dt_limit=LIMITS)
    np.testing.assert_allclose(found["state_out"], exact.final_states[0], rtol=1e-12)
    np.testing.assert_allclose(found["state_scaled"] * found["scale_out"][..., None], found["state_out"])
    np.testing.assert_allclose(np.abs(found["state_scaled"]).max(-1), 127)


def test_another_weight_of_the_input_reaches_both_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No formula of the layer is written here a second time."""
    plain = step_graph(Layer()), step_graph(Layer(), replay=True)
    monkeypatch.setattr(formulas, "input_weight", lambda dt: dt * dt)
    other = step_graph(Layer()), step_graph(Layer(), replay=True)
    pairs = [zip(a.nodes, b.nodes, strict=True) for a, b in zip(plain, other, strict=True)]
    changed = [{node.name for node, now in pair if node != now} for pair in pairs]
    assert changed == [{"x_weighted"}, {"x_weighted", "kept_scores"}]


def test_every_node_prints() -> None:
    for graph in (step_graph(Layer()), step_graph(Layer(), replay=True)):
        for node in graph.nodes:
            if not isinstance(node, Input):
                assert notation._text_value(node) and notation._latex_value(node)
