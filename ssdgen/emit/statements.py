"""Statements of a plan as source lines; the idioms stand in templates/macros/statements.jinja.  plan.Stmt -> text"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile

import sympy

from ..plan import ir
from .environment import macros
from .formula import FormulaPrinter, broadcast
from .layout import WIDTH, fit

SCALAR_CALLS = ("program_id", "cdiv", "minimum", "maximum")


def scalar(expr: str, language: str = "tl") -> str:
    """An integer expression of the plan in Triton's names, or in Gluon's."""
    for call in SCALAR_CALLS:
        expr = re.sub(rf"\b{call}\(", f"{language}.{call}(", expr)
    return expr


def _names(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", text))


def _product(index: str, stride: str) -> str:
    """index * stride, from the left, so that a 64-bit index keeps the product in 64 bits."""
    if stride == "1":
        return index
    return f"({index}) * {stride}" if " " in _outside_brackets(index) else f"{index} * {stride}"


def _outside_brackets(text: str) -> str:
    kept, depth = "", 0
    for char in text:
        depth += char in "([{"
        kept += char if depth == 0 else ""
        depth -= char in ")]}"
    return kept


def descriptor_order(index: tuple[ir.Index, ...]) -> list[int]:
    """Dimensions as a descriptor has them: those of extent 1 in a block first, so that the block loads as a matrix.

    With them in the middle the compiler reshapes in registers: no matrix unit then reads the tile from shared memory.
    """
    return sorted(range(len(index)), key=lambda axis: isinstance(index[axis], ir.Span))


def block_sizes(index: tuple[ir.Index, ...]) -> list[str]:
    """Block of a descriptor, in its order of the dimensions."""
    ordered = (index[axis] for axis in descriptor_order(index))
    return [at.size if isinstance(at, ir.Span) else "1" for at in ordered]


def _outside_loops(body: tuple[ir.Stmt, ...]) -> Iterator[ir.Stmt]:
    """Every statement of a body but those of the loops in it."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, ir.When):
            yield from _outside_loops(stmt.body)
            yield from _outside_loops(stmt.otherwise)


class StatementPrinter:
    """Prints the statements of one kernel."""

    language = "tl"

    def __init__(self, kernel: ir.Kernel):
        self.kernel = kernel
        self.idiom = macros("macros/statements.jinja")
        self.bases: dict[str, str] = {}
        self._inner: set[str] = set()
        loaded = (s.out for s in ir.walk(kernel.body) if isinstance(s, ir.Load))
        halves = (half for s in ir.walk(kernel.body) if isinstance(s, ir.Split) for half in (s.first, s.second))
        self.operands = {value.name for value in (*loaded, *halves) if value.dtype == "operand"}
        self.masks = frozenset(s.name for s in ir.walk(kernel.body) if isinstance(s, ir.Mask))

    def scalar(self, expr: str) -> str:
        return scalar(expr, self.language)

    def lines(self, body: tuple[ir.Stmt, ...], indent: int) -> list[str]:
        found: list[str] = []
        for stmt in body:
            found += self._block(stmt, indent)
        return found

    def _block(self, stmt: ir.Stmt, indent: int) -> list[str]:
        pad = " " * indent
        if isinstance(stmt, ir.When):
            body, otherwise = (self.lines(part, indent + 4) for part in (stmt.body, stmt.otherwise))
            if not body:
                # where warps are specialised, a tile that it loads may be there already
                return [f"{pad}if not ({stmt.condition}):", *otherwise] if otherwise else []
            return [f"{pad}if {stmt.condition}:", *body, *([f"{pad}else:", *otherwise] if otherwise else [])]
        if isinstance(stmt, ir.For):
            # of the loop that this one stands in, which goes on after it
            outer = dict(self.bases), self._inner
            before = self._hoist(stmt, indent)
            trips = self.scalar(stmt.trips)
            lines = [*before, f"{pad}for {stmt.var} in range({trips}):", *self.lines(stmt.body, indent + 4)]
            self.bases, self._inner = outer
            return lines
        if isinstance(stmt, ir.Note):
            return [f"{pad}# {stmt.text}"]
        if isinstance(stmt, (ir.Load, ir.Store)) and not stmt.descriptor:
            return self._based(stmt, indent)
        return self._fitted(stmt, indent)

    def _fitted(self, stmt: ir.Stmt, indent: int) -> list[str]:
        """A statement as lines; what follows a load that does not fit on its line is a statement of its own."""
        text = self._statement(stmt)
        code, _, _ = text.partition("  # ")
        if isinstance(stmt, ir.Load) and indent + len(code) > WIDTH and code.count(")."):
            first, then = code.rsplit(").", 1)
            return [*fit(f"{first})", indent), *fit(f"{stmt.out.name} = {stmt.out.name}.{then}", indent)]
        return fit(text, indent)

    def _based(self, stmt: ir.Load | ir.Store, indent: int) -> list[str]:
        """A load or store, its pointer in a statement of its own where the line would be too long."""
        tensor = self.kernel.tensor(stmt.tensor)
        value = stmt.out if isinstance(stmt, ir.Load) else stmt.value
        text = self._static(tensor, stmt.index, self._inner)
        pointer = self._pointer(tensor, stmt.index, value.axes)
        if len(pointer) + indent < WIDTH - 20 or text in self.bases or " + " not in text:
            return self._fitted(stmt, indent)
        # a store's by its tensor: in a loop or a branch a variable keeps its type, which is the tensor's
        name = f"{stmt.tensor if isinstance(stmt, ir.Store) else value.name}_base"
        kept, self.bases = self.bases, {**self.bases, text: name}
        lines = [*fit(f"{name} = {text}", indent), *self._fitted(stmt, indent)]
        self.bases = kept
        return lines

    def _hoist(self, loop: ir.For, indent: int) -> list[str]:
        """Pointers to what a loop reads, as far as they do not change from trip to trip."""
        own = tuple(_outside_loops(loop.body))
        inner = self._inner | {loop.var} | {s.name for s in own if isinstance(s, (ir.Scalar, ir.Arange, ir.Mask))}
        found: dict[str, tuple[str, str]] = {}
        for stmt in own:
            if isinstance(stmt, (ir.Load, ir.Store)) and not (
                stmt.descriptor or isinstance(stmt, ir.Load) and stmt.near
            ):
                tensor = self.kernel.tensor(stmt.tensor)
                text = self._static(tensor, stmt.index, inner)
                if tensor.flag is None and " + " in text:
                    name = stmt.out.name if isinstance(stmt, ir.Load) else stmt.value.name
                    found.setdefault(text, (tensor.name, name))
        made: dict[str, str] = {}
        for text, (tensor_name, value) in found.items():
            alone = sum(1 for other, _ in found.values() if other == tensor_name) == 1
            if text not in self.bases:
                made[text] = self.bases[text] = f"{tensor_name if alone else value}_base"
        self._inner = inner
        return [line for text, name in made.items() for line in fit(f"{name} = {text}", indent)]

    def _static(self, tensor: ir.Tensor, index: tuple[ir.Index, ...], inner: set[str]) -> str:
        terms = [f"{tensor.name}_ptr"]
        fixed = [
            (axis, origin)
            for axis, at in enumerate(index)
            if (origin := at.origin if isinstance(at, ir.Span) else at) != "0" and not (_names(origin) & inner)
        ]
        whole = (axis == place and not isinstance(index[axis], ir.Span) for place, (axis, _) in enumerate(fixed))
        lead = [fixed[place][0] for place, _ in enumerate(takewhile(bool, whole))]
        if tensor.strided == "no" and len(lead) > 1:
            # ((b * nsegments + segment) * nheads + head) * ...: the 64-bit index comes first
            nested = fixed[0][1]
            for axis in lead[1:]:
                nested = f"({nested} * {tensor.dims[axis]} + {index[axis]})"
            last = lead[-1] == len(tensor.dims) - 1
            terms.append(self.scalar(nested[1:-1]) if last else _product(self.scalar(nested), tensor.stride(lead[-1])))
            fixed = fixed[len(lead) :]
        terms += [_product(self.scalar(origin), tensor.stride(axis)) for axis, origin in fixed]
        return " + ".join(terms)

    def _pointer(self, tensor: ir.Tensor, index: tuple[ir.Index, ...], over: tuple[str, ...]) -> str:
        inner = self._inner
        text = self._static(tensor, index, inner)
        terms = [self.bases.get(text, text)]
        for axis, at in enumerate(index):
            origin = at.origin if isinstance(at, ir.Span) else at
            if origin != "0" and _names(origin) & inner:
                terms.append(_product(self.scalar(origin), tensor.stride(axis)))
        for axis, at in enumerate(index):
            if isinstance(at, ir.Span):
                terms.append(_product(self._spread(at.offsets, at.axis, over), tensor.stride(axis)))
        return " + ".join(terms)

    def _mask(self, index: tuple[ir.Index, ...], over: tuple[str, ...]) -> str:
        masks = [(at.mask, at.axis) for at in index if isinstance(at, ir.Span) and at.mask]
        ordered = sorted(masks, key=lambda mask: over.index(mask[1]))
        return " & ".join(self._spread(name, axis, over) for name, axis in ordered)

    def _spread(self, name: str, axis: str, over: tuple[str, ...]) -> str:
        """A vector along one axis as it takes part in an expression over several."""
        return broadcast(name, (axis,), over)

    def _statement(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Scalar(name, expr, wide, narrow):
                return self.idiom.scalar(name, self.scalar(expr), "int64" if wide else "int32" if narrow else "")
            case ir.Arange(name, _, size):
                return self.idiom.arange(name, size)
            case ir.Mask(name, _, offsets, limit, also):
                conditions = [f"{offsets} < {self.scalar(limit)}", *map(self.scalar, also)]
                return f"{name} = {conditions[0] if not also else ' & '.join(f'({each})' for each in conditions)}"
            case ir.Full(out, sizes, value):
                return self.idiom.full(out.name, ", ".join(sizes), value)
            case ir.Let(out, formula, reads):
                if out.dtype == "stored" and isinstance(formula, sympy.Indexed):
                    return f"{out.name} = {reads[0].name}"
                kept = frozenset(read.name for read in reads if read.dtype == "stored")
                operands = kept | frozenset(read.name for read in reads if read.name in self.operands)
                sigmoid = "sigmoid" if self.kernel.gates else None
                printer = FormulaPrinter(out.axes, operands, self.masks, sigmoid, self.kernel.turns)
                return f"{out.name} = {printer.print(formula)}"
            case ir.Dot(out, left, right, over, acc):
                return self._dot(out, left, right, over, acc)
            case ir.Rest(out, of):
                return self.idiom.rest(out.name, of.name)
            case ir.Cumsum(out, of, along, reverse):
                way = ", reverse=True" if reverse else ""
                return f"{out.name} = tl.cumsum({of.name}, axis={of.axes.index(along)}{way})"
            case ir.Sum(out, of, along):
                return f"{out.name} = tl.sum({of.name}, axis={of.axes.index(along)})"
            case ir.Largest(out, of, along):
                return f"{out.name} = tl.reduce(tl.abs({of.name}), {of.axes.index(along)}, maximum)"
            case ir.Widen(out, of):
                return f"{out.name} = widen({of.name}, FORMAT)"
            case ir.Narrow(out, of, row, column, token):
                return f"{out.name} = narrow({of.name}, {row}, {column}, {token}, seed, FORMAT, RANDOM)"
            case ir.InWords(out, of):
                return f"{out.name} = in_words({of.name})"
            case ir.FromWords(out, of, tensor):
                return f"{out.name} = from_words({of.name}, {tensor}_ptr.dtype.element_ty)"
            case ir.Split(first, second, of, sizes):
                return self.idiom.split(first.name, second.name, of.name, ", ".join(sizes))
            case ir.Join(out, first, second, sizes):
                return self.idiom.join(out.name, first.name, second.name, ", ".join(sizes))
            case ir.Leave():
                return "return"
            case ir.Wait():
                return "tl.extra.cuda.gdc_wait()"
            case ir.Release():
                return "tl.extra.cuda.gdc_launch_dependents()"
            case ir.Begun():
                return "tl.debug_barrier()"
            case ir.Load(out, tensor, index, descriptor):
                return self._load(out, self.kernel.tensor(tensor), index, descriptor)
            case ir.Store(tensor, index, value, descriptor):
                return self._store(self.kernel.tensor(tensor), index, value, descriptor)
        raise TypeError(f"no idiom for the statement {type(stmt).__name__}")

    def _load(self, out: ir.Value, tensor: ir.Tensor, index: tuple[ir.Index, ...], descriptor: bool) -> str:
        shape = ", ".join(at.size for axis in out.axes for at in index if isinstance(at, ir.Span) and at.axis == axis)
        if descriptor:
            return self.idiom.load_descriptor(out.name, tensor.name, self._corner(index), shape)
        casts = {"any": "float32", "state": "float32", "index": "int64"}
        cast = f"{self.language}.{casts[tensor.dtype]}" if tensor.dtype in casts and out.dtype != "stored" else ""
        zero = "0" if tensor.dtype in ("int", "stored") else "0.0"
        return self.idiom.load(
            out.name, self._pointer(tensor, index, out.axes), self._mask(index, out.axes), zero, cast, shape
        )

    def _store(self, tensor: ir.Tensor, index: tuple[ir.Index, ...], value: ir.Value, descriptor: bool) -> str:
        if descriptor:
            sizes = ", ".join(block_sizes(index))
            spans = tuple(at.axis for at in index if isinstance(at, ir.Span))
            name = value.name if value.axes == spans else f"tl.trans({value.name})"
            return self.idiom.store_descriptor(tensor.name, self._corner(index), name, sizes)
        return self.idiom.store(self._pointer(tensor, index, value.axes), value.name, self._mask(index, value.axes))

    def _corner(self, index: tuple[ir.Index, ...]) -> str:
        """Where a descriptor's block starts; coordinates are 32-bit."""
        ordered = [index[axis] for axis in descriptor_order(index)]
        origins = [at.origin if isinstance(at, ir.Span) else at for at in ordered]
        return ", ".join(
            o if o in ("0", "p0") or o.isupper() else f"{self.language}.cast({self.scalar(o)}, {self.language}.int32)"
            for o in origins
        )

    def _dot(self, out: ir.Value, left: ir.Value, right: ir.Value, over: str, acc: bool) -> str:
        rows, cols = (left, right) if out.axes[0] in left.axes else (right, left)

        def operand(value: ir.Value, last: str) -> str:
            name = f"tl.trans({value.name})" if value.axes[-1] != last else value.name
            return name if value.name in self.operands else f"{name}.to(DOT)"

        return self.idiom.dot(out.name, operand(rows, over), operand(cols, out.axes[1]), acc)
