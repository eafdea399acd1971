"""Tiles in shared memory as one consumer has them: moved there, put there, read from there.  -> warps"""

from __future__ import annotations

import sympy

from ..plan import ir
from ..spec.dims import axes_of, name_of
from .environment import macros
from .layout import fit
from .reads import made_by, sides
from .stages import aside_of, depends, fixed_loads, moved_loads
from .statements import StatementPrinter, block_sizes
from .tiles import Tiles, entries, layout

# the tile through which all copies of a consumer go, where registers and memory are short
OUTGOING = "outgoing_tile"


class SharedPrinter(StatementPrinter):
    """What a consumer's statements do in shared memory.

    moved: loads that the loading warp makes stages ahead, fixed: those that it makes once, in order; tile_axes: of what
    is in shared memory, by name; scratch: extents, by variable, of the tiles there that a consumer has for itself;
    parked: the same in float32, for values from before the loop that would otherwise take up registers all through it;
    in_registers: what has been read from there; copied: values that are in the tile through which they go to memory;
    led: values that are operands in two terms; near: loads of what is in a moved vector, too, by what they load.
    """

    language = "gl"

    def __init__(self, kernel: ir.Kernel):
        super().__init__(kernel)
        self.idiom = macros("macros/warpgroups.jinja")
        self.tiles = Tiles.of(kernel)
        self.moved = moved_loads(kernel)
        self.fixed = fixed_loads(kernel)
        self.tile_axes = {stmt.out.name: stmt.out.axes for stmt in (*self.fixed, *self.moved)}
        made = aside_of(kernel)
        self.tile_axes |= {value.name: value.axes for value in made.values if value.axes} if made else {}
        self.scratch: dict[str, tuple[str, ...]] = {}
        self.parked: dict[str, tuple[str, ...]] = {}
        self.in_registers: set[tuple[str, tuple[str, ...]]] = set()
        self.copied: set[str] = set()
        loads = (stmt for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.Load) and stmt.near)
        self.near = {load.out.name: load for load in loads}
        self.led = {stmt.of.name for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.Rest)}
        # registers are dearer than another read of shared memory
        self.spare = bool(kernel.roles) or kernel.spare
        self.unfenced = False
        self.used: dict[str, None] = {}

    # ---- what goes there

    def _put(self, value: ir.Value, indent: int) -> list[str]:
        """A value goes into shared memory."""
        tile = f"{value.name}_tile"
        self.unfenced = True
        if self.kernel.spare:
            return self._into_the_one_tile(value, OUTGOING, indent)
        self.scratch[tile] = self.tiles.extents[value.name]
        return fit(self.idiom.to_tile(tile, self.idiom.operand(value.name, value.name in self.led)), indent)

    def _puts(self, body: tuple[ir.Stmt, ...]) -> dict[int, list[ir.Value]]:
        """Values that a product reads from shared memory, by the last statement that makes them: they go there then."""
        found: dict[int, list[ir.Value]] = {}
        for at, stmt in enumerate(body):
            value = sides(stmt)[1] if isinstance(stmt, ir.Dot) else None
            if value is not None and value.name not in self.tile_axes and not self._goes_out(value.name, body[:at]):
                made = max(k for k in range(at) if value.name in made_by(body[k]))
                if value not in found.setdefault(made, []):
                    found[made].append(value)
        return found

    def _goes_out(self, name: str, before: tuple[ir.Stmt, ...]) -> bool:
        """Whether a value is on its way to memory through a tile that products may read."""
        return self.kernel.spare and any(
            isinstance(s, ir.Store) and s.descriptor and s.value.name == name for s in before
        )

    def _tile_of(self, name: str) -> str:
        """Variable of the tile where a value is."""
        return OUTGOING if name in self.copied else f"{name}_tile"

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

    def _fence(self, stmt: ir.Dot, indent: int) -> list[str]:
        """Before a product reads what was put into shared memory."""
        moved = {load.out.name for load in (*self.fixed, *self.moved)}
        if not self.unfenced or all(side.name in moved for side in (sides(stmt) if self.spare else sides(stmt)[1:])):
            return []
        self.unfenced = False
        return [f"{' ' * indent}fence_async_shared()"]

    # ---- what is read from there

    def _fixed_tile(self, load: ir.Load, indent: int) -> list[str]:
        """A tile that stays for the whole program; the first one waits for all."""
        lines = [f"{' ' * indent}mbarrier.wait(fixed.index(0), 0)"] if load == self.fixed[0] else []
        name, sizes = load.out.name, self.tiles.extents[load.out.name]
        return [*lines, *fit(self.idiom.tile(f"{name}_tile", f"{name}_tiles", "0", ", ".join(sizes)), indent)]

    def _arrived(self, load: ir.Load, indent: int) -> list[str]:
        """The tile of this stage: vectors go to registers at once, matrices where they are needed there."""
        name, sizes = load.out.name, self.tiles.extents[load.out.name]
        slot = "slot" if depends(self.kernel, load, "consumer") else "stage"
        return fit(self.idiom.tile(f"{name}_tile", f"{name}_tiles", slot, ", ".join(sizes)), indent)

    def _made_aside(self, stmt: ir.Aside, indent: int) -> list[str]:
        """Numbers go to registers at once, vectors where they are first read."""
        lines: list[str] = []
        for value in stmt.values:
            tile = f"{value.name}_tiles.index(slot)"
            if value.axes:
                lines.append(f"{' ' * indent}{value.name}_tile = {tile}")
            else:
                along = self._use("CHUNK", f"gl.SliceLayout(0, {layout('CHUNK')})")
                lines += fit(self.idiom.sum(value.name, f"{tile}.load({along})", 0), indent)
        return lines

    def _arriving(self, stmt: ir.Stmt, indent: int) -> list[str]:
        """Load what a statement reads of the vectors of the stage and none before it did: registers are dear."""
        lines: list[str] = []
        for let in [inner for inner in ir.walk((stmt,)) if isinstance(inner, ir.Let)]:
            for name in sorted(str(symbol) for symbol in let.formula.free_symbols):
                if name in self.near and (name, ()) not in self.in_registers:
                    self.in_registers.add((name, ()))
                    lines += self._near(self.near[name], indent)
            for read in entries(let.formula):
                if read.name not in self.tile_axes or len(read.axes) != 1:
                    continue
                along = (self.tiles.place(let.out, read.axes[0]),)
                for layout_of in along if len(let.out.axes) == 2 else self.tiles.variants(let.out.name):
                    variant = self.tiles.variant(read.name, layout_of)
                    if (variant, ()) not in self.in_registers:
                        self.in_registers |= set() if self.kernel.spare else {(variant, ())}
                        source = self._use(layout_of.columns, layout_of.text)
                        lines += fit(self.idiom.from_tile(variant, f"{read.name}_tile", source), indent)
        return lines

    def _near(self, load: ir.Load, indent: int) -> list[str]:
        """A number that is the last entry of a vector in shared memory."""
        whole = next(
            moved for moved in self.moved if moved.tensor == load.tensor and moved.index[:-1] == load.index[:-1]
        )
        (size,) = self.tiles.extents[whole.out.name]
        along = self._use(size, f"gl.SliceLayout(0, {layout(size)})")
        last = f"{whole.out.name}_tile.slice({size} - 1, 1)"
        return fit(self.idiom.sum(load.out.name, f"{last}.load({along})", 0), indent)

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
                if f"{name}_tile" not in self.parked and not self.kernel.spare:
                    self.in_registers.add(key)
                lines += self._from_tile(name, turned, indent)
        return lines

    def _from_tile(self, name: str, turned: bool, indent: int) -> list[str]:
        columns = self.tiles.extents[name][0 if turned else 1]
        tile = f"{name}_tile.permute((1, 0))" if turned else f"{name}_tile"
        text = self.idiom.from_tile(turned_name(name) if turned else name, tile, self._use(columns, layout(columns)))
        return fit(text, indent)

    # ---- what leaves from there

    def _copy_out(self, stmt: ir.Store, indent: int) -> list[str]:
        """To memory through a tile in shared memory, once what was copied from it before has left."""
        pad = " " * indent
        if self.kernel.spare:
            return self._through_the_one_tile(stmt, indent)
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

    def _through_the_one_tile(self, stmt: ir.Store, indent: int) -> list[str]:
        """To memory through the tile that a consumer has for all copies, which are of one extent."""
        pad = " " * indent
        turned = stmt.value.axes != tuple(at.axis for at in stmt.index if isinstance(at, ir.Span))
        view = f"{OUTGOING}.permute((1, 0))" if turned else OUTGOING
        return [
            *self._into_the_one_tile(stmt.value, view, indent),
            f"{pad}fence_async_shared()",
            *fit(
                self.idiom.copy_out(
                    stmt.tensor, self._corner(stmt.index), OUTGOING, ", ".join(block_sizes(stmt.index))
                ),
                indent,
            ),
        ]

    def _into_the_one_tile(self, value: ir.Value, view: str, indent: int) -> list[str]:
        """A value takes the place of the one before, which has left."""
        self.scratch.setdefault(OUTGOING, self.tiles.extents[value.name])
        self.copied = {value.name}
        return [f"{' ' * indent}tma.store_wait(0)", *fit(self.idiom.to_tile(view, f"{value.name}.to(DOT)"), indent)]

    # ---- layouts

    def _use(self, columns: str, text: str) -> str:
        self.used[columns] = None
        return text

    def _layout(self, value: ir.Value) -> str:
        columns = self.tiles.columns(value)
        return self._use(columns, layout(columns))


def turned_name(name: str) -> str:
    """Variable of a tile that was read with its axes exchanged."""
    return f"{name}_turned"
