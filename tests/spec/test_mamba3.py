"""Mamba-3's description: its recurrence, its matrix, its chunks and its gradients say the same."""

from __future__ import annotations

import numpy as np
import pytest

from ssdgen.spec import mamba3
from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.evaluate import evaluate
from ssdgen.spec.mamba3_oracle import STATES, backward, oracle
from ssdgen.spec.oracle import OracleInput
from tests.spec.mamba3_cases import complex_recurrence, draw


@pytest.mark.parametrize("rates", (1, 3))
def test_a_turning_complex_state_gives_the_same(rates: int, seed: int):
    arrays = draw(seed, rates=rates, states=False)
    np.testing.assert_allclose(oracle(arrays).y, complex_recurrence(arrays), rtol=1e-10, atol=1e-12)


def test_two_runs_are_one(seed: int):
    """What a run leaves is all that the next one needs."""
    arrays = draw(seed, seqlen=9)
    tokens = ("x", "B", "C", "adt", "step", "mix", "rate", "z")
    whole, cut = oracle(arrays), 4
    first = oracle({**arrays, **{name: arrays[name][:, :cut] for name in tokens}})
    left = {name: getattr(first, name) for name in STATES}
    second = oracle({**arrays, **{name: arrays[name][:, cut:] for name in tokens}, **left})
    np.testing.assert_allclose(np.concatenate([first.y, second.y], 1), whole.y, rtol=1e-10, atol=1e-12)
    for name in STATES:
        np.testing.assert_allclose(getattr(second, name), getattr(whole, name), rtol=1e-9, atol=1e-10)


def test_the_matrix(seed: int):
    """Y = M X: below the diagonal a decay times the weight that the graph makes, on it `own`; nothing above."""
    arrays = draw(seed, batch=1, nheads=1, ngroups=1, seqlen=7, states=False, skip=False, gate=False)
    tokens = {name: arrays[name][0].T for name in ("adt", "step", "mix")}
    tokens["rate"] = np.concatenate([np.moveaxis(arrays["rate"][0], 1, 0), np.zeros((1, 7, 1))], axis=-1)
    tokens["angle_in"] = np.zeros((1, 3))
    for name, k in ((name, k) for name in "BC" for k in (0, 1)):
        tokens[f"{name}_{k}"] = arrays[name][0, :, 0, k::2]
        tokens[f"{name}_{k}_bias"] = arrays[f"{name}_bias"][:, k::2]
    made = evaluate(mamba3.tokens_graph(), tokens, {}, mamba3.TOKEN_OUTPUTS)
    dots = sum(np.einsum("ir,jr->ij", made[f"C_{k}_turned"][0], made[f"B_{k}_turned"][0]) for k in (0, 1))
    sums = np.cumsum(arrays["adt"][0, :, 0])
    matrix = np.tril(dots * np.exp(sums[:, None] - sums) * made["dt"][0], -1) + np.diag(made["own"][0])
    np.testing.assert_allclose(oracle(arrays).y[0, :, 0], matrix @ arrays["x"][0, :, 0], rtol=1e-9, atol=1e-10)
    # strictly causal: what a token gives itself does not read the next step
    later = {**arrays, "step": arrays["step"].copy(), "mix": arrays["mix"].copy()}
    later["step"][:, 4:] *= 2
    later["mix"][:, 4:] += 1
    np.testing.assert_array_equal(oracle(later).y[:, :4], oracle(arrays).y[:, :4])


@pytest.mark.parametrize("options", ({}, {"states": False}, {"skip": False, "gate": False}), ids=str)
@pytest.mark.parametrize("chunk", (4, 16))
def test_gradients_are_differences_of_the_recurrence(chunk: int, options: dict[str, bool], seed: int):
    """Central differences of the oracle along a random direction of each input, for every result."""
    arrays, random = draw(seed, **options), np.random.default_rng(seed)
    result = oracle(arrays)
    names = ("y", *STATES)
    weights = {name: random.normal(size=getattr(result, name).shape) for name in names}
    found = backward(arrays, weights["y"], {name: weights[name] for name in STATES}, chunk=chunk)
    assert found.keys() == {f"d_{name}" for name in arrays}

    def at(name: str, moved: np.ndarray) -> float:
        other = oracle({**arrays, name: moved})
        total = sum(np.sum(weights[each] * getattr(other, each)) for each in names if each != "angle")
        # over a jump of a whole turn
        turned = np.mod(other.angle - result.angle + np.pi, 2 * np.pi) - np.pi
        return total + np.sum(weights["angle"] * turned)

    for name, array in arrays.items():
        way = random.normal(size=array.shape)
        slope = (at(name, array + 1e-5 * way) - at(name, array - 1e-5 * way)) / 2e-5
        np.testing.assert_allclose(np.sum(found[f"d_{name}"] * way), slope, rtol=2e-6, atol=1e-7, err_msg=name)


def test_chunks_of_the_layer_are_those_of_mamba_2_but_for_the_diagonal():
    """The description adds one value to a chunk, and cuts the diagonal out of the scores."""
    from ssdgen.spec.layer import Layer

    plain = {node.name: node for node in chunk_graph(Layer(layout=mamba3.LAYER.layout)).nodes}
    ours = {node.name: node for node in chunk_graph(mamba3.LAYER).nodes}
    assert ours.keys() - plain.keys() == {"own", "y_later"}
    changed = {name for name in ours.keys() & plain.keys() if ours[name] != plain[name]}
    assert changed == {"dt", "log_decay", "scores_whole", "y_ssm"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "give all of angle, state, B_before, x_before"),
        ({"rate": np.zeros((2, 11, 4, 4))}, "at most dstate / 2 rates"),
        ({"adt": np.zeros((2, 11, 3))}, r"adt has shape \(2, 11, 3\); it must be \(2, 11, 4\)"),
    ],
)
def test_what_does_not_fit(change: dict, message: str, seed: int):
    with pytest.raises(OracleInput, match=message):
        oracle({**draw(seed), **change})


def test_token_after_token(seed: int):
    """The graph of one token, from what the one before left."""
    arrays = draw(seed, nheads=2, ngroups=1, rates=3, seqlen=5)
    whole, b = oracle(arrays), 1
    held = {"angle_in": arrays["angle"][b], "x_before": arrays["x_before"][b]}
    held |= {f"B_{k}_before": arrays["B_before"][b, :, k::2] for k in (0, 1)}
    held |= {f"state_{k}": arrays["state"][b, :, :, k::2] for k in (0, 1)}
    fixed = {"D": np.repeat(arrays["D"][:, None], 3, axis=1)}
    fixed |= {f"{name}_{k}_bias": arrays[f"{name}_bias"][:, k::2] for name in "BC" for k in (0, 1)}
    left = ("angle_out", *(f"{name}_{k}{end}" for name, end in (("B", "_turned"), ("state", "_out")) for k in (0, 1)))
    for t in range(5):
        token = {name: arrays[name][b, t] for name in ("adt", "step", "mix", "rate", "x", "z")}
        token |= {f"{name}_{k}": arrays[name][b, t, 0, k::2] for name in "BC" for k in (0, 1)}
        flags = {"HAS_D": True, "HAS_Z": True}
        made = evaluate(mamba3.step_graph(), {**held, **fixed, **token}, flags, ("y", *left))
        np.testing.assert_allclose(made["y"], whole.y[b, t], rtol=1e-10, atol=1e-12)
        held = {"angle_in": made["angle_out"], "x_before": token["x"]}
        held |= {f"B_{k}_before": made[f"B_{k}_turned"] for k in (0, 1)}
        held |= {f"state_{k}": made[f"state_{k}_out"] for k in (0, 1)}
    np.testing.assert_allclose(held["state_1"], whole.state[b, :, :, 1::2], rtol=1e-10, atol=1e-12)
