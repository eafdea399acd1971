"""A graph as a PyTorch function: what runs on a CPU, and what automatic differentiation goes through.  Graph -> text"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy

from ..spec.decompose import CAUSAL
from ..spec.derivative import decay_exponent
from ..spec.dims import axes_of, name_of
from ..spec.graph import Contract, Cumsum, Graph, Input, Last, Map, Node, Shift, Sum
from .formula import FormulaPrinter, UnprintableFormula
from .layout import fit

# what stands for a condition until a tensor with rows and columns is known
PLACES = dict(zip(CAUSAL, ("PLACE_REACHED", "PLACE_PASSED"), strict=True))


class TorchPrinter(FormulaPrinter):
    """Formulas over tensors whose last dimensions are the axes of the graph; any others come before them."""

    language, sigmoid = "torch", "torch.sigmoid"

    def variable(self, name: str, axes: tuple[str, ...]) -> str:
        if not axes or axes == self.over:
            return name
        if [axis for axis in self.over if axis in axes] != list(axes):
            raise UnprintableFormula(f"{name} has axes {axes}, which do not stand in that order in {self.over}")
        return f"{name}[..., {', '.join(':' if axis in axes else 'None' for axis in self.over)}]"

    def _call(self, function: str, args: tuple[sympy.Basic, ...]) -> str:
        if function in ("minimum", "maximum"):
            # what has axes first: a limit may be a number
            value, *limits = sorted(args, key=lambda arg: (not arg.has(sympy.Indexed), str(arg)))
            side = "max" if function == "minimum" else "min"
            return f"({self.print(value)})" + "".join(f".clamp({side}={self.print(limit)})" for limit in limits)
        return super()._call("torch.nn.functional.softplus" if function == "softplus" else function, args)

    def _power(self, expr: sympy.Pow) -> str:
        exponent = decay_exponent(expr)
        if exponent is None:
            return super()._power(expr)
        return f"torch.exp2(({self.print(exponent)}).clamp(max=0.0))"

    def _wrapped(self, expr: Any) -> str:
        return f"torch.remainder({self.print(expr.args[0])}, {2 * math.pi!r})"

    def _relation(self, expr: Any) -> str:
        # over rows and columns, which are the last two axes of what is chosen from
        return PLACES.get(expr) or super()._relation(expr)


def function(graph: Graph, name: str, about: str, outputs: tuple[str, ...], options: Mapping[str, str]) -> str:
    """The function `name`, of the inputs that `outputs` need, which returns these by name.

    Its module has `moved(tensor, dim, by)`, the entry so many positions before, and `below(tensor, diagonal)`.

    options: flag -> the condition under which it is set, in Python; the others are off.
    """
    chosen = Graph(graph.name, tuple(_without(node, options) for node in graph.nodes))
    nodes = chosen.closure(outputs, frozenset())
    given = [node for node in nodes if isinstance(node, Input)]
    lines = [f"def {name}({', '.join(node.name for node in given)}):", f'    """{about}', ""]
    lines += [f"    {node.name}: {node.what}, [{', '.join(('..', *node.axes))}]" for node in given]
    lines.append('    """')
    for node in nodes:
        if not isinstance(node, Input):
            lines += fit(f"{node.name} = {_value(node, options)}", 4)
    lines += ["    return {", *(f'        "{output}": {output},' for output in outputs), "    }"]
    return "\n".join(lines)


def _without(node: Node, options: Mapping[str, str]) -> Node:
    """The node, its option settled where it can only be off."""
    if isinstance(node, Map) and node.option is not None and node.option not in options:
        assert node.otherwise is not None
        return Map(node.name, node.axes, node.otherwise)
    return node


def _value(node: Node, options: Mapping[str, str]) -> str:
    if isinstance(node, Map):
        text = TorchPrinter(node.axes).print(node.formula)
        if any(node.formula.has(condition) for condition in CAUSAL):
            text = _with_places(node, text)
        if node.option is None:
            return text
        assert node.otherwise is not None
        return f"{text} if {options[node.option]} else {TorchPrinter(node.axes).print(node.otherwise)}"
    if isinstance(node, Contract):
        left, right = ("".join(axes_of(term)) for term in (node.left, node.right))
        names = f"{name_of(node.left)}, {name_of(node.right)}"
        return f'torch.einsum("...{left},...{right}->...{"".join(node.axes)}", {names})'
    if not isinstance(node, (Cumsum, Last, Sum, Shift)):
        raise UnprintableFormula(f"no rule prints {node.name}, a {type(node).__name__}; add one to emit/torch_code.py")
    source, axes = name_of(node.of), axes_of(node.of)
    if isinstance(node, Sum):
        return f"{source}.sum(({', '.join(str(axes.index(axis) - len(axes)) for axis in node.over)},))"
    place = axes.index(node.along) - len(axes)
    if isinstance(node, Last):
        return f"{source}.select({place}, -1)"
    if isinstance(node, Shift):
        return f"moved({source}, {place}, {node.by})"
    if node.reverse:
        raise UnprintableFormula(f"{node.name} is a running sum from the end, which only adjoints have")
    return f"{source}.cumsum({place})"


def _with_places(node: Map, text: str) -> str:
    """Rows and columns by a tensor that has both."""
    terms = sorted(node.formula.atoms(sympy.Indexed), key=str)
    both = next(name_of(term) for term in terms if axes_of(term)[-2:] == ("i", "j"))
    for diagonal, place in enumerate(PLACES.values()):
        text = text.replace(place, f"below({both}, {-diagonal})")
    return text


__all__ = ["TorchPrinter", "function"]
