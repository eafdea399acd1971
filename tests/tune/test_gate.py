"""The gate: what is wrong does not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssdgen.plan.problem import Problem
from ssdgen.runtime import fallback
from ssdgen.tune import gate, inputs, reference
from ssdgen.tune.errors import WrongResultError

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
