"""The pair (total, state) of a run of tokens: joining is associative, and adjoints pass by the same rule, backwards."""

from __future__ import annotations

from functools import reduce

import sympy

from ssdgen.spec.chain import Summary, combine, entering

RUNS = range(4)
TOTALS = [sympy.Symbol(f"t_{run}", negative=True) for run in RUNS]
STATES = [sympy.Symbol(f"S_{run}", real=True) for run in RUNS]


def pairs(states: list[sympy.Symbol]) -> list[Summary]:
    return [Summary(total, sympy.Matrix([[state]])) for total, state in zip(TOTALS, states, strict=True)]


def test_joining_is_associative() -> None:
    one, two, three, _ = pairs(STATES)
    left, right = combine(combine(one, two), three), combine(one, combine(two, three))
    assert sympy.simplify(left.total - right.total) == 0
    difference = (left.state - right.state)[0]
    # the limit of an exponent is not reached by sums of negative totals
    assert sympy.simplify(difference.replace(sympy.Min, lambda *args: sympy.Add(*args))) == 0


def test_adjoints_pass_by_the_same_rule_from_the_last_run_to_the_first() -> None:
    """The adjoint of the state that leaves a run, by differentiation and by joining what later runs add."""
    local = [sympy.Symbol(f"g_{run}", real=True) for run in RUNS]
    initial = sympy.Symbol("h", real=True)
    before = [entering(sympy.Matrix([[initial]]))]
    for run in pairs(STATES):
        before.append(combine(before[-1], run))
    # each run's outputs depend on the state that enters it; g_r is what they give to it
    outputs = sum(g * state.state[0] for g, state in zip(local, before[:-1], strict=True))
    adjoints = pairs(local)
    for run in RUNS[:-1]:
        joined = reduce(combine, reversed(adjoints[run + 1 :]))
        assert sympy.expand(sympy.diff(outputs, STATES[run]) - joined.state[0]) == 0
    assert sympy.expand(sympy.diff(outputs, initial) - reduce(combine, reversed(adjoints)).state[0]) == 0
