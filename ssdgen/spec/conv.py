"""The causal convolution of a row of tokens, as a graph.  width -> graph -> gradient, evaluate, plan.conv

The row begins width - 1 tokens early, with the inputs that come before its first token: the initial state.  What ends
the row is the final state, the same number of inputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy

from .dims import entry
from .functions import silu, silu2
from .gradient import adjoint
from .graph import Graph, Input, Map, Node, Shift

WIDTHS = (2, 3, 4)
OUTPUTS = ("y", "state_out")


@lru_cache(maxsize=8)
def conv_graph(width: int, units: bool = False) -> Graph:
    """y[t, d] = act(bias[d] + sum over k < width of weight_k[d] x[t - k, d]), and the state that stays.

    weight_k multiplies the input k tokens back.  Options: HAS_BIAS, SILU, HAS_SEQ_IDX.
    units: where there is an activation the sum counts in -log(2), in which its exponential is a power of two: what the
    channels' weights and bias are multiplied by once is saved for every token.
    """
    x, seq = entry("x", "t", "d"), entry("seq", "t")
    nodes: list[Node] = [
        Input("x", ("t", "d"), "input, and before it what the initial state holds"),
        *(Input(f"weight_{back}", ("d",), f"weight of the input {back} tokens back") for back in range(width)),
        Input("bias", ("d",), "added to the sum"),
        Input("seq", ("t",), "sequence that a token belongs to, negative for padding"),
        Input("seq_last", (), "sequence of the last token"),
    ]
    taps = [x]
    for back in range(1, width):
        seen, theirs = entry(f"x_{back}", "t", "d"), entry(f"seq_{back}", "t")
        nodes += [
            Shift(f"x_{back}", ("t", "d"), x, "t", back),
            Shift(f"seq_{back}", ("t",), seq, "t", back),
            Map(f"tap_{back}", ("t", "d"), _keep(seen, sympy.Eq(seq, theirs)), "HAS_SEQ_IDX", seen),
        ]
        taps.append(entry(f"tap_{back}", "t", "d"))
    own, biased, summed, active = (entry(name, "t", "d") for name in ("own", "biased", "summed", "active"))
    nodes += [_in_units(name) for name in (*(f"weight_{back}" for back in range(width)), "bias") if units]
    prefix = "units_" if units else ""
    terms = [entry(f"{prefix}weight_{back}", "d") * tap for back, tap in enumerate(taps)]
    act: Any = silu2(summed) if units else silu(summed)
    # the bias with the first product: so many multiply-adds, and no sum of its own
    nodes += [
        Map("own", ("t", "d"), terms[0]),
        Map("biased", ("t", "d"), own + entry(f"{prefix}bias", "d"), "HAS_BIAS", own),
        Map("summed", ("t", "d"), sympy.Add(biased, *terms[1:])),
        Map("active", ("t", "d"), act, "SILU", summed),
        Map("y", ("t", "d"), _keep(active, sympy.Ge(seq, 0)), "HAS_SEQ_IDX", active),
        Map("state_out", ("t", "d"), _keep(x, sympy.Eq(seq, sympy.Symbol("seq_last", real=True))), "HAS_SEQ_IDX", x),
    ]
    return Graph(f"convolution{' in units' if units else ''}[{width}]", tuple(nodes))


@lru_cache(maxsize=8)
def conv_adjoint(width: int) -> Graph:
    """d_x, d_weight_k and d_bias from d_y and d_state_out; d_x of the tokens before the first is d_initial_states.

    In units: of d_weight_k and d_bias too, d_units_weight_k and d_units_bias, there is one number for a channel, and of
    the adjoint of the sum one for every token.
    """
    inputs = ("x", *(f"weight_{back}" for back in range(width)), "bias")
    return adjoint(conv_graph(width, units=True), OUTPUTS, inputs)


def _in_units(name: str) -> Map:
    value = entry(name, "d")
    return Map(f"units_{name}", ("d",), -value / sympy.log(2), "SILU", value)


def _keep(value: sympy.Expr, condition: sympy.Basic) -> sympy.Expr:
    return sympy.Piecewise((value, condition), (0, True))
