"""A kernel specialised by warps as Gluon source: what one consumer does.  plan.Stmt -> text

Products are asynchronous. One is issued where its statement stands and waited for where its result is first read, so
the order of a plan's statements is what runs at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from ..plan import ir
from ..spec.dims import axes_of, name_of
from .consumer_formula import ConsumerFormula
from .formula import broadcast
from .layout import fit
from .reads import is_plain_load, made_by, moved_value, sides, touched
from .shared import OUTGOING, SharedPrinter, turned_name
from .stages import depends, first_product, products_ahead, stage_loop
from .tiles import IN_VECTORS, Along, layout


@dataclass
class Product:
    """A product under way.

    result: its variable; kept: variables with operands that it reads from registers; tile: what has its columns.
    """

    result: str
    kept: list[str] = field(default_factory=list)
    tile: str = ""


class ConsumerPrinter(SharedPrinter):
    """Prints the statements of one consumer."""

    def __init__(self, kernel: ir.Kernel):
        super().__init__(kernel)
        self.pending: list[Product] = []
        self.along: Along | None = None
        self.columns = ""
        # where products are issued ahead no consumer waits for the other
        self.turns = first_product(kernel) if kernel.consumers == 2 and not kernel.roles else ""
        self.ahead = products_ahead(kernel)

    # ---- structure

    def lines(self, body: tuple[ir.Stmt, ...], indent: int) -> list[str]:
        """Products that follow each other are issued together, once all of their operands are in shared memory."""
        found: list[str] = []
        puts = self._puts(body)
        for at, stmt in enumerate(body):
            if self.spare and self._is_tile_but_for_an_option(stmt):
                found += self._option_of_tile(stmt, indent)
            elif isinstance(stmt, ir.Dot) and stmt in self.ahead:
                self._forget(stmt)
            elif isinstance(stmt, ir.Dot):
                found += [*self._waits(stmt, indent), *self._fence(stmt, indent), *self._turn(stmt, indent)]
                found += self._issue(stmt, indent)
            elif isinstance(stmt, ir.When) and any(isinstance(inner, ir.Dot) for inner in ir.walk((stmt,))):
                found += self._optional_products(stmt, indent)
            else:
                found += self._block(stmt, indent)
            for value in puts.get(at, ()):
                if value.name not in self.tile_axes:
                    found += [
                        *(self._wait_for_the_one_tile(indent) if self.kernel.spare else []),
                        *self._put(value, indent),
                    ]
            if self.spare and isinstance(stmt, (ir.Let, ir.When)):
                found += self._left_at_once(body, at, indent)
        return found

    def _optional_products(self, stmt: ir.When, indent: int) -> list[str]:
        """Products that only an option needs are done where it ends: what is under way after it does not hang on it."""
        waits = self._waits(stmt, indent)
        before, ready = list(self.pending), set(self.in_registers)
        lines = [*waits, *self._block(stmt, indent), *self._wait(len(self.pending), indent + 4)]
        self.pending, self.in_registers = before, ready
        return lines

    def _left_at_once(self, body: tuple[ir.Stmt, ...], at: int, indent: int) -> list[str]:
        """A value that is nothing but the left operand of one later product becomes that as soon as it is made."""
        made = made_by(body[at])
        later = body[at + 1 :]
        for stmt in later:
            if isinstance(stmt, ir.Dot) and (rows := sides(stmt)[0]).name in made and len(rows.axes) == 2:
                others = [
                    s for s in ir.walk(later) if s is not stmt and rows.name in (touched(s) | made_by(s) | _factors(s))
                ]
                turned = rows.axes[-1] != stmt.over
                under_way = any(product.result == rows.name for product in self.pending)
                if others or turned or under_way or rows.name in self.tile_axes:
                    continue
                return self._left(rows, stmt, indent)[0]
        return []

    def _turn(self, stmt: ir.Dot, indent: int) -> list[str]:
        """Two consumers multiply in turns for the first result of a stage, so that one computes while the other does.

        Left alone they run in step, both waiting for the matrix unit and then both keeping it waiting.
        """
        if stmt.out.name != self.turns or self.pending:
            return []
        return [
            f"{' ' * indent}mbarrier.wait(turn.index(consumer), ({stage_loop(self.kernel).var} & 1) ^ (1 - consumer))"
        ]

    def _block(self, stmt: ir.Stmt, indent: int) -> list[str]:
        if isinstance(stmt, ir.For) and any(load in self.moved for load in ir.walk(stmt.body)):
            return self._stages(stmt, indent)
        lines = self._waits(stmt, indent)
        self._forget(stmt)
        if isinstance(stmt, ir.Aside):
            return [*lines, *self._made_aside(stmt, indent)]
        if isinstance(stmt, ir.Load) and stmt.near:
            return lines
        if isinstance(stmt, ir.When) and self.kernel.spare:
            # each statement in it loads what it reads
            return [*lines, *super()._block(stmt, indent)]
        lines += self._arriving(stmt, indent)
        matrix = moved_value(stmt)
        if matrix is not None and len(matrix.axes) == 2 and stmt not in self.moved:
            self.columns = self._use(self.tiles.columns(matrix), self.tiles.columns(matrix))
        if isinstance(stmt, ir.Arange):
            return [*lines, *self._each(stmt.name, indent, lambda along: self._arange(stmt, along))]
        if isinstance(stmt, ir.Mask):
            return [*lines, *self._each(stmt.name, indent, lambda along: self._limit(stmt, along))]
        if isinstance(stmt, ir.Let) and len(stmt.out.axes) == 1:
            return [*lines, *self._each(stmt.out.name, indent, lambda along: self._vector(stmt, along))]
        if isinstance(stmt, ir.Load) and len(stmt.out.axes) == 1:
            return [*lines, *self._vectors(stmt, indent)]
        if isinstance(stmt, ir.Store) and len(stmt.value.axes) == 1:
            return [*lines, *self._store_vector(stmt, indent)]
        if isinstance(stmt, ir.Load) and stmt.descriptor:
            return [*lines, *(self._fixed_tile(stmt, indent) if stmt in self.fixed else [])]
        if isinstance(stmt, ir.Store) and stmt.vectors:
            return [*lines, *self._store_vectors(stmt, indent)]
        if isinstance(stmt, ir.Store) and stmt.descriptor:
            return [*lines, *self._wait_for_the_one_tile(indent), *self._copy_out(stmt, indent)]
        if isinstance(stmt, ir.Let):
            lines += self._registers(stmt, indent)
        if isinstance(stmt, ir.When):
            inner = [let for let in ir.walk((*stmt.body, *stmt.otherwise)) if isinstance(let, ir.Let)]
            lines += [line for let in inner for line in self._registers(let, indent)]
        return [*lines, *super()._block(stmt, indent)]

    def _stages(self, loop: ir.For, indent: int) -> list[str]:
        """The loop over stages: plain loads, the tiles of the stage, the rest; then the stage is given back."""
        pad, inner = " " * indent, " " * (indent + 4)
        before = [*self._wait(len(self.pending), indent), *self._park(loop, indent), *self._hoist(loop, indent)]
        before += self._first_stage(indent)
        loads = [stmt for stmt in loop.body if is_plain_load(stmt)]
        lines = [
            *before,
            f"{pad}for {loop.var} in range({self.scalar(loop.trips)}):",
            *self.lines(tuple(loads), indent + 4),
        ]
        lines += [
            f"{inner}stage = {loop.var} % STAGES",
            *([f"{inner}slot = stage * {self.kernel.consumers} + consumer"] if self._slots() else []),
            *([] if self.ahead else [f"{inner}mbarrier.wait(full.index(stage), {loop.var} // STAGES & 1)"]),
        ]
        for load in self.moved:
            lines += self._arrived(load, indent + 4)
        # before results of the last trip are read, or ptxas has all products run one by one (C7514)
        lines += self._wait(len(self.pending), indent + 4)
        lines += self.lines(tuple(stmt for stmt in loop.body if stmt not in loads), indent + 4)
        lines += self._next_stage(indent + 4)
        lines += self._wait(len(self.pending) - len(self.ahead), indent + 4)
        self.bases, self._inner = {}, set()
        self.in_registers.clear()
        # the last stage has issued products as well, of which nothing comes
        return [*lines, f"{inner}mbarrier.arrive(empty.index(stage))", *self._wait(len(self.pending), indent)]

    def _first_stage(self, indent: int) -> list[str]:
        """Before the loop: the products of its first stage that are issued ahead."""
        if not self.ahead:
            return []
        pad = " " * indent
        lines = [f"{pad}gl.static_assert(STAGES > 1)", f"{pad}mbarrier.wait(full.index(0), 0)"]
        return [*lines, *self._issue_ahead("0", "consumer", indent)]

    def _next_stage(self, indent: int) -> list[str]:
        """At the end of a stage: the products of the next one that are issued ahead.

        After the last stage they multiply what is there, since a product under a condition cannot be under way.
        """
        if not self.ahead:
            return []
        loop = stage_loop(self.kernel)
        after = f"{loop.var} + 1"
        there = f"pred={after} < {self.scalar(loop.trips)}"
        return [
            f"{' ' * indent}following = ({after}) % STAGES",
            *fit(f"mbarrier.wait(full.index(following), ({after}) // STAGES & 1, {there})", indent),
            *self._issue_ahead("following", f"following * {self.kernel.consumers} + consumer", indent),
        ]

    def _issue_ahead(self, stage: str, slot: str, indent: int) -> list[str]:
        """The products of a stage that are issued ahead, from its tiles."""
        lines: list[str] = []
        factors = {value.name for product in self.ahead for value in (product.left, product.right)}
        for load in self.moved:
            name, sizes = load.out.name, ", ".join(self.tiles.extents[load.out.name])
            if name in factors:
                place = slot if depends(self.kernel, load, "consumer") else stage
                lines += fit(self.idiom.tile(f"{name}_next_tile", f"{name}_tiles", place, sizes), indent)
        for product in self.ahead:
            rows, cols = sides(product)
            left = f"{rows.name}_next_tile" + ".permute((1, 0))" * (rows.axes[-1] != product.over)
            right = f"{cols.name}_next_tile" + ".permute((1, 0))" * (cols.axes[0] != product.over)
            lines += fit(self.idiom.dot(product.out.name, left, right, self._zeros(product)), indent)
            self.pending.append(Product(product.out.name))
        return lines

    def _zeros(self, stmt: ir.Dot) -> str:
        """What a product begins with, if it adds to nothing."""
        zeros = f"gl.zeros([{', '.join(self.tiles.extents[stmt.out.name])}], gl.float32, {self._layout(stmt.out)})"
        return "" if stmt.acc else zeros

    def _slots(self) -> bool:
        """Whether consumers have tiles of their own in a stage."""
        return any(depends(self.kernel, load, "consumer") for load in self.moved)

    def _each(self, name: str, indent: int, text) -> list[str]:
        """A statement for every layout that a vector is needed in."""
        return [line for along in self.tiles.variants(name) for line in fit(text(along), indent)]

    # ---- vectors

    def _arange(self, stmt: ir.Arange, along: Along) -> str:
        return self.idiom.arange(self.tiles.variant(stmt.name, along), stmt.size, self._use(along.columns, along.text))

    def _limit(self, stmt: ir.Mask, along: Along) -> str:
        offsets = self.tiles.variant(stmt.offsets, along)
        return f"{self.tiles.variant(stmt.name, along)} = {offsets} < {self.scalar(stmt.limit)}"

    def _vector(self, stmt: ir.Let, along: Along) -> str:
        self.along = along
        text = f"{self.tiles.variant(stmt.out.name, along)} = {self._formula(stmt)}"
        self.along = None
        return text

    def _vectors(self, stmt: ir.Load, indent: int) -> list[str]:
        """A vector from memory, in every layout that it is needed in."""
        lines: list[str] = []
        for along in self.tiles.variants(stmt.out.name) if not stmt.descriptor else ():
            self.along = along
            name = self.tiles.variant(stmt.out.name, along)
            lines += self._based(
                ir.Load(ir.Value(name, stmt.out.axes, stmt.out.dtype), stmt.tensor, stmt.index), indent
            )
            self.along = None
        return lines

    def _store_vector(self, stmt: ir.Store, indent: int) -> list[str]:
        """A vector to memory, from the one layout that it has."""
        (self.along,) = self.tiles.variants(stmt.value.name)
        lines = super()._block(stmt, indent)
        self.along = None
        return lines

    def _store_vectors(self, stmt: ir.Store, indent: int) -> list[str]:
        """A matrix to memory, each thread neighbours in a row together."""
        columns = self.tiles.columns(stmt.value) + IN_VECTORS
        self.columns = self._use(columns, columns)
        lines = super()._block(stmt, indent)
        self.columns = ""
        return lines

    def _store(self, tensor: ir.Tensor, index: tuple[ir.Index, ...], value: ir.Value, descriptor: bool) -> str:
        if not self.columns.endswith(IN_VECTORS):
            return super()._store(tensor, index, value, descriptor)
        pointer, mask = self._pointer(tensor, index, value.axes), self._mask(index, value.axes)
        return self.idiom.store(pointer, value.name, mask, layout(self.columns))

    def _spread(self, name: str, axis: str, over: tuple[str, ...]) -> str:
        """A vector as it takes part in an expression over `over`, in the layout that it needs there."""
        along = self.along or Along("rows" if over.index(axis) == 0 else "cols", self.columns)
        return broadcast(self.tiles.variant(name, along), (axis,), over)

    # ---- matrices

    def _formula(self, stmt: ir.Let) -> str:
        operands = frozenset(read.name for read in stmt.reads if read.name in self.operands or read.dtype == "stored")
        self.columns = self.tiles.columns(stmt.out) if len(stmt.out.axes) == 2 else ""
        return ConsumerFormula(self, stmt.out.axes, operands, self.masks).print(stmt.formula)

    def _statement(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Let(out, formula):
                if out.dtype == "stored" and isinstance(formula, sympy.Indexed):
                    turned = len(out.axes) == 2 and axes_of(formula) != out.axes
                    return f"{out.name} = {turned_name(name_of(formula)) if turned else name_of(formula)}"
                return f"{out.name} = {self._formula(stmt)}"
            case ir.Full(out, sizes, value) if len(sizes) == 1:
                # a vector that adds up sums lies as they do
                (along,) = self.tiles.variants(out.name)
                return self.idiom.full(out.name, sizes[0], value, self._use(along.columns, along.text))
            case ir.Full(out, sizes, value):
                return self.idiom.full(out.name, ", ".join(sizes), value, self._layout(out) if sizes else "")
            case ir.Sum(out, of, along):
                return self.idiom.sum(out.name, of.name, of.axes.index(along))
        return super()._statement(stmt)

    # ---- products

    def _issue(self, stmt: ir.Dot, indent: int) -> list[str]:
        out = stmt.out
        rows, cols = sides(stmt)
        lines, left, kept = self._left(rows, stmt, indent)
        turned = cols.axes[0] != stmt.over
        tile = self._tile_of(cols.name)
        right = f"{tile}.permute((1, 0))" if turned else tile
        lines += fit(self.idiom.dot(out.name, left, right, self._zeros(stmt)), indent)
        self.pending.append(Product(out.name, kept, tile))
        self._forget(stmt)
        return lines

    def _left(self, value: ir.Value, stmt: ir.Dot, indent: int) -> tuple[list[str], str, list[str]]:
        """The left operand: a tile in shared memory, or registers if it is there anyhow."""
        turned = value.axes[-1] != stmt.over
        if value.name in self.tile_axes and (self.spare or not self._read_later(value, turned)):
            return [], f"{value.name}_tile.permute((1, 0))" if turned else f"{value.name}_tile", []
        # two operands for one result need not be in registers at once
        others = [at for at, product in enumerate(self.pending) if product.result == stmt.out.name and product.kept]
        kept = {f"{value.name}_left"}
        lines = self._wait(others[-1] + 1, indent) if others and kept.isdisjoint(self.pending[others[-1]].kept) else []
        if value.name in self.tile_axes:
            name, source = f"{value.name}_left", turned_name(value.name) if turned else value.name
            key = (value.name, ("turned",) if turned else ())
            if key not in self.in_registers:
                self.in_registers.add(key)
                lines += self._from_tile(value.name, turned, indent)
        elif turned:
            raise ValueError(f"{self.kernel.name}: {value.name} is a left operand and has {stmt.over} along its rows")
        else:
            name, source = f"{value.name}_left", self.idiom.operand(value.name, value.name in self.led)
        made = (name, (self._layout(stmt.out),))
        if made not in self.in_registers:
            self.in_registers.add(made)
            lines += fit(f"{name} = {self.idiom.left(source, self._layout(stmt.out))}", indent)
        return lines, name, [name]

    def _forget(self, stmt: ir.Stmt) -> None:
        """A value that is made anew is no longer ready as a left operand."""
        made = {f"{name}_left" for name in made_by(stmt)}
        self.in_registers = {known for known in self.in_registers if known[0] not in made}

    def _read_later(self, value: ir.Value, turned: bool) -> bool:
        """Whether some formula reads a tile element by element in the same order."""
        for let in ir.walk(self.kernel.body):
            if isinstance(let, ir.Let) and len(let.out.axes) == 2:
                for term in let.formula.atoms(sympy.Indexed):
                    if name_of(term) == value.name and (axes_of(term) != let.out.axes) == turned:
                        return True
        return False

    def _waits(self, stmt: ir.Stmt, indent: int) -> list[str]:
        """Wait for what a statement reads or writes and is not finished."""
        names = touched(stmt)
        last = max((at for at, product in enumerate(self.pending) if product.result in names), default=-1)
        if isinstance(stmt, ir.Dot):
            # adding to the result of a product under way needs no wait; reading it as an operand does
            operands = {stmt.left.name, stmt.right.name}
            last = max((at for at, product in enumerate(self.pending) if product.result in operands), default=-1)
        return self._wait(last + 1, indent)

    def _wait_for_the_one_tile(self, indent: int) -> list[str]:
        """Wait for the products that read the tile through which a consumer copies, before it has another value."""
        read = [at for at, product in enumerate(self.pending) if product.tile == OUTGOING]
        return self._wait(read[-1] + 1 if read else 0, indent)

    def _wait(self, count: int, indent: int) -> list[str]:
        """Wait for the first `count` products under way."""
        if not count:
            return []
        done, self.pending = self.pending[:count], self.pending[count:]
        # a result that a later product adds to is still under way
        busy = {product.result for product in self.pending}
        results = [product.result for product in done if product.result not in busy]
        values = dict.fromkeys([*results, *(name for product in done for name in product.kept)])
        lines = fit(self.idiom.wait(", ".join(values), len(self.pending)), indent)
        if self.turns in results:
            lines.append(f"{' ' * indent}mbarrier.arrive(turn.index(1 - consumer))")
        return lines


def _factors(stmt: ir.Stmt) -> set[str]:
    """Values that a product multiplies."""
    return {stmt.left.name, stmt.right.name} if isinstance(stmt, ir.Dot) else set()
