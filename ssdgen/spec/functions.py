"""Scalar functions of the layer that have a stable form of their own.  -> layer, numeric, emit.formula

They are sympy functions with exact rewrites and derivatives.
"""

from __future__ import annotations

from typing import Any

import sympy


class sigmoid(sympy.Function):
    """1 / (1 + exp(-x))."""

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        value: Any = sigmoid(self.args[0])
        return value * (1 - value)

    def _eval_rewrite_as_exp(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return 1 / (1 + sympy.exp(-arg))


class softplus(sympy.Function):
    """log(1 + exp(x)); its derivative is the sigmoid."""

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        slope: Any = sigmoid(self.args[0])
        return slope

    def _eval_rewrite_as_log(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return sympy.log(1 + sympy.exp(arg))


class rsqrt(sympy.Function):
    """1 / sqrt(x) for x > 0."""

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_extended_positive else None

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        value: Any = rsqrt(self.args[0])
        return -value * value * value / 2

    def _eval_rewrite_as_Pow(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return 1 / sympy.sqrt(arg)


class silu2(sympy.Function):
    """x sigmoid(x) of x = -log(2) u, so that a kernel has 2**u without a product of its own."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        slope: Any = silu2_slope(self.args[0])
        return slope

    def _eval_rewrite_as_sigmoid(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return silu(-sympy.log(2) * arg)


class silu2_slope(sympy.Function):
    """The derivative of silu2."""

    def _eval_rewrite_as_sigmoid(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return slope_by_share(arg, sigmoid(-sympy.log(2) * arg))


def slope_by_share(u: Any, share: Any) -> Any:
    """silu2_slope(u) by the share 1 / (1 + 2**u), differentiated here: a product of it and of two multiply-adds."""
    at, part = sympy.symbols("at part", real=True)
    value: Any = silu2(at)
    shared: Any = sigmoid(-sympy.log(2) * at)
    slope: Any = value.rewrite(sigmoid).diff(at).subs(shared, part)
    rest, rising = sympy.expand(slope / part).as_independent(at)
    factor = rising.coeff(at).subs(part, 0)
    inner = sympy.expand(rising / factor)
    return share * (factor * inner.subs({at: u, part: share}) + rest)


class wrapped(sympy.Function):
    """An angle less whole turns, in [0, 2 pi); its derivative is 1."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.Integer(1)

    def _eval_rewrite_as_floor(self, arg: sympy.Expr, **_: object) -> sympy.Expr:
        return arg - 2 * sympy.pi * sympy.floor(arg / (2 * sympy.pi))


def silu(value: sympy.Expr) -> sympy.Expr:
    """x sigmoid(x)."""
    return value * sigmoid(value)
