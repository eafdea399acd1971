"""A kernel specialised by warps as Gluon source: what one consumer does.  plan.Stmt -> text

Products are asynchronous. One is issued where its statement stands and waited for where its result is first read, so
the order of a plan's statements is what runs at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from ..plan import ir
from ..spec.dims import axes_of, name_of
from .environment import macros
from .formula import FormulaPrinter, broadcast
from .layout import fit
from .reads import is_plain_load, made_by, moved_value, sides, touched
from .stages import depends, first_product, fixed_loads, moved_loads, stage_loop
from .statements import StatementPrinter, block_sizes
from .tiles import Along, Tiles, entries, layout


@dataclass
class Product:
    """A product under way.  result: its variable; kept: variables with operands that it reads from registers."""

    result: str
    kept: list[str] = field(default_factory=list)


class ConsumerPrinter(StatementPrinter):
    """Prints the statements of one consumer.

    moved: loads that the loading warp makes, in order; scratch: (variable, extents) of the tiles in shared memory that
    a consumer has for itself; parked: the same in float32, for values from before the loop that would otherwise take up
    registers all through it.
    """

    language = "gl"

    def __init__(self, kernel: ir.Kernel):
        super().__init__(kernel)
        self.idiom = macros("macros/warpgroups.jinja")
        self.tiles = Tiles.of(kernel)
        self.moved = moved_loads(kernel)
        self.fixed = fixed_loads(kernel)
        self.tile_axes = {stmt.out.name: stmt.out.axes for stmt in (*self.fixed, *self.moved)}
        self.scratch: dict[str, tuple[str, ...]] = {}
        self.parked: dict[str, tuple[str, ...]] = {}
        self.in_registers: set[tuple[str, tuple[str, ...]]] = set()
        self.pending: list[Product] = []
        self.along: Along | None = None
        self.columns = ""
        self.unfenced = False
        self.used: dict[str, None] = {}
        self.turns = first_product(kernel) if kernel.consumers == 2 and not kernel.roles else ""

    # ---- structure

    def lines(self, body: tuple[ir.Stmt, ...], indent: int) -> list[str]:
        """Products that follow each other are issued together, once all of their operands are in shared memory."""
        found: list[str] = []
        puts = self._puts(body)
        for at, stmt in enumerate(body):
            if self.kernel.roles and self._is_tile_but_for_an_option(stmt):
                found += self._option_of_tile(stmt, indent)
            elif isinstance(stmt, ir.Dot):
                found += [*self._waits(stmt, indent), *self._fence(stmt, indent), *self._turn(stmt, indent)]
                found += self._issue(stmt, indent)
            elif isinstance(stmt, ir.When) and any(isinstance(inner, ir.Dot) for inner in ir.walk((stmt,))):
                found += self._optional_products(stmt, indent)
            else:
                found += self._block(stmt, indent)
            for value in puts.get(at, ()):
                found += self._put(value, indent) if value.name not in self.tile_axes else []
            if self.kernel.roles and isinstance(stmt, (ir.Let, ir.When)):
                found += self._left_at_once(body, at, indent)
        return found

    def _optional_products(self, stmt: ir.When, indent: int) -> list[str]:
        """Products that only an option needs are done where it ends: what is under way after it does not hang on it."""
        waits = self._waits(stmt, indent)
        before, ready = list(self.pending), set(self.in_registers)
        lines = [*waits, *self._block(stmt, indent), *self._wait(len(self.pending), indent + 4)]
        self.pending, self.in_registers = before, ready
        return lines

    def _put(self, value: ir.Value, indent: int) -> list[str]:
        """A value goes into shared memory."""
        tile = f"{value.name}_tile"
        self.unfenced = True
        self.scratch[tile] = self.tiles.extents[value.name]
        return fit(self.idiom.to_tile(tile, f"{value.name}.to(DOT)"), indent)

    def _is_tile_but_for_an_option(self, stmt: ir.Stmt) -> bool:
        """Whether a statement makes a value that is a moved tile, or another one under the only option that it has."""
        made = stmt.body[-1] if isinstance(stmt, ir.When) else stmt
        return isinstance(made, ir.Let) and len(made.out.axes) == 2 and bool(self._moved_as(made.out)[0])

    def _option_of_tile(self, stmt: ir.Stmt, indent: int) -> list[str]:
        """Such a value stays in shared memory, where the tile is already; it is not in registers before it is read."""
        if not isinstance(stmt, ir.When):
            return []
        pad, (let,) = " " * indent, stmt.body
        assert isinstance(let, ir.Let)
        name, ready = let.out.name, set(self.in_registers)
        tile, own = f"{name}_tile", f"{name}_own_tile"
        self.scratch[own] = self.tiles.extents[name]
        self.unfenced = True
        lines = [
            f"{pad}{tile} = {self._moved_as(let.out)[0]}_tile",
            f"{pad}if {stmt.condition}:",
            *self._registers(let, indent + 4),
            *fit(self._statement(let), indent + 4),
            *fit(self.idiom.to_tile(own, f"{name}.to(DOT)"), indent + 4),
            f"{pad}    {tile} = {own}",
        ]
        self.in_registers = ready
        self.tile_axes[name] = let.out.axes
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

    def _moved_as(self, value: ir.Value) -> tuple[str, str]:
        """The moved tile that a value is, and the only option under which it is another; empty where there is none."""
        made = [s for s in ir.walk(self.kernel.body) if isinstance(s, ir.Let) and s.out.name == value.name]
        under = [
            stmt.condition
            for stmt in ir.walk(self.kernel.body)
            if isinstance(stmt, ir.When) and any(let in made for let in stmt.body)
        ]
        first = made[0].formula if made else None
        if len(made) != 2 or len(under) != 1 or not isinstance(first, sympy.Indexed):
            return "", ""
        name = name_of(first)
        same = name in self.tile_axes and axes_of(first) == made[0].out.axes == self.tile_axes[name]
        return (name, under[0]) if same else ("", "")

    def _turn(self, stmt: ir.Dot, indent: int) -> list[str]:
        """Two consumers multiply in turns for the first result of a stage, so that one computes while the other does.

        Left alone they run in step, both waiting for the matrix unit and then both keeping it waiting.
        """
        if stmt.out.name != self.turns or self.pending:
            return []
        return [
            f"{' ' * indent}mbarrier.wait(turn.index(consumer), ({stage_loop(self.kernel).var} & 1) ^ (1 - consumer))"
        ]

    def _puts(self, body: tuple[ir.Stmt, ...]) -> dict[int, list[ir.Value]]:
        """Values that a product reads from shared memory, by the last statement that makes them: they go there then."""
        found: dict[int, list[ir.Value]] = {}
        for at, stmt in enumerate(body):
            value = sides(stmt)[1] if isinstance(stmt, ir.Dot) else None
            if value is not None and value.name not in self.tile_axes:
                made = max(k for k in range(at) if value.name in made_by(body[k]))
                if value not in found.setdefault(made, []):
                    found[made].append(value)
        return found

    def _fence(self, stmt: ir.Dot, indent: int) -> list[str]:
        """Before a product reads what was put into shared memory."""
        moved = {load.out.name for load in (*self.fixed, *self.moved)}
        if not self.unfenced or all(
            side.name in moved for side in (sides(stmt) if self.kernel.roles else sides(stmt)[1:])
        ):
            return []
        self.unfenced = False
        return [f"{' ' * indent}fence_async_shared()"]

    def _block(self, stmt: ir.Stmt, indent: int) -> list[str]:
        if isinstance(stmt, ir.For) and any(load in self.moved for load in ir.walk(stmt.body)):
            return self._stages(stmt, indent)
        lines = [*self._waits(stmt, indent), *self._arriving(stmt, indent)]
        self._forget(stmt)
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
        if isinstance(stmt, ir.Store) and stmt.descriptor:
            return [*lines, *self._copy_out(stmt, indent)]
        if isinstance(stmt, ir.Let):
            lines += self._registers(stmt, indent)
        if isinstance(stmt, ir.When):
            inner = [let for let in ir.walk((*stmt.body, *stmt.otherwise)) if isinstance(let, ir.Let)]
            lines += [line for let in inner for line in self._registers(let, indent)]
        return [*lines, *super()._block(stmt, indent)]

    def _fixed_tile(self, load: ir.Load, indent: int) -> list[str]:
        """A tile that stays for the whole program; the first one waits for all."""
        lines = [f"{' ' * indent}mbarrier.wait(fixed.index(0), 0)"] if load == self.fixed[0] else []
        name, sizes = load.out.name, self.tiles.extents[load.out.name]
        return [*lines, *fit(self.idiom.tile(f"{name}_tile", f"{name}_tiles", "0", ", ".join(sizes)), indent)]

    def _stages(self, loop: ir.For, indent: int) -> list[str]:
        """The loop over stages: plain loads, the tiles of the stage, the rest; then the stage is given back."""
        pad, inner = " " * indent, " " * (indent + 4)
        before = [*self._wait(len(self.pending), indent), *self._park(loop, indent), *self._hoist(loop, indent)]
        loads = [stmt for stmt in loop.body if is_plain_load(stmt)]
        lines = [
            *before,
            f"{pad}for {loop.var} in range({self.scalar(loop.trips)}):",
            *self.lines(tuple(loads), indent + 4),
        ]
        lines += [
            f"{inner}stage = {loop.var} % STAGES",
            *([f"{inner}slot = stage * {self.kernel.consumers} + consumer"] if self._slots() else []),
            f"{inner}mbarrier.wait(full.index(stage), {loop.var} // STAGES & 1)",
        ]
        for load in self.moved:
            lines += self._arrived(load, indent + 4)
        lines += self.lines(tuple(stmt for stmt in loop.body if stmt not in loads), indent + 4)
        lines += self._wait(len(self.pending), indent + 4)
        self.bases, self._inner = {}, set()
        self.in_registers.clear()
        return [*lines, f"{inner}mbarrier.arrive(empty.index(stage))"]

    def _park(self, loop: ir.For, indent: int) -> list[str]:
        """Where roles share a program, products from before the loop wait in shared memory.

        Every trip reads all of them once or twice, and what a role adds up over the trips needs the registers.
        """
        if not self.kernel.roles:
            return []
        inside = [read for stmt in ir.walk(loop.body) if isinstance(stmt, ir.Let) for read in entries(stmt.formula)]
        added = {stmt.out.name for stmt in ir.walk(loop.body) if isinstance(stmt, (ir.Let, ir.Dot))}
        lines: list[str] = []
        for stmt in self.kernel.body:
            if isinstance(stmt, ir.Dot) and stmt.out.name not in added and stmt.out.name in {v.name for v in inside}:
                tile = f"{stmt.out.name}_tile"
                self.parked[tile] = self.tiles.extents[stmt.out.name]
                self.tile_axes[stmt.out.name] = stmt.out.axes
                lines += fit(self.idiom.to_tile(tile, stmt.out.name), indent)
        return lines

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

    def _spread(self, name: str, axis: str, over: tuple[str, ...]) -> str:
        """A vector as it takes part in an expression over `over`, in the layout that it needs there."""
        along = self.along or Along("rows" if over.index(axis) == 0 else "cols", self.columns)
        return broadcast(self.tiles.variant(name, along), (axis,), over)

    # ---- matrices

    def _use(self, columns: str, text: str) -> str:
        self.used[columns] = None
        return text

    def _layout(self, value: ir.Value) -> str:
        columns = self.tiles.columns(value)
        return self._use(columns, layout(columns))

    def _formula(self, stmt: ir.Let) -> str:
        operands = frozenset(read.name for read in stmt.reads if read.name in self.operands or read.dtype == "stored")
        self.columns = self.tiles.columns(stmt.out) if len(stmt.out.axes) == 2 else ""
        return _Formula(self, stmt.out.axes, operands, self.masks).print(stmt.formula)

    def _statement(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Let(out, formula):
                if out.dtype == "stored" and isinstance(formula, sympy.Indexed):
                    turned = len(out.axes) == 2 and axes_of(formula) != out.axes
                    return f"{out.name} = {_turned(name_of(formula)) if turned else name_of(formula)}"
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

    def _arrived(self, load: ir.Load, indent: int) -> list[str]:
        """The tile of this stage: vectors go to registers at once, matrices where they are needed there."""
        name, sizes = load.out.name, self.tiles.extents[load.out.name]
        slot = "slot" if depends(self.kernel, load, "consumer") else "stage"
        return fit(self.idiom.tile(f"{name}_tile", f"{name}_tiles", slot, ", ".join(sizes)), indent)

    def _arriving(self, stmt: ir.Stmt, indent: int) -> list[str]:
        """Load the vectors of the stage that a statement reads and none before it did: registers are dear."""
        lines: list[str] = []
        for let in [inner for inner in ir.walk((stmt,)) if isinstance(inner, ir.Let)]:
            for read in entries(let.formula):
                if read.name not in self.tile_axes or len(read.axes) != 1:
                    continue
                along = (self.tiles.place(let.out, read.axes[0]),)
                for layout_of in along if len(let.out.axes) == 2 else self.tiles.variants(let.out.name):
                    variant = self.tiles.variant(read.name, layout_of)
                    if (variant, ()) not in self.in_registers:
                        self.in_registers.add((variant, ()))
                        source = self._use(layout_of.columns, layout_of.text)
                        lines += fit(self.idiom.from_tile(variant, f"{read.name}_tile", source), indent)
        return lines

    def _registers(self, stmt: ir.Let, indent: int) -> list[str]:
        """Load the tiles that a formula reads element by element, in the order of its axes."""
        lines: list[str] = []
        for term in sorted(stmt.formula.atoms(sympy.Indexed), key=str):
            name, axes = name_of(term), axes_of(term)
            if name not in self.tile_axes or len(axes) != 2:
                continue
            turned = axes != stmt.out.axes
            key = (name, ("turned",) if turned else ())
            if key not in self.in_registers:
                if f"{name}_tile" not in self.parked:
                    self.in_registers.add(key)
                lines += self._from_tile(name, turned, indent)
        return lines

    def _from_tile(self, name: str, turned: bool, indent: int) -> list[str]:
        columns = self.tiles.extents[name][0 if turned else 1]
        tile = f"{name}_tile.permute((1, 0))" if turned else f"{name}_tile"
        text = self.idiom.from_tile(_turned(name) if turned else name, tile, self._use(columns, layout(columns)))
        return fit(text, indent)

    # ---- products

    def _issue(self, stmt: ir.Dot, indent: int) -> list[str]:
        out = stmt.out
        rows, cols = sides(stmt)
        lines, left, kept = self._left(rows, stmt, indent)
        turned = cols.axes[0] != stmt.over
        right = f"{cols.name}_tile.permute((1, 0))" if turned else f"{cols.name}_tile"
        zeros = f"gl.zeros([{', '.join(self.tiles.extents[out.name])}], gl.float32, {self._layout(out)})"
        lines += fit(self.idiom.dot(out.name, left, right, "" if stmt.acc else zeros), indent)
        self.pending.append(Product(out.name, kept))
        self._forget(stmt)
        return lines

    def _left(self, value: ir.Value, stmt: ir.Dot, indent: int) -> tuple[list[str], str, list[str]]:
        """The left operand: a tile in shared memory, or registers if it is there anyhow."""
        turned = value.axes[-1] != stmt.over
        if value.name in self.tile_axes and (self.kernel.roles or not self._read_later(value, turned)):
            return [], f"{value.name}_tile.permute((1, 0))" if turned else f"{value.name}_tile", []
        # two operands for one result need not be in registers at once
        others = [at for at, product in enumerate(self.pending) if product.result == stmt.out.name and product.kept]
        kept = {f"{value.name}_left"}
        lines = self._wait(others[-1] + 1, indent) if others and kept.isdisjoint(self.pending[others[-1]].kept) else []
        if value.name in self.tile_axes:
            name, source = f"{value.name}_left", _turned(value.name) if turned else value.name
            key = (value.name, ("turned",) if turned else ())
            if key not in self.in_registers:
                self.in_registers.add(key)
                lines += self._from_tile(value.name, turned, indent)
        elif turned:
            raise ValueError(f"{self.kernel.name}: {value.name} is a left operand and has {stmt.over} along its rows")
        else:
            name, source = f"{value.name}_left", f"{value.name}.to(DOT)"
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

    # ---- out

    def _copy_out(self, stmt: ir.Store, indent: int) -> list[str]:
        """To memory through a tile in shared memory, once what was copied from it before has left."""
        pad = " " * indent
        stores = [s for s in ir.walk(self.kernel.body) if isinstance(s, ir.Store) and s.descriptor]
        alone = sum(other.tensor == stmt.tensor for other in stores) == 1
        tile = f"{stmt.tensor if alone else stmt.value.name}_tile"
        if tile in self.scratch or tile.removesuffix("_tile") in self.tile_axes:
            tile = f"{stmt.value.name}_out_tile"
        # copies end in the order in which they began: those of the other tiles of this tensor may still be under way
        under_way = 0 if alone or len({other.tensor for other in stores}) > 1 else len(stores) - 1
        spans = tuple(at.axis for at in stmt.index if isinstance(at, ir.Span))
        turned = stmt.value.axes != spans
        extents = self.tiles.extents[stmt.value.name]
        self.scratch[tile] = extents[::-1] if turned else extents
        view = f"{tile}.permute((1, 0))" if turned else tile
        corner = self._corner(stmt.index)
        return [
            f"{pad}tma.store_wait({under_way})",
            *fit(self.idiom.to_tile(view, f"{stmt.value.name}.to(DOT)"), indent),
            f"{pad}fence_async_shared()",
            *fit(self.idiom.copy_out(stmt.tensor, corner, tile, ", ".join(block_sizes(stmt.index))), indent),
        ]


def _factors(stmt: ir.Stmt) -> set[str]:
    """Values that a product multiplies."""
    return {stmt.left.name, stmt.right.name} if isinstance(stmt, ir.Dot) else set()


class _Formula(FormulaPrinter):
    """Formulas over a consumer's tiles."""

    language, sigmoid = "gl", "sigmoid"

    def __init__(
        self, printer: ConsumerPrinter, over: tuple[str, ...], operands: frozenset[str], masks: frozenset[str]
    ):
        super().__init__(over, operands, masks)
        self.printer = printer

    def variable(self, name: str, axes: tuple[str, ...]) -> str:
        if len(axes) == 1:
            return self.printer._spread(name, axes[0], self.over)
        if len(axes) == 2 and axes != self.over:
            if name not in self.printer.tile_axes:
                raise ValueError(f"{name} has axes {axes} and is read over {self.over}: only loaded tiles are turned")
            return _turned(name)
        return name


def _turned(name: str) -> str:
    return f"{name}_turned"
