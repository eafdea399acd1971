"""How a state is kept in few bits: one scale for each row of dstate.  -> step

What rounds a number to a format is the kernels' own; here stands what is exact.
"""

from __future__ import annotations

import sympy

# least |state| of a row that its scale is made for: the scale's inverse stays finite
SMALLEST = sympy.Float("1e-30")
# least unit that new input is divided by: 127 of it are far below a state, and the quotient stays finite
SMALLEST_UNIT = sympy.Float("1e-20")


def restore(stored: sympy.Expr, scale: sympy.Expr) -> sympy.Expr:
    return stored * scale


def scale_of(largest: sympy.Expr, stored_step: sympy.Expr) -> sympy.Expr:
    """Scale that makes `largest` the largest stored number; stored_step: one over that number."""
    return sympy.Max(largest, SMALLEST) * stored_step


def unit_of(scale: sympy.Expr) -> sympy.Expr:
    """What a state is counted in while it is advanced: the scale of its row, times the decay."""
    return sympy.Max(scale, SMALLEST_UNIT)


def inverse(scale: sympy.Expr) -> sympy.Expr:
    return 1 / scale


def scaled(state: sympy.Expr, inverse_scale: sympy.Expr) -> sympy.Expr:
    return state * inverse_scale
