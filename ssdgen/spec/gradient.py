"""The adjoint of a contraction graph, by reverse mode.  graph -> graph; read by counts, show, oracle_gradient and plan

The adjoint of a graph is a graph: the nodes of the forward one, which may be computed again or loaded, and after them
the nodes that turn the adjoints of its outputs, two more inputs for a chunk, into those of its inputs. No gradient is
written down anywhere: each kind of node has one rule, and what is pointwise is differentiated (derivative.py).

Names. `d_v` is the adjoint of the value v, over the axes of v. Where several values read v, `d_v_u` is what comes from
its reader u (`.._rows` and `.._columns` where u reads v at both), `d_v_head` is one head's part where heads share v,
`d_v_base` holds without an option that adds to it, and `.._terms` is what a sum is over. `d_v_scaled` is an adjoint
without a constant factor that all of its terms have: the log-decays are summed in base 2, and their adjoints would all
be multiplied by log(2), to be divided by it at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from .decompose import chunk_graph
from .derivative import cases, derivative, times
from .dims import AXES, axes_of, entry, name_of
from .graph import Contract, Cumsum, Graph, Input, Last, Map, Node, Shift, Sum
from .layer import Layer
from .specialise import TARGETS, specialise

ONE = sympy.Integer(1)
PLACES = {"i": "rows", "j": "columns"}


class NotDifferentiable(ValueError):
    """A node has a form that no rule of reverse mode covers."""


def adjoint(graph: Graph, outputs: Sequence[str] = TARGETS, inputs: Iterable[str] | None = None) -> Graph:
    """`graph`, one input `d_v` for each v of `outputs`, and the adjoints `d_u` of `inputs`, as far as any reaches them.

    inputs: those with axes if None.  Values over which options choose have adjoints over which they choose too; the
    gradient of an input that is read only under an option has a meaning only under it.
    Raises NotDifferentiable.
    """
    wanted = {node.name for node in graph.nodes if isinstance(node, Input) and node.axes} if inputs is None else inputs
    return Graph(f"adjoint of {graph.name}", _Reverse(graph, tuple(outputs), frozenset(wanted)).run())


def chunk_adjoint(layer: Layer) -> Graph:
    """The adjoint of one chunk: d_x, d_B, d_C, d_dt_raw, d_A, .. and d_state from d_y and d_state_out."""
    return adjoint(chunk_graph(layer))


def gradients(layer: Layer, graph: Graph) -> tuple[str, ...]:
    """Names of the gradients that `graph`, its adjoint, gives for the layer's own options, in order of the inputs."""
    forward = specialise(chunk_graph(layer), layer.flags())
    names = (f"d_{node.name}" for node in forward.nodes if isinstance(node, Input))
    return tuple(name for name in names if name in graph)


@dataclass(frozen=True)
class _Part:
    """What one reader adds to the adjoint of a value, over its axes and, `shared`, the heads that share it.

    without: the same when `option` is not set.
    """

    source: str
    value: sympy.Expr
    option: str | None
    without: sympy.Expr
    shared: bool


@dataclass
class _Reverse:
    """One run of reverse mode.  An adjoint is a constant times an entry over the axes of the value.

    nodes: those made so far; made: their entries by what they compute, so that nothing is computed twice;
    parts: what each value got so far; partials: derivatives of pointwise values by what they read, with and without
    their option; active: values between an input and an output; readers: which of them read a value, once per place.
    """

    graph: Graph
    outputs: tuple[str, ...]
    wanted: frozenset[str]
    nodes: list[Node] = field(default_factory=list)
    made: dict[tuple[Any, ...], sympy.Indexed] = field(default_factory=dict)
    parts: dict[str, list[_Part]] = field(default_factory=dict)
    partials: dict[str, dict[sympy.Indexed, tuple[sympy.Expr, sympy.Expr]]] = field(default_factory=dict)
    active: frozenset[str] = frozenset()
    readers: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> tuple[Node, ...]:
        self.partials = {node.name: _partials(node) for node in self.graph.nodes if isinstance(node, Map)}
        self._find_active()
        for name in self.outputs:
            axes = self.graph[name].axes
            self.nodes.append(Input(f"d_{name}", axes, f"adjoint of {name}"))
            self._add(entry(name, *axes), entry(f"d_{name}", *axes), name)
        for node in reversed(self.graph.nodes):
            if node.name in self.active and node.name in self.parts:
                self._pass_on(node, self._collected(node))
        return (*self.graph.nodes, *self.nodes)

    def _find_active(self) -> None:
        """Values between a wanted input and an output, and who reads each of them."""
        reached, needed = set(self.wanted), set(self.outputs)
        for node in self.graph.nodes:
            if any(name_of(term) in reached for term in self._inner(node)):
                reached.add(node.name)
        for node in reversed(self.graph.nodes):
            if node.name in needed:
                needed |= {name_of(term) for term in self._inner(node)}
        self.active = frozenset(reached & needed)
        for node in self.graph.nodes:
            for term in self._inner(node) if node.name in self.active else ():
                self.readers.setdefault(name_of(term), []).append(node.name)

    def _inner(self, node: Node) -> list[sympy.Indexed]:
        """Entries by which a value can be differentiated; what stands in a condition is none."""
        if isinstance(node, Input):
            return []
        if isinstance(node, Map):
            return list(self.partials[node.name])
        if isinstance(node, Contract):
            return [node.left, node.right]
        return [self._summed(node) if isinstance(node, Last) else node.of]

    def _summed(self, node: Last) -> sympy.Indexed:
        """The last entry of a running sum is the sum of all: every position gets its adjoint."""
        running = self.graph[name_of(node.of)]
        if not isinstance(running, Cumsum) or running.reverse:
            raise NotDifferentiable(f"{node.name} is the last entry of {running.name}, which is no running sum")
        return running.of

    # ---- rules, one per kind of node

    def _pass_on(self, node: Node, out: sympy.Expr) -> None:
        """Give `out`, the adjoint of a node, to what the node reads."""
        if isinstance(node, Map):
            self._through_map(node, out)
        elif isinstance(node, Contract):
            for operand, other in ((node.left, node.right), (node.right, node.left)):
                self._through_contract(node, out, operand, other)
        elif isinstance(node, Cumsum):
            scale, of = _scaled(out)
            name = self._name(name_of(node.of), node.name)
            turned = Cumsum(name, node.axes, of, node.along, not node.reverse)
            self._add(node.of, scale * self._node(turned, of), node.name)
        elif isinstance(node, Shift):
            scale, of = _scaled(out)
            name = self._name(name_of(node.of), node.name)
            back = Shift(name, node.axes, of, node.along, -node.by)
            self._add(node.of, scale * self._node(back, of, node.by), node.name)
        elif isinstance(node, Last):
            self._add(self._summed(node), out, node.name)
        elif isinstance(node, Sum):
            self._add(node.of, out, node.name)

    def _through_contract(self, node: Contract, out: sympy.Expr, operand: sympy.Indexed, other: sympy.Indexed) -> None:
        if name_of(operand) not in self.active:
            return
        scale, of = _scaled(out)
        summed = ({*axes_of(of), *axes_of(other)} - set(axes_of(operand))) - {"h"}
        if len(summed) != 1:
            raise NotDifferentiable(f"the adjoint of {operand} in {node.name} is no product over one axis: {summed}")
        (over,) = summed
        factor, product = self._product(node, operand, of, other, over)
        self._add(operand, scale * factor * product, node.name)

    def _product(
        self, node: Contract, operand: sympy.Indexed, out: sympy.Indexed, other: sympy.Indexed, over: str
    ) -> tuple[sympy.Expr, sympy.Expr]:
        """What `operand` gets from a product: a factor, and the product of plain values that it multiplies."""
        (factor, out), (more, other) = self._pulled(out, over), self._pulled(other, over)
        heads = "h" in (*axes_of(out), *axes_of(other))
        axes = (*(["h"] if heads else []), *(axis for axis in axes_of(operand) if axis != "h"))
        # rows of the result from the left
        left, right = (out, other) if axes[int(heads)] in axes_of(out) else (other, out)
        alone = factor * more == 1 and set(axes) == set(axes_of(operand))
        name = self._name(name_of(operand), node.name, alone)
        return factor * more, self._node(Contract(name, axes, left, right, over), left, right, over)

    def _pulled(self, term: sympy.Indexed, over: str) -> tuple[sympy.Expr, sympy.Indexed]:
        """Factors of a pointwise product without the axis `over` come after the sum: its operands are not rounded."""
        node = next((node for node in (*self.graph.nodes, *self.nodes) if node.name == name_of(term)), None)
        if isinstance(node, Map) and node.option is None and node.formula.is_Mul:
            outer, inner = _split(_renamed(node.formula, node.axes, axes_of(term)), {over})
            if isinstance(inner, sympy.Indexed):
                return outer, inner
        return ONE, term

    def _through_map(self, node: Map, out: sympy.Expr) -> None:
        for term, (slope, without) in self.partials[node.name].items():
            if name_of(term) in self.active:
                option = None if slope == without else node.option
                on = self._gathered(node, node.formula, term, slope, out)
                off = self._gathered(node, node.otherwise, term, without, out) if option else ONE
                self._add(term, on, node.name, option, off)

    def _gathered(self, node: Map, formula: Any, term: sympy.Indexed, slope: sympy.Expr, out: sympy.Expr) -> sympy.Expr:
        """What `term` gets: slope times `out`, summed over the axes that it lacks, heads aside."""
        over = tuple(axis for axis in node.axes if axis not in axes_of(term) and axis != "h")
        share = _share(slope, formula)
        # as a multiple of the value: rows and columns of scores are then sums of the same numbers, and where the two
        # should cancel they do
        whole = times(slope, out) if share is None else share * entry(node.name, *node.axes) * out
        if not over or whole == 0:
            return whole
        outer, inner = _split(whole, set(over))
        return outer * self._summed_up(node, term, inner, outer, over)

    def _summed_up(
        self, node: Map, term: sympy.Indexed, inner: sympy.Expr, outer: sympy.Expr, over: tuple[str, ...]
    ) -> sympy.Expr:
        inner, over = self._exchanged(node, inner, over)
        axes = tuple(axis for axis in AXES if axis in _axes_in(inner) or axis in over)
        left = tuple(axis for axis in axes if axis not in over)
        value = name_of(term)
        name = self._name(value, node.name, outer == 1 and set(left) == set(axes_of(term)))
        terms = f"{name}_terms"
        if self.readers[value].count(node.name) > 1:
            name += "".join(f"_{PLACES[axis]}" for axis in axes_of(term) if axis in PLACES)
        if not isinstance(inner, sympy.Indexed) or len(axes_of(inner)) != len(axes):
            taken = any(made.name == terms for made in self.nodes)
            inner = self._node(Map(f"{name}_terms" if taken else terms, axes, inner), inner)
        return self._node(Sum(name, left, inner, over), inner, over)

    def _exchanged(self, node: Map, inner: sympy.Expr, over: tuple[str, ...]) -> tuple[sympy.Expr, tuple[str, ...]]:
        """Two sums in the other order, where that makes use of a product which is needed anyway.

        sum over p of u (sum over n of a b) = sum over n of a (sum over p of u b), and what a gets is a factor times
        the sum over p of u b.
        """
        factors: Any = sympy.Mul.make_args(inner)
        for value in factors if len(factors) == 2 and len(over) == 1 else ():
            product = self.graph[name_of(value)] if value in self.partials[node.name] else None
            u = inner / value
            if not isinstance(product, Contract) or not isinstance(u, sympy.Indexed):
                continue
            slope, without = self.partials[node.name][value]
            as_made = axes_of(value) == product.axes and product.over not in axes_of(u)
            for a, b in ((product.left, product.right), (product.right, product.left)):
                needed = name_of(a) in self.active and slope == without and not set(over) & _axes_in(slope)
                both = all(over[0] in axes_of(term) for term in (u, b)) and over[0] not in axes_of(a)
                if as_made and needed and both:
                    factor, made = self._product(product, a, u, b, over[0])
                    return a * factor * made, (product.over,)
        return inner, over

    # ---- what a value gets

    def _add(
        self,
        term: sympy.Indexed,
        value: sympy.Expr,
        source: str,
        option: str | None = None,
        without: sympy.Expr = ONE,
    ) -> None:
        """Add to the adjoint of what is read as `term`.  A value on columns that was read on rows is the same array."""
        own = self.graph[name_of(term)].axes
        value, without = (_renamed(expr, axes_of(term), own) for expr in (value, without))
        shared = "h" not in own and "h" in _axes_in(value) | (_axes_in(without) if option else set())
        self.parts.setdefault(name_of(term), []).append(_Part(source, value, option, without, shared))

    def _collected(self, node: Node) -> sympy.Expr:
        """The adjoint of a node, all of its parts being there: a constant times an entry."""
        parts, name = self.parts[node.name], f"d_{node.name}"
        own = [part for part in parts if not part.shared]
        shared = [part for part in parts if part.shared]
        if shared:
            scale, each = _scaled(self._total(node, f"{name}_head", ("h", *node.axes), shared))
            summed = self._node(Sum(name if not own else f"{name}_heads", node.axes, each, ("h",)), each, "h")
            own.append(_Part("heads", scale * summed, None, ONE, False))
        total = self._total(node, name, node.axes, own)
        if isinstance(node, Input) and name_of(_scaled(total)[1]) != name:
            return self._node(Map(name, node.axes, total), total, name)
        return total

    def _total(self, node: Node, name: str, axes: tuple[str, ...], parts: list[_Part]) -> sympy.Expr:
        always = [part.value for part in parts if part.option is None]
        added: dict[str, list[sympy.Expr]] = {}
        for part in parts:
            if part.option is None:
                continue
            if part.without == 0:
                added.setdefault(part.option, []).append(part.value)
                continue
            made = f"{name}_{part.source}" if len(parts) > 1 else name
            chosen = Map(made, axes, part.value, part.option, part.without)
            always.append(self._node(chosen, chosen.formula, chosen.option, chosen.otherwise))
        # an input's gradient is what it is called; between nodes a constant may wait
        every = [*always, *(value for values in added.values() for value in values)]
        scale = ONE if isinstance(node, Input) else _common(every)
        if scale != 1:
            name += "_scaled"
        total = sympy.Add(*(_over(value, scale) for value in always))
        if not always:
            (option, values), *others = added.items()
            value = sympy.Add(*(_over(value, scale) for value in values))
            if others:
                raise NotDifferentiable(f"{node.name} is read under {' or '.join(added)} only; one option may decide")
            if isinstance(node, Input):
                return value if isinstance(value, sympy.Indexed) else self._node(Map(name, axes, value), value)
            made = f"{name}_or_none" if isinstance(value, sympy.Indexed) and name_of(value) == name else name
            return scale * self._node(Map(made, axes, value, option, sympy.Integer(0)), value, option)
        for place, (option, values) in enumerate(added.items()):
            if not isinstance(total, sympy.Indexed):
                base = f"{name}_base" if place == 0 else f"{name}_base{place + 1}"
                total = self._node(Map(base, axes, total), total)
            last = place == len(added) - 1
            made = name if last else f"{name}_{option.lower()}"
            more = total + sympy.Add(*(_over(value, scale) for value in values))
            total = self._node(Map(made, axes, more, option, total), more, option, total)
        if not isinstance(total, sympy.Indexed) or axes_of(total) != axes:
            total = self._node(Map(name, axes, total), total)
        return scale * total

    # ---- nodes

    def _name(self, value: str, source: str, alone: bool = True) -> str:
        """d_value, where this is all that it gets; else what it gets from `source`."""
        alone = alone and len(self.readers[value]) == 1 and value not in self.outputs
        return f"d_{value}" if alone else f"d_{value}_{source.removesuffix('_whole')}"

    def _node(self, node: Node, *key: Any) -> sympy.Indexed:
        """Entry of the node, or of the one that computes the same already.  key: what it computes, its name aside."""
        full = (type(node), node.axes, *key)
        if full not in self.made:
            self.nodes.append(node)
            self.made[full] = entry(node.name, *node.axes)
        return self.made[full]


def _partials(node: Map) -> dict[sympy.Indexed, tuple[sympy.Expr, sympy.Expr]]:
    """Derivatives of a pointwise value by what it reads, with its option and without; those that are zero left out."""
    exprs = [node.formula] + ([node.otherwise] if node.otherwise is not None else [])
    terms = sorted({term for expr in exprs for term in expr.atoms(sympy.Indexed)}, key=str)
    slopes = {term: [derivative(expr, term) for expr in exprs] for term in terms}
    return {term: (found[0], found[-1]) for term, found in slopes.items() if any(slope != 0 for slope in found)}


def _share(slope: Any, formula: Any) -> sympy.Expr | None:
    """The number that `slope` is a multiple of `formula` by, if it is one."""
    if isinstance(slope, sympy.Piecewise) and isinstance(formula, sympy.Piecewise):
        (first, *rest), (value, *others) = cases(slope), cases(formula)
        if first[1] != value[1] or any(case[0] != 0 for case in (*rest, *others)):
            return None
        slope, formula = first[0], value[0]
    share = sympy.factor_terms(slope) / sympy.factor_terms(formula)
    return share if share.is_number else None


def _split(expr: Any, over: set[str]) -> tuple[sympy.Expr, sympy.Expr]:
    """(outer, inner) with outer * inner = expr: the factors without the axes `over`, and the others."""
    if isinstance(expr, sympy.Piecewise):
        (value, condition), *others = cases(expr)
        if any(other != 0 for other, _ in others):
            return ONE, expr
        outer, inner = _split(value, over)
        return outer, sympy.Piecewise((inner, condition), *others)
    factors = sympy.Mul.make_args(expr)
    inner = [factor for factor in factors if over & _axes_in(factor)]
    return (expr / sympy.Mul(*inner), sympy.Mul(*inner)) if inner else (ONE, expr)


def _axes_in(expr: sympy.Expr) -> set[str]:
    return {name for name, symbol in AXES.items() if symbol in expr.free_symbols}


def _renamed(expr: Any, read: tuple[str, ...], own: tuple[str, ...]) -> Any:
    """What is over the axes `read`, over `own` in their place."""
    return expr.xreplace({AXES[a]: AXES[b] for a, b in zip(read, own, strict=True) if a != b})


def _scaled(expr: sympy.Expr) -> tuple[sympy.Expr, sympy.Indexed]:
    """A constant times an entry, apart."""
    (of,) = expr.atoms(sympy.Indexed)
    return expr / of, of


def _over(value: sympy.Expr, scale: sympy.Expr) -> sympy.Expr:
    return value if scale == 1 else sympy.Add(*(term / scale for term in sympy.Add.make_args(value)))


def _common(values: list[sympy.Expr]) -> sympy.Expr:
    """The irrational constant that every term of the values has as a factor, or 1."""
    found = set()
    for value in values:
        for term in sympy.Add.make_args(value):
            factors = sympy.Mul.make_args(term)
            found.add(sympy.Mul(*(factor for factor in factors if factor.is_number and not factor.is_rational)))
    return found.pop() if len(found) == 1 else ONE
