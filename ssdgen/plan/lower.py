"""Lower graph values to tile statements, on demand.  spec.Graph -> [plan.Stmt]

An axis is cut into pieces; a value is made once per combination of the pieces of its axes. Asking for a value makes
what it reads first, each at the outermost level (kernel, loop) where its own inputs stand, so nothing is computed twice
and nothing inside a loop that need not be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from ..spec.decompose import CAUSAL
from ..spec.dims import COL, ROW, axes_of, entry, name_of
from ..spec.graph import Contract, Cumsum, Graph, Input, Largest, Last, Map, Node, Shift, Sum
from .bodies import after_loads, merge
from .ir import Cumsum as CumsumStmt
from .ir import Dot, Full, Index, Let, Load, Note, Rest, Span, Stmt, Store, Value, When
from .ir import Largest as LargestStmt
from .ir import Sum as SumStmt
from .pieces import Piece, Pieces, Source


@dataclass
class Lowering:
    """Makes statements for values of `graph`.

    scopes: statement lists, outermost first; rename: variable of a graph value, where it is not its own name;
    notes: comment before the statements of a value;
    two_terms: operands whose rounding to the operands' dtype is made good by a second product;
    zero_past_end: values that must be zero at positions past the end;
    constant_level: where a value that is one number is made;
    spread: values that only repeat another along an axis: that one is read in their place;
    beside: pieces of an axis that only shifted reads reach, beside those that tile it;
    add_first: of a sum over equal pieces, these are added up entry by entry, and then summed once;
    kept: values whose option leaves what they are without it as it is, because that is read too.
    """

    graph: Graph
    pieces: dict[str, tuple[Piece, ...]]
    sources: dict[str, Source]
    rename: dict[str, str] = field(default_factory=dict)
    zero_past_end: frozenset[str] = frozenset()
    two_terms: frozenset[str] = frozenset()
    value_axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    constant_level: int = 1
    kept: frozenset[str] = frozenset()
    spread: frozenset[str] = frozenset()
    beside: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    add_first: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    scopes: list[list[Stmt]] = field(default_factory=lambda: [[], []])
    rests: list[Value] = field(default_factory=list)
    made: dict[tuple[str, tuple[str, ...]], tuple[Value, int]] = field(default_factory=dict)

    # ---- names and pieces

    def node_axes(self, name: str) -> tuple[str, ...]:
        return self.value_axes.get(name, self.graph[name].axes)

    def variable(self, name: str, pieces: Pieces) -> str:
        """Variable of a value: its name and, where an axis is cut, the suffix of its piece."""
        axes = self.node_axes(name)
        several = [axis for axis in axes if len(self.pieces[axis]) > 1 or axis in self.beside]
        suffix = "".join(pieces[axis].suffix for axis in several)
        return self.rename.get(name, name) + suffix + (pieces["j"].alias if "j" in axes else "")

    def combinations(self, axes: tuple[str, ...]) -> list[Pieces]:
        """Every choice of one piece per axis, first axis slowest."""
        found: list[Pieces] = [{}]
        for axis in axes:
            found = [{**chosen, axis: piece} for chosen in found for piece in self.pieces[axis]]
        return found

    def _key(self, name: str, pieces: Pieces) -> tuple[str, tuple[str, ...]]:
        return name, tuple(_identity(pieces[axis]) for axis in self.node_axes(name))

    def bind(self, name: str, pieces: Pieces, value: Value, level: int) -> None:
        """Declare that a value of the graph stands in a variable already."""
        self.made[self._key(name, pieces)] = (value, level)

    def emit(self, level: int, stmt: Stmt, flag: str | None = None) -> None:
        self.scopes[level].append(When(flag, (stmt,)) if flag else stmt)

    @contextmanager
    def under(self, flag: str) -> Iterator[None]:
        """Statements made meanwhile stand only if the flag is set; nothing else may read what they make."""
        outer, known = self.scopes, dict(self.made)
        self.scopes = [[] for _ in outer]
        yield
        for scope, inner in zip(outer, self.scopes, strict=True):
            scope += [When(flag, (stmt,)) for stmt in inner]
        self.scopes, self.made = outer, known

    # ---- values

    def need(self, name: str, pieces: Pieces) -> tuple[Value, int] | None:
        """The variable of a value and its level; None where the value is zero everywhere (above the diagonal)."""
        key = self._key(name, pieces)
        if key not in self.made:
            if name in self.sources:
                self.made[key] = self._load(name, pieces)
            else:
                made = self._compute(self.graph[name], pieces)
                if made is None:
                    return None
                self.made[key] = made
        return self.made[key]

    def read(self, term: sympy.Indexed, pieces: Pieces) -> tuple[Value, int] | None:
        """The variable for an entry read at the reader's axes, e.g. dt[h, i] of a value over (h, j)."""
        name, read_axes = name_of(term), axes_of(term)
        declared = self.graph[name].axes
        made = self.need(name, {own: pieces[axis] for own, axis in zip(declared, read_axes, strict=True)})
        if made is None:
            return None
        to_read = dict(zip(declared, read_axes, strict=True))
        value, level = made
        return replace(value, axes=tuple(to_read[axis] for axis in value.axes)), level

    def _load(self, name: str, pieces: Pieces) -> tuple[Value, int]:
        source = self.sources[name]
        value = Value(
            self.variable(name, pieces), self._tile_axes(source.axes or self.node_axes(name), pieces), source.dtype
        )
        level = source.level if isinstance(source.level, int) else source.level(pieces)
        load = Load(value, source.tensor, source.index(pieces), source.descriptor, source.near)
        self.emit(level, load, source.flag)
        return value, level

    def _tile_axes(self, axes: tuple[str, ...], pieces: Pieces) -> tuple[str, ...]:
        """Axes along which a value is a tile; along the others a piece is one scalar index."""
        return tuple(axis for axis in axes if pieces[axis].span is not None)

    def _compute(self, node: Node, pieces: Pieces) -> tuple[Value, int] | None:
        before = [len(scope) for scope in self.scopes]
        made = self._statements(node, pieces)
        if made is not None and node.name in self.notes:
            scope = self.scopes[made[1]]
            scope.insert(after_loads(scope, before[made[1]]), Note(self.notes.pop(node.name)))
        return made

    def _statements(self, node: Node, pieces: Pieces) -> tuple[Value, int] | None:
        out = Value(self.variable(node.name, pieces), self._tile_axes(self.node_axes(node.name), pieces))
        if isinstance(node, Contract):
            return self.contract(node, pieces, out, acc=False)
        if isinstance(node, (Sum, Largest)):
            return self._sum(node, pieces, out)
        if isinstance(node, Cumsum):
            of, level = self._exactly(node.of, pieces)
            self.emit(level, CumsumStmt(out, of, node.along, node.reverse))
            return out, level
        if isinstance(node, Last):
            return self._last(node, pieces, out)
        if isinstance(node, Shift):
            return self.read(node.of, {**pieces, node.along: self._moved(node, pieces[node.along])})
        if isinstance(node, Map):
            return self._map(node, pieces, out)
        raise ValueError(f"{self.graph.name}: {node.name} is an input without a source; give it one")

    def _moved(self, node: Shift, piece: Piece) -> Piece:
        """The piece that stands so many positions before: no statement, the value there is read."""
        for other in (*self.pieces[node.along], *self.beside.get(node.along, ())):
            if other.order == piece.order - node.by:
                return other
        raise ValueError(f"{node.name} reads {node.of} at order {piece.order - node.by}, where no piece is; cut one")

    def _exactly(self, term: sympy.Indexed, pieces: Pieces) -> tuple[Value, int]:
        made = self.read(term, {**{axis: self.pieces[axis][0] for axis in axes_of(term)}, **pieces})
        if made is None:
            raise ValueError(f"{term} is zero everywhere, so nothing can be summed along it")
        return made

    def _last(self, node: Last, pieces: Pieces, out: Value) -> tuple[Value, int]:
        """The last entry of a running sum is the sum itself: no selection of one row."""
        summed = self.graph[name_of(node.of)]
        if not isinstance(summed, Cumsum):
            raise ValueError(f"{node.name}: only the last entry of a running sum can be lowered, not of {summed.name}")
        of, level = self._exactly(summed.of, pieces)
        self.emit(level, SumStmt(out, of, node.along))
        return out, level

    def _sum(self, node: Sum | Largest, pieces: Pieces, out: Value) -> tuple[Value, int] | None:
        """A sum within each piece of the summed axes, one axis after the other; pieces are added up.

        The largest magnitude is found the same way.
        """
        reduced, joined = (LargestStmt, sympy.Max) if isinstance(node, Largest) else (SumStmt, sympy.Add)
        if any(piece.span is None for axis in node.over for piece in self.pieces[axis]):
            raise ValueError(f"{node.name} is a sum over {', '.join(node.over)}; a loop must add it up")
        found: int | None = None
        if self.add_first and isinstance(node, Sum) and len(self.combinations(node.over)) > 1:
            return self._sum_added(node, pieces, out)
        for inner in self.combinations(node.over):
            made = self.read(node.of, {**pieces, **inner})
            if made is None:
                continue
            of, level = made
            target = out if found is None else replace(out, name=f"{out.name}_more")
            for axis in reversed(node.over):
                summed = replace(target, axes=tuple(kept for kept in of.axes if kept != axis))
                self.emit(level, reduced(summed, of, axis))
                of = summed
            if found is not None:
                terms = [entry(v.name, *v.axes) if v.axes else sympy.Symbol(v.name, real=True) for v in (out, target)]
                self.emit(max(level, found), Let(out, joined(*terms), (out, target)))
            found = level if found is None else max(level, found)
        return None if found is None else (out, found)

    def _sum_added(self, node: Sum, pieces: Pieces, out: Value) -> tuple[Value, int]:
        """Of equal pieces: one sum across threads, of what each thread has added up."""
        (axis,) = node.over
        made = [self._exactly(node.of, {**pieces, **inner}) for inner in self.combinations(node.over)]
        level, first = max(at for _, at in made), made[0][0]
        added = Value(f"{out.name}_of", first.axes)
        terms = [entry(value.name, *value.axes) for value, _ in made]
        self.emit(level, Let(added, sympy.Add(*terms), tuple(value for value, _ in made)))
        self.emit(level, SumStmt(out, added, axis))
        return out, level

    def contract(self, node: Contract, pieces: Pieces, out: Value, acc: bool) -> tuple[Value, int] | None:
        """One dot per piece of the summed axis; those that are zero everywhere are left out."""
        level = -1
        for piece in self.pieces[node.over]:
            inner = {**pieces, node.over: piece}
            left, right = self.read(node.left, inner), self.read(node.right, inner)
            if left is None or right is None:
                continue
            level = max(level, left[1], right[1])
            pairs = [(left[0], right[0])]
            if name_of(node.left) in self.two_terms:
                pairs.append((self._rest(left[0], level), right[0]))
            if name_of(node.right) in self.two_terms:
                pairs.append((left[0], self._rest(right[0], level)))
            for one, other in pairs:
                self.emit(level, Dot(out, one, other, node.over, acc))
                acc = True
        return (out, level) if level >= 0 else None

    def _map(self, node: Map, pieces: Pieces, out: Value) -> tuple[Value, int] | None:
        if node.option is None:
            return self._let(node.name, node.formula, pieces, out)
        assert isinstance(node.otherwise, sympy.Indexed)
        made = self.read(node.otherwise, pieces)
        if made is None:
            return None
        # the value is updated in place, so that the code reads: y = ...; if HAS_D: y = y + ...
        current, level = made
        updated = Value(current.name, out.axes if len(out.axes) == len(current.axes) else current.axes)
        formula, reads, at = self.formula(node.formula, pieces, level)
        if node.name not in self.kept and at != level and current.name in self.carried_over(level):
            raise ValueError(
                f"{node.name} would update {current.name}, made outside the loop, inside it; make it there"
            )
        if node.name in self.kept:
            updated = Value(out.name, updated.axes, "float32" if current.dtype == "float32" else "stored")
            alias = entry(current.name, *current.axes) if current.axes else sympy.Symbol(current.name, real=True)
            self.emit(at, Let(updated, alias, (current,)))
        self.emit(at, Let(replace(updated, dtype="float32"), formula, reads), node.option)
        return updated, at

    def carried_over(self, level: int) -> set[str]:
        """Variables made at an outer level, which an update inside a loop would change for every later trip."""
        return {value.name for value, at in self.made.values() if at == level and level < self.constant_level}

    def _let(self, name: str, formula: sympy.Expr, pieces: Pieces, out: Value) -> tuple[Value, int] | None:
        formula = self._position_known(formula, pieces)
        if formula == 0:
            return None
        if name in self.spread:
            assert isinstance(formula, sympy.Indexed), f"{name} is more than another value, repeated"
            return self.read(formula, pieces)
        if formula.is_number:
            level = self.constant_level
            if out.axes:
                self.emit(level, Full(out, tuple(_span(pieces[axis]).size for axis in out.axes), float(formula)))
            else:
                self.emit(level, Let(out, formula))
            return out, level
        contraction = self._accumulates(formula, name, pieces)
        if contraction is not None:
            node = self.graph[name_of(contraction)]
            assert isinstance(node, Contract)
            # the operands before the accumulator: a tile of scores and its accumulator are then never live together
            for piece in self.pieces[node.over]:
                left = self.read(node.left, {**pieces, node.over: piece})
                if left is not None and name_of(node.left) in self.two_terms:
                    self._rest(*left)
            formula_rest, reads, level = self.formula(formula - contraction, pieces, 0)
            self.emit(level, Let(out, formula_rest, reads))
            made = self.contract(node, pieces, out, acc=True)
            return out, max(level, made[1] if made else level)
        if name in self.zero_past_end:
            axis = next(axis for axis in ("i", "j", "d", "t") if axis in self.node_axes(name))
            mask = _span(pieces[axis]).mask
            if mask is not None:
                formula = sympy.Piecewise((formula, sympy.Ne(entry(mask, axis), 0)), (0, True))
        formula_read, reads, level = self.formula(formula, pieces, 1 if name in self.zero_past_end else 0)
        self.emit(level, Let(out, formula_read, reads))
        return out, level

    def _position_known(self, formula: sympy.Expr, pieces: Pieces) -> sympy.Expr:
        """Decide i >= j, or i > j, where the pieces differ: below the diagonal always, above it never."""
        if ROW not in formula.free_symbols or "i" not in pieces or "j" not in pieces:
            return formula
        row, col = pieces["i"], pieces["j"]
        condition = _causal(formula)
        if condition is None or row.order == col.order:
            return formula
        decided: Any = formula.subs(condition, sympy.true if row.order > col.order else sympy.false)
        return decided

    def _accumulates(self, formula: sympy.Expr, name: str, pieces: Pieces) -> sympy.Indexed | None:
        """The contraction that a sum can start from: a bare term of the sum, over the same axes."""
        for term in formula.args if formula.is_Add else ():
            if isinstance(term, sympy.Indexed) and isinstance(self.graph[name_of(term)], Contract):
                at_hand = name_of(term) in self.sources or self._key(name_of(term), pieces) in self.made
                if axes_of(term) == self.graph[name].axes and not at_hand:
                    return term
        return None

    def _rest(self, value: Value, level: int) -> Value:
        """The second term of an operand."""
        rest = replace(value, name=f"{value.name}_rest")
        if rest not in self.rests:
            self.rests.append(rest)
            self.emit(level, Rest(rest, value))
        return rest

    def formula(self, formula: sympy.Expr, pieces: Pieces, level: int) -> tuple[sympy.Expr, tuple[Value, ...], int]:
        """The formula over variables, what it reads, and the level where all of that stands."""
        known: dict[sympy.Basic, sympy.Basic] = {}
        reads: dict[str, Value] = {}
        for term in sorted(formula.atoms(sympy.Indexed), key=str):
            if name_of(term) not in self.graph:  # a mask or another variable of the kernel
                continue
            made = self.read(term, pieces)
            if made is None:
                known[term] = sympy.Integer(0)
                continue
            value, at = made
            level = max(level, at)
            symbol = entry(value.name, *value.axes) if value.axes else sympy.Symbol(value.name, real=True)
            known[term] = symbol
            reads[f"{value.name}{value.axes}"] = value
        scalars = formula.xreplace(dict.fromkeys(formula.atoms(sympy.Indexed), sympy.Integer(1))).free_symbols
        for symbol in sorted(scalars, key=str):
            computed = str(symbol) in self.graph and not isinstance(self.graph[str(symbol)], Input)
            if str(symbol) in self.sources or computed:
                value, at = self.need(str(symbol), {}) or (None, 0)
                assert value is not None
                level = max(level, at)
        condition = _causal(formula)
        for axis, symbol in (("i", ROW), ("j", COL)):
            if condition is not None:
                known[symbol] = entry(pieces[axis].position, axis)
        # conditions first: replacing i inside x[i] would change what is read
        held = formula if condition is None else formula.subs(condition, sympy.Symbol("CAUSAL") > 0)
        replaced: Any = held.xreplace({term: to for term, to in known.items() if isinstance(term, sympy.Indexed)})
        if condition is not None:
            replaced = replaced.subs(sympy.Symbol("CAUSAL") > 0, condition.func(known[ROW], known[COL]))
        return replaced, tuple(reads.values()), level

    # ---- leaving

    def store(
        self,
        level: int,
        name: str,
        pieces: Pieces,
        tensor: str,
        index: tuple[Index, ...],
        descriptor: bool = False,
        flag: str | None = None,
    ) -> None:
        made = self.need(name, pieces)
        assert made is not None
        self.emit(level, Store(tensor, index, made[0], descriptor), flag)


def _causal(formula: sympy.Expr) -> Any:
    """The condition on row and column in a formula, or None."""
    return next((condition for condition in CAUSAL if formula.has(condition)), None)


def _span(piece: Piece) -> Span:
    assert piece.span is not None
    return piece.span


def _identity(piece: Piece) -> str:
    return f"{piece.scalar}|{piece.span.offsets + piece.span.origin if piece.span else ''}|{piece.order}"


__all__ = ["Lowering", "Piece", "Pieces", "Source", "merge"]
