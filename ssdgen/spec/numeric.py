"""A formula as a float64 NumPy function: the one place where sympy becomes numbers.  formula -> oracle, evaluate"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import sympy
from sympy.printing.numpy import NumPyPrinter

from .functions import sigmoid


class UnknownFunction(ValueError):
    """A formula holds a function that has no numeric form."""


class FloatPrinter(NumPyPrinter):
    """NumPy source that broadcasts everywhere, lets a NaN stay a NaN and does not overflow on the way."""

    def _call(self, name: str, *arguments: str) -> str:
        return f"{self._module_format(f'numpy.{name}')}({', '.join(arguments)})"

    def _texts(self, expr: Any) -> list[str]:
        return [str(self._print(argument)) for argument in expr.args]

    def _print_Min(self, expr: Any) -> str:
        # sympy's own stacks the arguments, which must then have one shape
        return reduce(lambda left, right: self._call("minimum", left, right), self._texts(expr))

    def _print_Max(self, expr: Any) -> str:
        return reduce(lambda left, right: self._call("maximum", left, right), self._texts(expr))

    def _print_Piecewise(self, expr: Any) -> str:
        *cases, (value, last) = expr.args
        if last != sympy.true:
            raise UnknownFunction(f"{expr} has no value where none of its conditions holds; end it with (value, True)")
        text = str(self._print(value))
        for value, condition in reversed(cases):
            text = self._call("where", str(self._print(condition)), str(self._print(value)), text)
        return text

    def _print_softplus(self, expr: Any) -> str:
        return self._call("logaddexp", "0", *self._texts(expr))

    def _print_sigmoid(self, expr: Any) -> str:
        # exp(-log(1 + exp(-x))): 1 / (1 + exp(-x)) overflows for large negative x
        return self._call("exp", "-" + self._call("logaddexp", "0", *self._texts(expr.func(-expr.args[0]))))

    def _print_silu2(self, expr: Any) -> str:
        return f"({self._print(expr.rewrite(sigmoid))})"

    _print_silu2_slope = _print_silu2

    def _print_rsqrt(self, expr: Any) -> str:
        return f"(1 / {self._call('sqrt', *self._texts(expr))})"

    def _print_wrapped(self, expr: Any) -> str:
        return self._call("mod", *self._texts(expr), self._print(2 * sympy.pi))

    def _print_not_supported(self, expr: Any) -> str:
        raise UnknownFunction(f"no numeric form for {type(expr).__name__} in {expr}; add one to spec/numeric.py")

    _print_Function = _print_not_supported


def function(arguments: Sequence[sympy.Basic], formula: sympy.Expr) -> Callable[..., Any]:
    """NumPy function of `arguments` (symbols or entries), in order, that evaluates `formula` with broadcasting.

    Raises UnknownFunction where the formula has a part without a numeric form.
    """
    return _compiled(tuple(arguments), sympy.sympify(formula))


@lru_cache(maxsize=1024)
def _compiled(arguments: tuple[sympy.Basic, ...], formula: sympy.Expr) -> Callable[..., Any]:
    printer = FloatPrinter({"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": False})
    # entries become plain symbols: NumPy source would index into them
    plain = {argument: sympy.Dummy(f"v{place}", real=True) for place, argument in enumerate(arguments)}
    return sympy.lambdify(list(plain.values()), formula.xreplace(plain), modules="numpy", printer=printer)
