"""What a consumer's tiles are made of: extents of every value, and the layouts its vectors are needed in.  -> warps

Every matrix in registers lies as the warpgroup's matrix unit leaves it, in a layout that only its number of columns
chooses.  So a vector has as many layouts as it has uses: along the rows of such a matrix or along its columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import sympy

from ..plan import ir
from ..spec.dims import axes_of, name_of


@dataclass(frozen=True)
class Along:
    """Layout of a vector: along the rows or the columns of matrices with `columns` columns."""

    axis: str
    columns: str

    @property
    def text(self) -> str:
        return f"gl.SliceLayout({1 if self.axis == 'rows' else 0}, {layout(self.columns)})"


# behind the number of columns: of a layout in which a thread has neighbours in a row
IN_VECTORS = "_IN_VECTORS"


def layout(columns: str) -> str:
    """Name of the layout of matrices with so many columns."""
    return f"BY_{columns}"


def definition(columns: str) -> str:
    """What the layout of that name is."""
    if columns.endswith(IN_VECTORS):
        return f"in_vectors({columns.removesuffix(IN_VECTORS)})"
    return f"gl.NVMMADistributedLayout([3, 0], [4, 1], [16, {columns}, 16])"


@dataclass
class Tiles:
    """extents: of each value, as scalars; uses: the layouts that a vector is needed in; summed: what sums have made."""

    extents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    summed: set[str] = field(default_factory=set)
    uses: dict[str, dict[Along, None]] = field(default_factory=dict)

    @classmethod
    def of(cls, kernel: ir.Kernel) -> Tiles:
        found = cls()
        for stmt in ir.walk(kernel.body):
            found._measure(stmt)
        # from the last statement to the first: a vector is needed where what is made of it is needed
        for stmt in reversed(tuple(ir.walk(kernel.body))):
            found._require(stmt)
        return found

    def columns(self, value: ir.Value) -> str:
        return self.extents[value.name][-1]

    def place(self, value: ir.Value, axis: str, vectors: bool = False) -> Along:
        """How a vector along `axis` lies in a matrix, or in one that is stored in vectors."""
        columns = self.columns(value) + IN_VECTORS * vectors
        return Along("rows" if value.axes.index(axis) == 0 else "cols", columns)

    def variants(self, name: str) -> tuple[Along, ...]:
        return tuple(self.uses.get(name, ()))

    def variant(self, name: str, along: Along) -> str:
        """Variable of a vector in a layout: its name, with what tells the layouts apart."""
        found = self.variants(name)
        if len(found) < 2:
            return name
        alone = sum(other.axis == along.axis for other in found) == 1
        return f"{name}_{along.axis}" if alone else f"{name}_{along.axis}_{along.columns.lower()}"

    # ---- extents, forwards

    def _measure(self, stmt: ir.Stmt) -> None:
        match stmt:
            case ir.Load(out, _, index):
                spans = {at.axis: at.size for at in index if isinstance(at, ir.Span)}
                self.extents[out.name] = tuple(spans[axis] for axis in out.axes)
            case ir.Full(out, sizes):
                self.extents[out.name] = sizes
            case ir.Aside(values, sizes):
                self.extents |= {value.name: extent for value, extent in zip(values, sizes, strict=True)}
            case ir.Arange(name, _, size):
                self.extents[name] = (size,)
            case ir.Mask(name, _, offsets):
                self.extents[name] = self.extents[offsets]
            case ir.Let(out, formula):
                self.extents[out.name] = self._along(out, entries(formula))
                for read in entries(formula) if len(out.axes) == 1 else ():
                    if read.name in self.summed:
                        # what is made of sums alone lies as they do
                        self.summed.add(out.name)
                        self.uses[out.name] = dict(self.uses[read.name])
            case ir.Dot(out, left, right):
                self.extents[out.name] = self._along(out, (left, right))
            case ir.Rest(out, of) | ir.Cumsum(out, of):
                self.extents[out.name] = self.extents[of.name]
            case ir.Sum(out, of):
                self.extents[out.name] = self._along(out, (of,))
                if len(of.axes) == 2:
                    # it lies where the sum leaves it
                    self.summed.add(out.name)
                    self._need(out.name, self.place(of, out.axes[0]))

    def _along(self, out: ir.Value, reads: Iterable[ir.Value]) -> tuple[str, ...]:
        known: dict[str, str] = {}
        for value in reads:
            known |= dict(zip(value.axes, self.extents[value.name], strict=True))
        return tuple(known[axis] for axis in out.axes)

    # ---- layouts, backwards

    def _need(self, name: str, along: Along) -> None:
        self.uses.setdefault(name, {})[along] = None

    def _require(self, stmt: ir.Stmt) -> None:
        match stmt:
            case ir.Let(out, formula):
                for read in entries(formula):
                    self._read(read, out)
            case ir.Load(out, _, index, False):
                self._spans(index, out)
            case ir.Store(_, index, value, False, vectors):
                self._spans(index, value, vectors)
            case ir.Mask(name, _, offsets):
                for along in self.variants(name):
                    self._need(offsets, along)

    def _read(self, read: ir.Value, out: ir.Value, vectors: bool = False) -> None:
        if len(read.axes) != 1:
            return
        if len(out.axes) == 2:
            self._need(read.name, self.place(out, read.axes[0], vectors))
        for along in self.variants(out.name) if len(out.axes) == 1 else ():
            self._need(read.name, along)

    def _spans(self, index: tuple[ir.Index, ...], value: ir.Value, vectors: bool = False) -> None:
        for at in index:
            if isinstance(at, ir.Span):
                for name in (at.offsets, at.mask) if at.mask else (at.offsets,):
                    self._read(ir.Value(name, (at.axis,)), value, vectors)


def entries(formula: sympy.Expr) -> tuple[ir.Value, ...]:
    """The tiles that a formula reads, with the axes it reads them over."""
    terms = sorted(formula.atoms(sympy.Indexed), key=str)
    return tuple(ir.Value(name_of(term), axes_of(term)) for term in terms)
