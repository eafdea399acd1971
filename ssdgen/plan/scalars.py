"""Integer expressions of the description as scalar text, strictly.  sympy -> the plan's integer expressions"""

from __future__ import annotations

import sympy


def integer_text(expr: sympy.Expr) -> str:
    """Integer sympy expression as Python text; floor(a / b) becomes a // b.  Raises ValueError on anything else."""
    if isinstance(expr, (sympy.Symbol, sympy.Integer)):
        return str(expr)
    if isinstance(expr, sympy.floor):
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        # head / (nheads / ngroups): divide by the heads of a group, which is whole
        outer = [factor for factor in sympy.Mul.make_args(numerator) if str(factor) != "head"]
        if len(outer) == 1 and numerator.has(sympy.Symbol("head", integer=True, nonnegative=True)):
            return f"head // ({integer_text(denominator)} // {integer_text(outer[0])})"
        return f"{_wrap(numerator)} // {_wrap(denominator)}"
    if isinstance(expr, sympy.Mul):
        return " * ".join(_wrap(factor) for factor in expr.args)
    if isinstance(expr, sympy.Add):
        return " + ".join(integer_text(term) for term in expr.args)
    raise ValueError(
        f"no integer form for {expr} ({type(expr).__name__}); allowed: symbols, integers, sums, products, floor"
    )


def _wrap(expr: sympy.Expr) -> str:
    text = integer_text(expr)
    return f"({text})" if " " in text else text
