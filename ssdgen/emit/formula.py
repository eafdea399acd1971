"""Formulas as Triton expressions, strictly.  sympy -> text

Anything that has no rule here is an error: a formula is never printed in a way that nobody has thought about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy

from ..spec.dims import axes_of, name_of
from ..spec.functions import rsqrt, sigmoid, silu2_slope, softplus, wrapped

RELATIONS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Ge: ">=", sympy.Gt: ">", sympy.Le: "<=", sympy.Lt: "<"}


class UnprintableFormula(ValueError):
    """A formula has a part that no rule prints."""


def broadcast(name: str, axes: tuple[str, ...], over: tuple[str, ...]) -> str:
    """A tile over `axes` as it takes part in an expression over `over`: `dt` over j in (i, j) is `dt[None, :]`."""
    if not axes or axes == over:
        return name
    if len(axes) == 2 and axes == over[::-1]:
        return f"tl.trans({name})"
    if [axis for axis in over if axis in axes] != list(axes):
        raise UnprintableFormula(
            f"{name} has axes {axes}, which do not stand in that order in {over}; transpose it first"
        )
    return f"{name}[{', '.join(':' if axis in axes else 'None' for axis in over)}]"


class FormulaPrinter:
    """Prints one formula over the axes of its result.

    operands: values still in the operands' dtype, read as fp32.  sigmoid: the function's name, if not the language's.
    turns: sines and cosines are of angles within one turn, for which there are functions of our own.
    """

    language, sigmoid = "tl", "tl.sigmoid"

    def __init__(
        self,
        over: tuple[str, ...],
        operands: frozenset[str] = frozenset(),
        masks: frozenset[str] = frozenset(),
        sigmoid: str | None = None,
        turns: bool = False,
    ):
        self.over, self.operands, self.masks = over, operands, masks
        self.sigmoid = sigmoid or self.sigmoid
        self.of_angles = "" if turns else f"{self.language}."

    def print(self, expr: sympy.Basic) -> str:
        for kind, rule in self._rules():
            if isinstance(expr, kind):
                return rule(expr)
        raise UnprintableFormula(f"no rule prints {type(expr).__name__} in {expr}; add one to emit/formula.py")

    def _rules(self) -> tuple[tuple[Any, Callable[[Any], str]], ...]:
        return (
            (sympy.Indexed, self._entry),
            (sympy.Symbol, str),
            (sympy.Number, self._number),
            (sympy.core.numbers.Infinity, lambda _: 'float("inf")'),
            (sympy.core.numbers.NegativeInfinity, lambda _: 'float("-inf")'),
            (sympy.Add, self._sum),
            (sympy.Mul, self._product),
            (sympy.Pow, self._power),
            (sympy.Min, lambda e: self._call("minimum", e.args)),
            (sympy.Max, lambda e: self._call("maximum", e.args)),
            (sympy.Piecewise, self._where),
            (softplus, lambda e: self._call("softplus", e.args)),
            (sigmoid, lambda e: self._call(self.sigmoid, e.args)),
            (silu2_slope, lambda e: self._call("silu2_slope", e.args)),
            (rsqrt, lambda e: self._call(f"{self.language}.rsqrt", e.args)),
            (sympy.log, self._log),
            (sympy.cos, lambda e: self._call(f"{self.of_angles}cos", e.args)),
            (sympy.sin, lambda e: self._call(f"{self.of_angles}sin", e.args)),
            (wrapped, self._wrapped),
            (sympy.core.numbers.Pi, self._number),
            (tuple(RELATIONS), self._relation),
        )

    def _entry(self, expr: sympy.Indexed) -> str:
        name = name_of(expr)
        text = self.variable(name, axes_of(expr))
        if name in self.operands:
            cast = f".to({self.language}.float32)"
            return text.replace("[", f"{cast}[", 1) if "[" in text else f"{text}{cast}"
        return text

    def variable(self, name: str, axes: tuple[str, ...]) -> str:
        """A tile that is read over `axes`, as it takes part in the expression."""
        return broadcast(name, axes, self.over)

    def _number(self, expr: sympy.Number) -> str:
        if expr is sympy.oo or expr is -sympy.oo:
            return 'float("inf")' if expr is sympy.oo else 'float("-inf")'
        return repr(float(expr))

    def _call(self, function: str, args: tuple[sympy.Basic, ...]) -> str:
        # numbers last: minimum(x, 0.0)
        ordered = sorted(args, key=lambda arg: bool(getattr(arg, "is_number", False)))
        return f"{function}({', '.join(self.print(arg) for arg in ordered)})"

    def _sum(self, expr: sympy.Add) -> str:
        # positive terms first: dA_last - dA_cs
        ordered: Any = expr.as_ordered_terms()
        terms = sorted(ordered, key=lambda t: (t.could_extract_minus_sign(), not isinstance(t, sympy.Indexed)))
        text = self.print(terms[0])
        for term in terms[1:]:
            negative = term.could_extract_minus_sign()
            text += f" {'-' if negative else '+'} {self._factor(-term if negative else term, sympy.Add)}"
        return text

    def _product(self, expr: sympy.Mul) -> str:
        powers: Any = [factor for factor in expr.args if isinstance(factor, sympy.Pow) and not factor.is_number]
        below = [power for power in powers if power.exp == -1]
        if below:
            above = expr / sympy.Mul(*below)
            return " / ".join(self._factor(part, sympy.Mul) for part in (above, *(power.base for power in below)))
        # values in the operands' dtype and tiles of full rank first, then what is broadcast, numbers last
        factors = sorted(expr.args, key=lambda f: (bool(f.is_number), -len(getattr(f, "indices", ())), str(f)))
        numbers = [factor for factor in factors if factor.is_number]
        rest = [self._factor(factor, sympy.Mul) for factor in factors if not factor.is_number]
        if numbers and (value := math.prod(float(number) for number in numbers)) != 1.0:
            if value == -1.0:
                return f"-{' * '.join(rest)}"
            rest.append(repr(value))
        return " * ".join(rest)

    def _factor(self, expr: sympy.Basic, inside: type) -> str:
        text = self.print(expr)
        # an angle less whole turns is printed as a difference
        return f"({text})" if isinstance(expr, (sympy.Add, wrapped)) else text

    def _power(self, expr: sympy.Pow) -> str:
        base, exponent = expr.args
        if base == 2 and isinstance(exponent, sympy.Min) and 0 in exponent.args:
            rest = exponent.func(*[arg for arg in exponent.args if arg != 0])
            return f"decay({self.print(rest)})"
        if exponent == -1:
            return f"1.0 / {self._factor(base, sympy.Pow)}"
        if base == 2:
            return f"{self.language}.exp2({self.print(exponent)})"
        if exponent in (2, 3):
            return " * ".join([self._factor(base, sympy.Mul)] * int(exponent))
        raise UnprintableFormula(f"no rule prints the power {expr}; allowed: 2 ** x, x ** 2, x ** 3 and a / x")

    def _log(self, expr: sympy.log) -> str:
        if not expr.is_number:
            raise UnprintableFormula(f"no rule prints {expr}; only the logarithm of a number is allowed")
        return repr(float(expr))

    def _wrapped(self, expr: Any) -> str:
        (angle,) = (self._factor(arg, sympy.Mul) for arg in expr.args)
        turns = f"{self.language}.floor({angle} * {repr(0.5 / math.pi)})"
        return f"{angle} - {turns} * {repr(2 * math.pi)}"

    def _where(self, expr: sympy.Piecewise) -> str:
        branches: Any = expr.args
        if len(branches) != 2 or branches[1][1] != sympy.true:
            raise UnprintableFormula(f"no rule prints {expr}; a choice has one condition and one other value")
        (then, condition), (otherwise, _) = branches
        return f"{self.language}.where({self.print(condition)}, {self.print(then)}, {self.print(otherwise)})"

    def _relation(self, expr: sympy.core.relational.Relational) -> str:
        left, right = expr.args
        if (
            isinstance(expr, sympy.Ne)
            and right == 0
            and isinstance(left, sympy.Indexed)
            and name_of(left) in self.masks
        ):
            return self.print(left)
        return f"{self.print(left)} {RELATIONS[type(expr)]} {self.print(right)}"
