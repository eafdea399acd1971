"""The gate: what is wrong does not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssdgen.plan.problem import Problem
from ssdgen.runtime import fallback
from ssdgen.spec import oracle_gradient
from ssdgen.spec.layer import Layer
from ssdgen.tune import gate, gradient_reference, inputs, reference
from ssdgen.tune.errors import WrongResultError
from ssdgen.tune.passes import PASSES, Adjoint

PROBLEM = Problem(2, 150, 6, 16, 24, 2)
HEADS = list(range(PROBLEM.nheads))
LIMIT = gate.LIMITS["bfloat16"]


@pytest.fixture(scope="module")
def given() -> inputs.Inputs:
    return inputs.random(PROBLEM, "cpu", seed=3)


@pytest.fixture(scope="module")
def expected(given: inputs.Inputs) -> torch.Tensor:
    return reference.forward(given, HEADS)[0]


def test_the_reference_is_the_layer(given: inputs.Inputs, expected: torch.Tensor) -> None:
    x, dt, A, B, C, D, bias = (t.double() for t in (*given.operands(), given.D, given.dt_bias))
    # token by token, as the recurrence is written
    step = torch.nn.functional.softplus(dt + bias)
    share = PROBLEM.nheads // PROBLEM.ngroups
    B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
    state = torch.zeros(2, 6, 16, 24, dtype=torch.float64)
    rows = []
    for t in range(PROBLEM.seqlen):
        decay = (step[:, t] * A).exp()[..., None, None]
        state = decay * state + (step[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        rows.append((state * C[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    assert gate.relative_error(torch.stack(rows, 1), expected) < 1e-6
    y, states = reference.forward(given, [1, 4, 5])
    assert torch.equal(y, expected[:, :, [1, 4, 5]])
    assert gate.relative_error(state[:, [1, 4, 5]], states) < 1e-6


def test_what_is_right_passes(given: inputs.Inputs, expected: torch.Tensor) -> None:
    y, states = fallback.forward(*given.operands(), **given.options(), final_states=True)
    assert 1e-3 < gate.check(y, expected, HEADS, 2, LIMIT) < 3e-3
    # a few heads only, of an output with all
    assert gate.check(y, expected[:, :, [2, 5]], [2, 5], 2, LIMIT) < LIMIT
    assert gate.check(states, reference.forward(given, [2, 5])[1], [2, 5], 1, LIMIT, "the final state") < 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"D": 0},
        {"dt_bias": -0.2},
        {"A": 1.1},
    ],
)
def test_a_missing_or_changed_term_does_not_pass(
    given: inputs.Inputs, expected: torch.Tensor, change: dict[str, float]
) -> None:
    (name, factor), *_ = change.items()
    wrong = replace(given, **{name: getattr(given, name) * factor})
    y, _ = fallback.forward(*wrong.operands(), **wrong.options())
    with pytest.raises(WrongResultError, match="against float64"):
        gate.check(y, expected, HEADS, 2, LIMIT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_element_that_is_not_finite_does_not_pass(expected: torch.Tensor, value: float) -> None:
    y = expected.bfloat16()
    y[1, 149, 0, 3] = value
    # also in a head that is not compared
    for heads in (HEADS, [5]):
        with pytest.raises(WrongResultError, match="not finite"):
            gate.check(y, expected[:, :, heads], heads, 2, LIMIT)
    assert gate.relative_error(y, expected) == float("inf")


def test_memory_is_poisoned_inside_and_only_there() -> None:
    with gate.poisoned_memory():
        assert torch.empty(8).isnan().all() and torch.empty(8, dtype=torch.bfloat16).isnan().all()
        assert not torch.zeros(8).any()
    assert not torch.are_deterministic_algorithms_enabled()


def test_inputs_are_as_a_layer_has_them(given: inputs.Inputs) -> None:
    assert given.x.dtype == given.B.dtype == torch.bfloat16 and given.A.dtype == torch.float32
    assert -17 <= given.A.min() and given.A.max() < -1
    step = torch.nn.functional.softplus(given.dt_bias)
    assert 0.00099 < step.min() and step.max() < 0.101
    assert all((t != 0).any() for t in (*given.operands(), given.D))
    again = inputs.random(PROBLEM, "cpu", seed=3)
    assert torch.equal(again.x, given.x) and not torch.equal(inputs.random(PROBLEM, "cpu", 4).x, given.x)
    assert inputs.random(PROBLEM, "meta", 0).B.shape == given.B.shape


def test_which_heads_are_compared() -> None:
    assert reference.sample_heads(8, 2048, 80, 64) == list(range(80))
    few = reference.sample_heads(1, 131072, 80, 64)
    assert few[0] == 0 and few[-1] == 79 and len(few) == 32
    assert reference.sample_heads(64, 2**20, 80, 128) == [79]


@pytest.fixture(scope="module")
def adjoint() -> Adjoint:
    return PASSES["backward"].draw(PROBLEM, "cpu", 5, True)


@pytest.fixture(scope="module")
def exact(adjoint: Adjoint) -> dict[str, torch.Tensor]:
    return PASSES["backward"].expect(adjoint, PROBLEM)


def gradients(adjoint: Adjoint) -> dict[str, torch.Tensor]:
    """By the PyTorch path, in the dtypes of the operands."""
    given = adjoint.inputs
    unused = {"z": None, "initial_states": None, "seq_idx": None, "cu_seqlens": None, "dt_limit": (0.0, float("inf"))}
    needs = frozenset(inputs.OPERANDS)
    adjoints = {"d_y": adjoint.d_y, "d_final_states": adjoint.d_final}
    return fallback.backward(*given.operands(), **given.options(), **adjoints, **unused, needs=needs)


@pytest.mark.parametrize("final", [True, False])
def test_the_reference_of_gradients_is_the_oracle(adjoint: Adjoint, final: bool) -> None:
    d_final = adjoint.d_final if final else None
    found = gradient_reference.backward(adjoint.inputs, adjoint.d_y, d_final, HEADS)
    arrays = {name: getattr(adjoint.inputs, name).double().numpy() for name in inputs.OPERANDS}
    d_last = None if d_final is None else d_final.double().numpy()
    wanted = oracle_gradient.backward(Layer(dt_softplus=True), arrays, adjoint.d_y.double().numpy(), d_last, chunk=32)
    assert set(found) == set(inputs.OPERANDS)
    for name, gradient in found.items():
        assert gradient.shape == getattr(adjoint.inputs, name).shape
        assert gate.relative_error(gradient, torch.from_numpy(wanted[f"d_{name}"]).float()) < 1e-6, name


def test_slices_of_heads_change_nothing(
    adjoint: Adjoint, exact: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two heads at a time, so that groups of three end in the middle of a slice; d_x of some heads alone."""
    monkeypatch.setattr(gradient_reference, "SCORE_BYTES", 2 * 8 * PROBLEM.batch * gradient_reference.CHUNK**2)
    found = gradient_reference.backward(adjoint.inputs, adjoint.d_y, adjoint.d_final, [0, 5])
    assert torch.equal(found["x"], exact["x"][:, :, [0, 5]])
    for name in ("dt", "A", "B", "C", "D", "dt_bias"):
        assert gate.relative_error(found[name], exact[name]) < 1e-6


def test_right_gradients_pass_with_the_error_nearest_to_its_limit(
    adjoint: Adjoint, exact: dict[str, torch.Tensor]
) -> None:
    checked = gate.check_gradients(gradients(adjoint), exact, HEADS, "bfloat16")
    assert 1e-3 < checked.error < 3e-3 and checked.limit == gate.GRADIENT_LIMITS["bfloat16"]["x"]
    # what is far within a wide limit does not hide what is near a narrow one
    found = {name: gradient.float() for name, gradient in exact.items()}
    found["A"], found["C"] = found["A"] * 1.012, found["C"] * 1.007
    checked = gate.check_gradients(found, exact, HEADS, "bfloat16")
    assert checked.error == pytest.approx(7e-3, rel=1e-3) and checked.limit == 8e-3 and checked.share < 1


@pytest.mark.parametrize("name", inputs.OPERANDS)
def test_one_wrong_gradient_is_enough(name: str, adjoint: Adjoint, exact: dict[str, torch.Tensor]) -> None:
    wrong = gradients(adjoint)
    wrong[name] = wrong[name] * 1.03
    with pytest.raises(WrongResultError, match=f"d_{name} has an error of .* against float64"):
        gate.check_gradients(wrong, exact, HEADS, "bfloat16")
    wrong[name] = wrong[name] * float("nan")
    with pytest.raises(WrongResultError, match=f"d_{name} has elements that were never written"):
        gate.check_gradients(wrong, exact, HEADS, "bfloat16")
    del wrong[name]
    with pytest.raises(WrongResultError, match=f"no gradient of {name}"):
        gate.check_gradients(wrong, exact, HEADS, "bfloat16")


def test_a_gradient_that_is_zero_has_nothing_to_be_near_to() -> None:
    one = replace(PROBLEM, seqlen=1)
    adjoint = PASSES["backward"].draw(one, "cpu", 5, False)
    exact = PASSES["backward"].expect(adjoint, one)
    assert adjoint.d_final is None and not exact["A"].any() and exact["dt"].any()
    assert gate.check_gradients(gradients(adjoint), exact, HEADS, "bfloat16").error < 8e-3
