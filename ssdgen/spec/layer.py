"""The layer: its options and its pointwise formulas.  masks, layouts, discretisation -> graph, oracle, counts"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sympy

from . import masks
from .discretisation import EULER, Discretisation
from .functions import silu, softplus
from .layouts import MULTI_INPUT, HeadLayout
from .masks import SSD, MaskFamily


@dataclass(frozen=True)
class Layer:
    """One SSD layer.  h_t = a_t h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t, then y silu(z).

    family: how much of the state a step keeps.  layout: which operands heads share.
    skip: D is absent, a scalar per head, or a vector of headdim per head.
    gate: y silu(z).  dt_bias, dt_softplus: added to the step size, and what makes it positive, before its limits.
    initial_states: a state enters the first token.  boundaries: several sequences in a row, each from a zero state.
    """

    family: MaskFamily = SSD
    layout: HeadLayout = MULTI_INPUT
    skip: Literal["none", "head", "headdim"] = "none"
    gate: bool = False
    dt_bias: bool = False
    dt_softplus: bool = False
    initial_states: bool = False
    boundaries: bool = False
    discretisation: Discretisation = EULER

    def flags(self) -> dict[str, bool]:
        """Value of each option flag that the graph, the kernels and the oracle branch on."""
        return {
            "HAS_D": self.skip != "none",
            "HAS_Z": self.gate,
            "HAS_DT_BIAS": self.dt_bias,
            "DT_SOFTPLUS": self.dt_softplus,
            "HAS_SEQ_IDX": self.boundaries,
        }

    def log_decay(self, dt: sympy.Expr, a: sympy.Expr) -> sympy.Expr:
        """log a_t for a step of size `dt` with decay rate `a`."""
        return self.family.log_decay.subs({masks.DT: dt, masks.A: a}, simultaneous=True)


def add_bias(dt: sympy.Expr, bias: sympy.Expr) -> sympy.Expr:
    return dt + bias


def rectify(dt: sympy.Expr) -> sympy.Expr:
    positive: Any = softplus(dt)
    return positive


def clamp(dt: sympy.Expr, low: sympy.Expr, high: sympy.Expr) -> sympy.Expr:
    """dt limited to [low, high]; a NaN stays a NaN."""
    return sympy.Min(sympy.Max(dt, low), high)


def input_weight(dt: sympy.Expr) -> sympy.Expr:
    """Weight of a token's input x_t B_t^T in the state."""
    return dt


def own_input(y: sympy.Expr, own: sympy.Expr, x: sympy.Expr) -> sympy.Expr:
    """Output with what a token's own input gives to it, where that has a weight of its own."""
    return y + own * x


def skip(y: sympy.Expr, d: sympy.Expr, x: sympy.Expr) -> sympy.Expr:
    return y + d * x


def gate(y: sympy.Expr, z: sympy.Expr) -> sympy.Expr:
    """y silu(z)."""
    return y * silu(z)


def pointwise() -> tuple[Any, ...]:
    """The formulas of this module that graphs are made of, as they are now."""
    return add_bias, rectify, clamp, input_weight, own_input, skip, gate
