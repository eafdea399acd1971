"""Derivative of a pointwise formula by one of the entries that it reads.  formula, entry -> formula; read by gradient

Where sympy's own derivative is not what a layer means, the rule stands here: limits and decays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy

from .dims import name_of


def derivative(formula: sympy.Expr, by: sympy.Indexed) -> sympy.Expr:
    """d formula / d by.  Every other entry is held, also one of the same array at other axes.

    A limit, Min or Max, has derivative 1 where it lets the value pass and 0 elsewhere; on the limit it passes. The
    exponent of a decay 2 ** Min(u, 0) counts as not limited: u is never positive in exact arithmetic.
    """
    # sympy takes entries of one array for functions of their indices
    plain = {term: sympy.Dummy(name_of(term), real=True) for term in formula.atoms(sympy.Indexed)}
    if by not in plain:
        return sympy.Integer(0)
    found: Any = sympy.factor_terms(_by(formula.xreplace(plain), plain[by]))
    return found.xreplace({dummy: term for term, dummy in plain.items()})


def decay_exponent(expr: Any) -> sympy.Expr | None:
    """u of a decay 2 ** Min(u, 0), None for another expression."""
    if isinstance(expr, sympy.Pow) and expr.base == 2 and isinstance(expr.exp, sympy.Min) and 0 in expr.exp.args:
        return sympy.Min(*(arg for arg in expr.exp.args if arg != 0))
    return None


def times(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    """The product, with the condition outermost where `left` has one."""
    factors = sympy.Mul.make_args(left)
    place = next((place for place, factor in enumerate(factors) if isinstance(factor, sympy.Piecewise)), None)
    if place is None:
        return left * right
    choice, rest = factors[place], sympy.Mul(*factors[:place], *factors[place + 1 :], right)
    return sympy.Piecewise(*((times(value, rest), condition) for value, condition in cases(choice)))


def cases(choice: Any) -> tuple[tuple[Any, Any], ...]:
    """(value, condition) of a Piecewise, in order."""
    return tuple((value, condition) for value, condition in choice.args)


def _by(expr: Any, symbol: sympy.Symbol) -> Any:
    if symbol not in expr.free_symbols:
        return sympy.Integer(0)
    if expr == symbol:
        return sympy.Integer(1)
    if isinstance(expr, (sympy.Min, sympy.Max)):
        passes = ((leaf, sympy.Piecewise((1, sympy.Eq(expr, leaf)), (0, True))) for leaf in _choices(expr))
        return sympy.Add(*(times(passed, _by(leaf, symbol)) for leaf, passed in passes))
    if isinstance(expr, sympy.Piecewise):
        return sympy.Piecewise(*((_by(value, symbol), condition) for value, condition in cases(expr)))
    exponent = decay_exponent(expr)
    if exponent is not None:
        return sympy.log(2) * expr * _by(exponent, symbol)
    # chain rule, one argument after the other
    slots = [sympy.Dummy(real=True) for _ in expr.args]
    back = dict(zip(slots, expr.args, strict=True))
    outer = expr.func(*slots)
    return sympy.Add(*(times(_by(back[slot], symbol), outer.diff(slot).xreplace(back)) for slot in slots))


def _choices(expr: Any) -> Iterator[sympy.Expr]:
    """What a nest of Min and Max chooses from."""
    for argument in expr.args:
        if isinstance(argument, (sympy.Min, sympy.Max)):
            yield from _choices(argument)
        else:
            yield argument


__all__ = ["cases", "decay_exponent", "derivative", "times"]
