"""Mamba-3's recurrence (SISO) as another description: what comes before the chunks, as graphs.  -> mamba3_oracle, plan

    h_t = alpha_t h_{t-1} + beta_t x_{t-1} B'_{t-1}^T + gamma_t x_t B'_t^T,    y_t = h_t C'_t

with alpha_t = exp(adt_t), gamma_t = lambda_t dt_t and beta_t = (1 - lambda_t) dt_t alpha_t.  B' and C' are B and C with
each pair of state dimensions turned by an angle that runs on from token to token: the real form of a complex state.

Unrolled, token s counts in a later y_t by gamma_s + (1 - lambda_{s+1}) dt_{s+1} times the decay from s to t, which
the alpha_{s+1} in beta_{s+1} completes.  So the chunks are those of Mamba-2 with this weight as `dt`, with another one,
own, in the output of the token itself, of which the skip weight D of a head is a part, and with a B and a C for each
head.  The last token of a run hands its x and B' to the next run: what they still add there enters with the state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy

from . import layer as formulas
from .decompose import decay
from .dims import entry
from .discretisation import TRAPEZOIDAL
from .functions import sigmoid, wrapped
from .gradient import adjoint
from .graph import Cumsum, Graph, Input, Last, Map, Node, Shift, Sum
from .layer import Layer
from .layouts import MULTI_HEAD

LAYER = Layer(layout=MULTI_HEAD, discretisation=TRAPEZOIDAL)
# B and C in their pairs: number 0 and number 1 of each
PAIRED = ("B_0", "B_1", "C_0", "C_1")
TURNED = tuple(f"{name}_turned" for name in PAIRED)
BIASES = tuple(f"{name}_bias" for name in PAIRED)
TOKEN_INPUTS = ("adt", "step", "mix", "rate", "angle_in", *PAIRED, *BIASES, "D_head")
TOKEN_OUTPUTS = ("dt", "own", "log_decay", *TURNED, "angle_out")
ENTERING_INPUTS = ("state", "step_first", "mix_first", "x_before", "B_before")


def own_share(mix: sympy.Expr) -> sympy.Expr:
    """lambda: how much of a step is for the token's own input; the rest is for the input of the token before."""
    share: Any = sigmoid(mix)
    return share


def own_weight(step: sympy.Expr, share: sympy.Expr) -> sympy.Expr:
    """gamma: weight of a token's input at its own step."""
    return step * share


def weight_before(step: sympy.Expr, share: sympy.Expr) -> sympy.Expr:
    """beta / alpha: weight that a step gives to the input of the token before, its decay aside."""
    return step * (1 - share)


def turn(rate: sympy.Expr, step: sympy.Expr) -> sympy.Expr:
    """Angle of a step: pi tanh(rate) times the step; tanh(u) is 2 sigmoid(2 u) - 1."""
    logistic: Any = sigmoid(2 * rate)
    return sympy.pi * (2 * logistic - 1) * step


def turned(pair: tuple[sympy.Expr, sympy.Expr], angle: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """A pair turned by an angle."""
    first, second = pair
    cos, sin = sympy.cos(angle), sympy.sin(angle)
    return first * cos - second * sin, first * sin + second * cos


@lru_cache(maxsize=1)
def tokens_graph() -> Graph:
    """Steps and operands of the heads of a group, for a run of tokens t; r: pairs of state dimensions.  Option: HAS_D.

    Of the run's last token nothing is handed on.
    """
    step, share, angle = entry("step", "h", "t"), entry("share", "h", "t"), entry("angle", "h", "t", "r")
    own_ssm = entry("own_ssm", "h", "t")
    biased = {name: entry(f"{name}_biased", "h", "t", "r") for name in PAIRED}
    nodes: list[Node] = [
        Input("adt", ("h", "t"), "log of the decay of a step"),
        Input("step", ("h", "t"), "step size"),
        Input("mix", ("h", "t"), "share of the step that is for the token's own input, before its sigmoid"),
        Input("rate", ("h", "t", "r"), "rate at which a pair turns, before its tanh"),
        Input("angle_in", ("h", "r"), "angle of the token before the run"),
        *(Input(name, ("t", "r"), f"{name[0]}, number {name[2]} of each pair") for name in PAIRED),
        *(Input(f"{name}_bias", ("h", "r"), f"added to {name}") for name in PAIRED),
        Input("D_head", ("h",), "skip weight of a head"),
        Map("log_decay", ("h", "t"), entry("adt", "h", "t") / sympy.log(2)),
        Map("share", ("h", "t"), own_share(entry("mix", "h", "t"))),
        Map("gamma", ("h", "t"), own_weight(step, share)),
        Map("beta", ("h", "t"), weight_before(step, share)),
        Shift("beta_next", ("h", "t"), entry("beta", "h", "t"), "t", -1),
        Map("dt", ("h", "t"), entry("gamma", "h", "t") + entry("beta_next", "h", "t")),
        Map("turn", ("h", "t", "r"), turn(entry("rate", "h", "t", "r"), step)),
        Cumsum("turn_cs", ("h", "t", "r"), entry("turn", "h", "t", "r"), "t"),
        Map("angle_sum", ("h", "t", "r"), entry("angle_in", "h", "r") + entry("turn_cs", "h", "t", "r")),
        Map("angle", ("h", "t", "r"), _wrapped(entry("angle_sum", "h", "t", "r"))),
        Last("turn_last", ("h", "r"), entry("turn_cs", "h", "t", "r"), "t"),
        Map("angle_last", ("h", "r"), entry("angle_in", "h", "r") + entry("turn_last", "h", "r")),
        Map("angle_out", ("h", "r"), _wrapped(entry("angle_last", "h", "r"))),
        *(
            Map(f"{name}_biased", ("h", "t", "r"), entry(name, "t", "r") + entry(f"{name}_bias", "h", "r"))
            for name in PAIRED
        ),
        Map("dot_terms", ("h", "t", "r"), biased["C_0"] * biased["B_0"] + biased["C_1"] * biased["B_1"]),
        Sum("dot", ("h", "t"), entry("dot_terms", "h", "t", "r"), ("r",)),
        Map("own_ssm", ("h", "t"), entry("gamma", "h", "t") * entry("dot", "h", "t")),
        Map("own", ("h", "t"), own_ssm + entry("D_head", "h"), "HAS_D", own_ssm),
    ]
    for name in ("B", "C"):
        pair = turned((biased[f"{name}_0"], biased[f"{name}_1"]), angle)
        nodes += [Map(f"{name}_{k}_turned", ("h", "t", "r"), value) for k, value in enumerate(pair)]
    return Graph("tokens[mamba3]", tuple(nodes))


@lru_cache(maxsize=1)
def entering_graph() -> Graph:
    """The state that the first chunk of a run takes, from the one of the run before and its last token."""
    step, share, state = entry("step_first", "h"), entry("share_first", "h"), entry("state", "h", "p", "n")
    added = entry("beta_first", "h") * entry("x_before", "h", "p") * entry("B_before", "h", "n")
    return Graph(
        "entering[mamba3]",
        (
            Input("state", ("h", "p", "n"), "state after the run before"),
            Input("step_first", ("h",), "step size of the run's first token"),
            Input("mix_first", ("h",), "its share of the step, before its sigmoid"),
            Input("x_before", ("h", "p"), "input of the last token of the run before"),
            Input("B_before", ("h", "n"), "its expansion into the state, turned"),
            Map("share_first", ("h",), own_share(entry("mix_first", "h"))),
            Map("beta_first", ("h",), weight_before(step, share)),
            Map("state_in", ("h", "p", "n"), state + added),
        ),
    )


@lru_cache(maxsize=1)
def angles_graph() -> Graph:
    """Angles before the parts c of a run, from what each of them has turned in all.

    angle_on: before the last part, from where a walk over parts goes on.  What parts have turned is less whole turns
    before it is added up, so that a sum over many of them loses no digits.
    """
    turns, angle = entry("turns", "h", "r"), entry("angle_in", "h", "r")
    return Graph(
        "angles[mamba3]",
        (
            Input("turn_last", ("h", "c", "r"), "what the pairs have turned in all of a part"),
            Input("angle_in", ("h", "r"), "angle before the first part"),
            Map("turn_part", ("h", "c", "r"), _wrapped(entry("turn_last", "h", "c", "r"))),
            Shift("turn_part_before", ("h", "c", "r"), entry("turn_part", "h", "c", "r"), "c", 1),
            Cumsum("turn_before", ("h", "c", "r"), entry("turn_part_before", "h", "c", "r"), "c"),
            Map("angle_before_sum", ("h", "c", "r"), angle + entry("turn_before", "h", "c", "r")),
            Map("angle_before", ("h", "c", "r"), _wrapped(entry("angle_before_sum", "h", "c", "r"))),
            Sum("turns", ("h", "r"), entry("turn_part_before", "h", "c", "r"), ("c",)),
            Map("angle_on_sum", ("h", "r"), angle + turns),
            Map("angle_on", ("h", "r"), _wrapped(entry("angle_on_sum", "h", "r"))),
        ),
    )


@lru_cache(maxsize=1)
def angles_adjoint() -> Graph:
    """What the angle after each part c gets, from the angles of all parts after it and from the run after this one.

    d_angle_on: what the angle after the first part gets, from where a walk back over parts goes on.
    """
    later, after = entry("d_angle_part_after", "h", "c", "r"), entry("d_angle_out", "h", "r")
    return Graph(
        "angles[mamba3] adjoint",
        (
            Input("d_angle_part", ("h", "c", "r"), "sum over the tokens of a part of what their angles get"),
            Input("d_angle_out", ("h", "r"), "what the angle after the last part gets"),
            Shift("d_angle_part_after", ("h", "c", "r"), entry("d_angle_part", "h", "c", "r"), "c", -1),
            Cumsum("d_angle_later", ("h", "c", "r"), later, "c", reverse=True),
            Map("d_angle_after", ("h", "c", "r"), after + entry("d_angle_later", "h", "c", "r")),
            Sum("d_angles", ("h", "r"), later, ("c",)),
            Map("d_angle_on", ("h", "r"), after + entry("d_angles", "h", "r")),
        ),
    )


@lru_cache(maxsize=1)
def step_graph() -> Graph:
    """One token: y[h, p] and what the next one needs, from what the token before left.  Options: HAS_D, HAS_Z."""
    step, share, gamma, beta = (entry(name, "h") for name in ("step", "share", "gamma", "beta"))
    x, before, kept = entry("x", "h", "p"), entry("x_before", "h", "p"), entry("centre_decay", "h")
    biased = {name: entry(f"{name}_biased", "h", "r") for name in PAIRED}
    nodes: list[Node] = [
        Input("adt", ("h",), "log of the decay of the step"),
        Input("step", ("h",), "step size"),
        Input("mix", ("h",), "share of the step that is for the token's own input, before its sigmoid"),
        Input("rate", ("h", "r"), "rate at which a pair turns, before its tanh"),
        Input("angle_in", ("h", "r"), "angle of the token before"),
        Input("x", ("h", "p"), "input"),
        Input("x_before", ("h", "p"), "input of the token before"),
        *(Input(f"B_{k}_before", ("h", "r"), f"its B_{k}, turned") for k in (0, 1)),
        *(Input(name, ("r",), f"{name[0]}, number {name[2]} of each pair") for name in PAIRED),
        *(Input(f"{name}_bias", ("h", "r"), f"added to {name}") for name in PAIRED),
        *(Input(f"state_{k}", ("h", "p", "r"), f"state before, number {k} of each pair") for k in (0, 1)),
        Input("D", ("h", "p"), "skip weight"),
        Input("z", ("h", "p"), "gate"),
        Map("log_decay", ("h",), entry("adt", "h") / sympy.log(2)),
        Map("centre_decay", ("h",), decay(entry("log_decay", "h"))),
        Map("share", ("h",), own_share(entry("mix", "h"))),
        Map("gamma", ("h",), own_weight(step, share)),
        Map("beta", ("h",), weight_before(step, share)),
        Map("angle_sum", ("h", "r"), entry("angle_in", "h", "r") + turn(entry("rate", "h", "r"), step)),
        Map("angle_out", ("h", "r"), _wrapped(entry("angle_sum", "h", "r"))),
        *(Map(f"{name}_biased", ("h", "r"), entry(name, "r") + entry(f"{name}_bias", "h", "r")) for name in PAIRED),
        Map("x_own", ("h", "p"), gamma * x),
        Map("x_handed", ("h", "p"), kept * beta * before),
    ]
    terms: sympy.Expr = sympy.Integer(0)
    for name in ("B", "C"):
        pair = turned((biased[f"{name}_0"], biased[f"{name}_1"]), entry("angle_out", "h", "r"))
        nodes += [Map(f"{name}_{k}_turned", ("h", "r"), value) for k, value in enumerate(pair)]
    for k in (0, 1):
        added = entry("x_handed", "h", "p") * entry(f"B_{k}_before", "h", "r")
        added += entry("x_own", "h", "p") * entry(f"B_{k}_turned", "h", "r")
        nodes.append(Map(f"state_{k}_out", ("h", "p", "r"), kept * entry(f"state_{k}", "h", "p", "r") + added))
        terms += entry(f"state_{k}_out", "h", "p", "r") * entry(f"C_{k}_turned", "h", "r")
    y_ssm, y_skip = entry("y_ssm", "h", "p"), entry("y_skip", "h", "p")
    nodes += [
        Map("y_terms", ("h", "p", "r"), terms),
        Sum("y_ssm", ("h", "p"), entry("y_terms", "h", "p", "r"), ("r",)),
        Map("y_skip", ("h", "p"), formulas.skip(y_ssm, entry("D", "h", "p"), x), "HAS_D", y_ssm),
        Map("y", ("h", "p"), formulas.gate(y_skip, entry("z", "h", "p")), "HAS_Z", y_skip),
    ]
    return Graph("step[mamba3]", tuple(nodes))


def _wrapped(angle: sympy.Expr) -> sympy.Expr:
    value: Any = wrapped(angle)
    return value


@lru_cache(maxsize=1)
def tokens_adjoint() -> Graph:
    """Adjoints of the inputs of a run of tokens, from those of its outputs."""
    return adjoint(tokens_graph(), TOKEN_OUTPUTS, TOKEN_INPUTS)


@lru_cache(maxsize=1)
def entering_adjoint() -> Graph:
    """What the state before, the first step and the last token of the run before get from `d_state_in`."""
    return adjoint(entering_graph(), ("state_in",), ENTERING_INPUTS)


__all__ = [
    "LAYER",
    "angles_adjoint",
    "angles_graph",
    "entering_adjoint",
    "entering_graph",
    "step_graph",
    "tokens_adjoint",
    "tokens_graph",
]
