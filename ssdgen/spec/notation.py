"""Equations of a graph as text and as LaTeX.  graph nodes -> strings for people"""

from __future__ import annotations

from functools import reduce
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from .derivative import decay_exponent
from .dims import AXES, axes_of, name_of
from .graph import Contract, Cumsum, Input, Largest, Map, Node, Shift, Sum

# letters of docs/maths.md; a value without one is set upright by its name
LETTERS = {
    "dt_raw": r"\tilde{\Delta}",
    "dt_biased": r"\Delta^{\mathrm{b}}",
    "dt_positive": r"\Delta^{+}",
    "dt": r"\Delta",
    "dt_min": r"\Delta_{\min}",
    "dt_max": r"\Delta_{\max}",
    "log_decay": r"\ell",
    "dA_cs": "s",
    "dA_last": r"s^{\mathrm{last}}",
    "CB": r"(C B^{\top})",
    "scores": r"\hat{M}",
    "left_decay": r"\lambda",
    "right_decay": r"\rho",
    "centre_decay": r"\gamma",
    "x_weighted": r"\hat{x}",
    "state": r"\mathbf{h}",
    "local_state": "S",
    "state_out": r"\mathbf{h}'",
    "y_state": r"Y^{\mathrm{left}}",
    "y_diag": r"Y^{\mathrm{diag}}",
    "y_ssm": r"Y^{\mathrm{ssm}}",
    "y_skip": r"Y^{\mathrm{skip}}",
    "y": "Y",
    "batch": "b",
    "seqlen": "L",
    "nheads": "H",
    "headdim": "P",
    "dstate": "N",
    "ngroups": "G",
    "chunk": "Q",
    "element_bytes": "e",
    **{letter: letter for letter in ("A", "x", "B", "C", "D", "z", *AXES)},
}
# what has an adjoint
_VALUES = frozenset((*LETTERS, *(f"{name}_whole" for name in LETTERS))) - {*AXES, "batch"}


def text(node: Node) -> str:
    """One line: `CB[i, j] = sum over n of C[i, n] B[j, n]`."""
    return f"{_entry(node.name, node.axes)} = {_text_value(node)}"


def latex(node: Node) -> str:
    """The same in LaTeX, without delimiters."""
    return rf"{_latex_entry(node.name, node.axes)} = {_latex_value(node)}"


def formula_text(expr: Any) -> str:
    """A formula or a size as text."""
    return TextPrinter({"order": "none"}).doprint(expr)


def formula_latex(expr: Any) -> str:
    """A formula or a size as LaTeX."""
    return MathPrinter({"order": "none"}).doprint(expr)


def _text_value(node: Node) -> str:
    if isinstance(node, Input):
        return node.what
    if isinstance(node, Map):
        return formula_text(node.formula)
    if isinstance(node, Contract):
        return f"sum over {node.over} of {formula_text(node.left)} {formula_text(node.right)}"
    if isinstance(node, Sum):
        return f"sum over {', '.join(node.over)} of {formula_text(node.of)}"
    if isinstance(node, Largest):
        return f"largest over {', '.join(node.over)} of |{formula_text(node.of)}|"
    if isinstance(node, Shift):
        return _entry(name_of(node.of), _shifted(node))
    inside = [
        axis if axis != node.along else ("k" if isinstance(node, Cumsum) else "last") for axis in axes_of(node.of)
    ]
    value = f"{name_of(node.of)}[{', '.join(inside)}]"
    if isinstance(node, Cumsum):
        return f"sum over k {'>=' if node.reverse else '<='} {node.along} of {value}"
    return value


def _latex_value(node: Node) -> str:
    if isinstance(node, Input):
        return rf"\text{{{node.what}}}"
    if isinstance(node, Map):
        return formula_latex(node.formula)
    if isinstance(node, Contract):
        return rf"\sum_{{{node.over}}} {formula_latex(node.left)} {formula_latex(node.right)}"
    if isinstance(node, Sum):
        return rf"\sum_{{{','.join(node.over)}}} {formula_latex(node.of)}"
    if isinstance(node, Largest):
        return rf"\max_{{{','.join(node.over)}}} \lvert {formula_latex(node.of)} \rvert"
    if isinstance(node, Shift):
        return _latex_entry(name_of(node.of), _shifted(node))
    if isinstance(node, Cumsum):
        inside = tuple("k" if axis == node.along else axis for axis in axes_of(node.of))
        bound = r"\ge" if node.reverse else r"\le"
        return rf"\sum_{{k {bound} {node.along}}} {_latex_entry(name_of(node.of), inside)}"
    inside = tuple(r"\mathrm{last}" if axis == node.along else axis for axis in axes_of(node.of))
    return _latex_entry(name_of(node.of), inside)


def _shifted(node: Shift) -> tuple[str, ...]:
    """The axes of what is read, moved."""
    moved = f"{node.along} {'-' if node.by > 0 else '+'} {abs(node.by)}"
    return tuple(moved if axis == node.along else axis for axis in axes_of(node.of))


def _entry(name: str, axes: tuple[str, ...]) -> str:
    return f"{name}[{', '.join(axes)}]" if axes else name


def _latex_entry(name: str, axes: tuple[str, ...]) -> str:
    # a letter with an index of its own must be closed before it gets another
    return rf"{{{_letter(name)}}}_{{{','.join(axes)}}}" if axes else _letter(name)


def _letter(name: str) -> str:
    """Letter of a value; a ring marks a factor before sequence boundaries cut it, a line over it the adjoint of it."""
    if name.startswith("d_"):
        rest = name.removeprefix("d_")
        value = max((known for known in _VALUES if f"{rest}_".startswith(f"{known}_")), key=len, default="")
        if value:
            place = rest[len(value) :].strip("_").replace("_", r"\_")
            return rf"\overline{{{_letter(value)}}}" + (rf"^{{\mathrm{{{place}}}}}" if place else "")
    if name.endswith("_whole") and name.removesuffix("_whole") in LETTERS:
        return rf"\mathring{{{LETTERS[name.removesuffix('_whole')]}}}"
    escaped = name.replace("_", r"\_")
    return LETTERS.get(name, rf"\mathrm{{{escaped}}}")


def _positive_first(expr: sympy.Expr) -> list[sympy.Expr]:
    terms = sympy.Add.make_args(expr)
    return sorted(terms, key=lambda term: (term.could_extract_minus_sign(), sympy.default_sort_key(term)))


class TextPrinter(StrPrinter):
    """Python-like text; a decay is `exp2(u)`."""

    def _print_Indexed(self, expr: Any) -> str:
        return _entry(name_of(expr), axes_of(expr))

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        parts = [str(self._print(term)) for term in _positive_first(expr)]
        return reduce(lambda left, right: f"{left} - {right[1:]}" if right[0] == "-" else f"{left} + {right}", parts)

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        exponent = decay_exponent(expr)
        return super()._print_Pow(expr, rational) if exponent is None else f"exp2({self._print(exponent)})"

    def _print_Min(self, expr: Any) -> str:
        return f"min({self._arguments(expr)})"

    def _print_Max(self, expr: Any) -> str:
        return f"max({self._arguments(expr)})"

    def _arguments(self, expr: Any) -> str:
        # what is limited first, its limit after it
        ordered = sorted(expr.args, key=lambda arg: (bool(arg.is_Atom), sympy.default_sort_key(arg)))
        return ", ".join(str(self._print(arg)) for arg in ordered)

    def _print_Piecewise(self, expr: Any) -> str:
        *cases, (otherwise, _) = expr.args
        chosen = [f"{self._print(value)} where {self._print(condition)}" for value, condition in cases]
        return ", ".join([*chosen, f"else {self._print(otherwise)}"])

    def _print_Equality(self, expr: Any) -> str:
        return f"{self._print(expr.lhs)} = {self._print(expr.rhs)}"


class MathPrinter(LatexPrinter):
    """LaTeX with the letters of docs/maths.md."""

    def _print_Indexed(self, expr: Any, exp: str | None = None) -> str:
        entry = _latex_entry(name_of(expr), axes_of(expr))
        return entry if exp is None else rf"{{{entry}}}^{{{exp}}}"

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:
        return _letter(str(expr))

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        parts = [str(self._print(term)) for term in _positive_first(expr)]
        return reduce(lambda left, right: f"{left} {right}" if right[0] == "-" else f"{left} + {right}", parts)

    def _print_Pow(self, expr: Any) -> str:
        exponent = decay_exponent(expr)
        return super()._print_Pow(expr) if exponent is None else rf"2^{{{self._print(exponent)}}}"

    def _print_softplus(self, expr: Any) -> str:
        return rf"\operatorname{{softplus}}\left({self._print(expr.args[0])}\right)"

    def _print_sigmoid(self, expr: Any) -> str:
        return rf"\sigma\left({self._print(expr.args[0])}\right)"
