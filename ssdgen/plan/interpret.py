"""Run plans on the CPU, tile by tile in float64: what a plan means, and a check of its bounds.  plan.Kernel -> arrays

Values are float64 throughout: rounding is no part of a plan's meaning. Axes go by name, so their order in a tile does
not matter either.

    load, store   a position outside the masks reads zero and is not written; a position inside them that the tensor
                  does not have is an error. A descriptor goes by the tensor's own extents instead of the masks, and
                  its block has the same extents wherever the kernel uses it.
    memory        an element of an output belongs to the first program that touches it; another touching it is a race.
                  The consumers of one program count as programs.
    scope         a variable first made in a loop ends with the trip; one from before it keeps its extents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sympy

from ..spec.dims import axes_of, name_of
from ..spec.layer import Layer
from ..spec.numeric import function
from . import ir, launch, launch_backward
from .broken import BrokenPlan, Misfit, OutOfBounds, Race, Undefined
from .interpret_memory import Array, Memory, Place, integer, scalar
from .schedules.scan import Scan
from .schedules.walk import Walk


def run(
    kernel: ir.Kernel,
    tensors: Mapping[str, Array | None],
    sizes: Mapping[str, int],
    constants: Mapping[str, int],
    flags: Mapping[str, bool],
    reals: Mapping[str, float],
) -> None:
    """Run every program of the grid; outputs are written in place, so fill them with NaN to see what is left out.

    tensors: arrays of the extents that the kernel states, None for those whose flag is off. More of anything than the
    kernel asks for is ignored. Raises a BrokenPlan; ValueError where an array does not fit.
    """
    given = {"sizes": sizes, "reals": reals, "constants": constants, "flags": flags}
    for kind, values in given.items():
        if missing := [name for name in getattr(kernel, kind) if name not in values]:
            raise ValueError(f"{kernel.name} needs the {kind} {', '.join(missing)}; give them")
    names: dict[str, Any] = {**sizes, **constants, **reals, **flags}
    memory = {tensor.name: Memory.of(kernel, tensor, tensors.get(tensor.name), names) for tensor in kernel.tensors}
    grid = tuple(integer(extent, names) for extent in kernel.grid)
    # a decay of zero and an infinite limit are meant
    with np.errstate(all="ignore"):
        for number, (*place, consumer) in enumerate(np.ndindex(*grid, max(1, kernel.consumers))):
            scope = {**names, "program_id": place.__getitem__, "consumer": consumer}
            with suppress(_Left):
                _Program(kernel, memory, number, scope).run(kernel.body)


def forward(
    layer: Layer,
    schedule: launch.Schedule,
    inputs: Mapping[str, Any],
    *,
    chunk: int,
    segment: int | None = None,
    shape: Walk | Scan | None = None,
    joined: bool = False,
    constants: Mapping[str, int] | None = None,
) -> tuple[Array, Array]:
    """y [batch, seqlen, nheads, headdim] and the final states [batch or sequences, nheads, headdim, dstate].

    inputs: the arguments of spec.oracle by their names; every option is on where its array is given.
    segment: tokens per segment, a multiple of `chunk`; two chunks if None.  shape: a Walk, or a Scan for "split".
    joined: the walks of "segments" go through the summaries before theirs themselves.
    constants: tile sizes (BLOCK_P, BLOCK_H, ...) other than the least that will do.
    Raises ValueError for what no launcher would launch, a BrokenPlan where a plan is wrong.
    """
    call = launch.Call.of(layer, inputs, chunk, dict(constants or {}), run, lambda *extents: np.full(extents, np.nan))
    return call.forward(schedule, segment, shape, joined)


def backward(
    layer: Layer,
    inputs: Mapping[str, Any],
    d_y: Array,
    d_final_states: Array | None = None,
    *,
    chunk: int,
    schedule: launch_backward.BackwardSchedule = "walk",
    segment: int | None = None,
    parts: int = 1,
    specialised: bool = False,
    block_p: int = 0,
    block_n: int = 0,
    left: bool = False,
    three: bool = False,
    needs: frozenset[str] | None = None,
    constants: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Gradients by the names of spec.oracle_gradient ("d_x", ..), in the shapes of the inputs.

    segment: tokens per segment, a multiple of `chunk`; the whole sequence if None.  parts, specialised, block_p,
    block_n, left, three: as in `launch_backward.How`.  needs: the inputs whose gradients are wanted; all that
    are there if None.
    Raises as `forward` does.
    """
    call = launch.Call.of(layer, inputs, chunk, dict(constants or {}), run, lambda *extents: np.full(extents, np.nan))
    how = launch_backward.How(schedule, segment, parts, specialised, block_p, block_n, left, three)
    return launch_backward.backward(call, inputs, d_y, d_final_states, how, needs)


# ---- programs


class _Left(Exception):
    """A program has ended before its last statement."""


@dataclass
class _Program:
    kernel: ir.Kernel
    memory: dict[str, Memory]
    number: int
    scope: dict[str, Any]

    def run(self, body: Sequence[ir.Stmt]) -> None:
        for stmt in body:
            self.step(stmt)

    def step(self, stmt: ir.Stmt) -> None:
        scope = self.scope
        match stmt:
            case ir.Note():
                pass
            case ir.Scalar(name, expr):
                scope[name] = scalar(expr, scope)
            case ir.Arange(name, _, size):
                scope[name] = np.arange(integer(size, scope))
            case ir.Mask(name, _, offsets, limit, also):
                scope[name] = self.variable(offsets) < integer(limit, scope)
                for condition in also:
                    scope[name] = scope[name] & scalar(condition, scope)
            case ir.Full(out, extents, value):
                scope[out.name] = np.full([integer(extent, scope) for extent in extents], value)
                self.tile(out)
            case ir.Let(out, formula):
                scope[out.name] = self.formula(formula, out.axes)
            case ir.Dot():
                self.dot(stmt)
            case ir.Rest(out, of):
                # operands are float64 here: nothing is rounded
                scope[out.name] = self.tile(of) - self.tile(of)
            case ir.Cumsum(out, of, along, reverse):
                axis, tile = of.axes.index(along), self.tile(of)
                scope[out.name] = np.flip(np.cumsum(np.flip(tile, axis), axis), axis) if reverse else tile.cumsum(axis)
            case ir.Sum(out, of, along):
                scope[out.name] = np.sum(self.tile(of), axis=of.axes.index(along))
            case ir.Largest(out, of, along):
                scope[out.name] = np.max(np.abs(self.tile(of)), axis=of.axes.index(along))
            case ir.Widen(out, of) | ir.Narrow(out, of) | ir.InWords(out, of) | ir.FromWords(out, of):
                # what is stored is float64 here: nothing is rounded
                scope[out.name] = self.tile(of)
            case ir.Split(first, second, of, sizes):
                tile = self.tile(of)
                pairs = self.shaped(of.name, tile.reshape(*tile.shape[:-1], -1, 2), (*sizes, "2"))
                scope[first.name], scope[second.name] = pairs[..., 0], pairs[..., 1]
            case ir.Join(out, first, second, sizes):
                pairs = np.stack(np.broadcast_arrays(self.tile(first), self.tile(second)), axis=-1)
                scope[out.name] = self.shaped(out.name, pairs.reshape(*pairs.shape[:-2], -1), sizes)
            case ir.Wait() | ir.Release() | ir.Begun():
                pass
            case ir.Leave():
                raise _Left
            case ir.Load():
                self.load(stmt)
            case ir.Store():
                self.store(stmt)
            case ir.When(condition, body, otherwise):
                self.run(body if scalar(condition, scope) else otherwise)
            case ir.Aside(body=body):
                self.run(body)
            case ir.For():
                self.loop(stmt)
            case _:
                raise TypeError(f"no meaning for the statement {type(stmt).__name__}")

    def loop(self, stmt: ir.For) -> None:
        carried = {name: np.shape(value) for name, value in self.scope.items()}
        for trip in range(integer(stmt.trips, self.scope)):
            self.scope[stmt.var] = trip
            self.run(stmt.body)
            for name, shape in carried.items():
                if np.shape(self.scope[name]) != shape:
                    raise Misfit(f"{name} enters the loop as {shape} and leaves it as {np.shape(self.scope[name])}")
            self.scope = {name: value for name, value in self.scope.items() if name in carried}

    # ---- values

    def variable(self, name: str) -> Any:
        if name not in self.scope:
            raise Undefined(f"{self.kernel.name} reads {name} before it is made")
        return self.scope[name]

    def tile(self, value: ir.Value) -> Array:
        return self.over(value.name, value.axes)

    def over(self, name: str, axes: tuple[str, ...]) -> Array:
        """A variable as a tile over `axes`."""
        array = np.asarray(self.variable(name))
        if array.ndim != len(axes):
            raise Misfit(f"{name} is read over ({', '.join(axes)}); it has extents {array.shape}")
        return array

    def shaped(self, name: str, tile: Array, sizes: tuple[str, ...]) -> Array:
        """The tile, which must have these extents."""
        if tile.shape != (wanted := tuple(integer(size, self.scope) for size in sizes)):
            raise Misfit(f"the pairs of {name} have extents {tile.shape}; the plan has them as {wanted}")
        return tile

    def formula(self, formula: sympy.Expr, axes: tuple[str, ...]) -> Array:
        """The formula over a grid of `axes`; what it reads is broadcast along the axes that it lacks."""
        terms, scalars, compute = _compiled(formula)
        extents: dict[str, int] = {}
        values: list[Any] = []
        for name, read in terms:
            array = self.over(name, read)
            for axis, extent in zip(read, array.shape, strict=True):
                if axis not in axes or extents.setdefault(axis, extent) != extent:
                    raise Misfit(f"{name} has {extent} along {axis} in {formula}; the result is over {axes}, {extents}")
            order = [read.index(axis) for axis in axes if axis in read]
            values.append(np.transpose(array, order).reshape([extents[a] if a in read else 1 for a in axes]))
        if absent := [axis for axis in axes if axis not in extents]:
            raise Misfit(f"{formula} has nothing along {', '.join(absent)}")
        computed = compute(*values, *(self.over(name, ()) for name in scalars))
        return np.array(np.broadcast_to(computed, [extents[axis] for axis in axes]), dtype=np.float64)

    def dot(self, stmt: ir.Dot) -> None:
        out, left, right = stmt.out, stmt.left, stmt.right
        if sorted(out.axes) != sorted({*left.axes, *right.axes} - {stmt.over}):
            raise Misfit(f"{out.name} is over {out.axes}; {left.axes} times {right.axes} over {stmt.over} is not")
        tiles = (self.tile(left), self.tile(right))
        extents = [
            dict(zip(value.axes, tile.shape, strict=True)) for value, tile in zip((left, right), tiles, strict=True)
        ]
        if extents[0].get(stmt.over) != extents[1].get(stmt.over):
            raise Misfit(f"{left.name} has {extents[0]}, {right.name} {extents[1]}; they disagree along {stmt.over}")
        product = np.einsum(f"{''.join(left.axes)},{''.join(right.axes)}->{''.join(out.axes)}", *tiles)
        if stmt.acc and self.tile(out).shape != product.shape:
            raise Misfit(f"{out.name} is {self.tile(out).shape}; {product.shape} is added to it")
        self.scope[out.name] = self.tile(out) + product if stmt.acc else product

    # ---- memory

    def place(self, tensor: str, index: tuple[ir.Index, ...], descriptor: bool) -> tuple[Memory, Array, Place]:
        memory = self.memory[tensor]
        if memory.array is None:
            raise Undefined(f"{self.kernel.name} touches {tensor}, which is not there without {memory.tensor.flag}")
        positions, kept, there = [], [], []
        for at, extent in zip(index, memory.array.shape, strict=True):
            along, keep = self.span(tensor, at) if isinstance(at, ir.Span) else self.single(at)
            inside = (along >= 0) & (along < extent)
            positions.append(along)
            there.append(inside)
            kept.append(inside if descriptor else keep)
        # a mask without a position leaves nothing to reach, whatever the other dimensions say
        if all(keep.any() for keep in kept):
            for dim, along, keep, inside in zip(memory.tensor.dims, positions, kept, there, strict=True):
                if (keep & ~inside).any():
                    raise OutOfBounds(
                        f"{self.kernel.name}, program {self.number}: {tensor} has no {dim} {along[keep & ~inside][0]}, "
                        f"its shape is {memory.array.shape}; mask it"
                    )
        slots = [np.flatnonzero(keep & inside) for keep, inside in zip(kept, there, strict=True)]
        where = np.ix_(*(along[slot] for along, slot in zip(positions, slots, strict=True)))
        axes = tuple(at.axis for at in index if isinstance(at, ir.Span))
        extents = tuple(len(along) for along in positions)
        if descriptor:
            memory.block = memory.block or extents
            if memory.block != extents:
                raise Misfit(f"the descriptor of {tensor} has a block of {memory.block}; here it is one of {extents}")
        memory.touch(where, self.number)
        return memory, memory.array, Place(where, np.ix_(*slots), extents, axes)

    def span(self, tensor: str, at: ir.Span) -> tuple[Array, Array]:
        """Positions of a span and which of them its mask keeps."""
        offsets, size = self.over(at.offsets, (at.axis,)), integer(at.size, self.scope)
        keep = self.over(at.mask, (at.axis,)) if at.mask else np.full(size, True)
        if len(offsets) != size or len(keep) != size:
            raise Misfit(f"{tensor}: {size} positions of {at}, with {len(offsets)} offsets and a mask of {len(keep)}")
        return integer(at.origin, self.scope) + offsets, keep

    def single(self, at: str) -> tuple[Array, Array]:
        return np.array([integer(at, self.scope)]), np.array([True])

    def load(self, stmt: ir.Load) -> None:
        memory, array, place = self.place(stmt.tensor, stmt.index, stmt.descriptor)
        if sorted(place.axes) != sorted(stmt.out.axes):
            raise Misfit(f"{stmt.out.name} is over {stmt.out.axes}; its place in {stmt.tensor} is over {place.axes}")
        whole = np.zeros(place.extents, np.int64 if memory.tensor.dtype in ("int", "index") else np.float64)
        whole[place.slots] = array[place.where]
        tile = whole.reshape(place.tile(stmt.index))
        tile = np.transpose(tile, [place.axes.index(axis) for axis in stmt.out.axes])
        self.scope[stmt.out.name] = tile if stmt.out.axes else tile[()]

    def store(self, stmt: ir.Store) -> None:
        memory, array, place = self.place(stmt.tensor, stmt.index, stmt.descriptor)
        if not memory.tensor.out:
            raise BrokenPlan(f"{self.kernel.name} stores to {stmt.tensor}, which is no output")
        tile = self.tile(stmt.value)
        if sorted(place.axes) != sorted(stmt.value.axes):
            raise Misfit(
                f"{stmt.value.name} is over {stmt.value.axes}; its place in {stmt.tensor} is over {place.axes}"
            )
        tile = np.transpose(tile, [stmt.value.axes.index(axis) for axis in place.axes])
        if tile.shape != (wanted := place.tile(stmt.index)):
            raise Misfit(f"{stmt.value.name} is {tile.shape}; its place in {stmt.tensor} is {wanted}")
        array[place.where] = tile.reshape(place.extents)[place.slots]


@lru_cache(maxsize=4096)
def _compiled(formula: sympy.Expr) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], tuple[str, ...], Any]:
    """Names and axes of the tiles that a formula reads, names of its scalars, and its function of both, in order."""
    terms = sorted(formula.atoms(sympy.Indexed), key=str)
    # held apart by symbols of their own: with numbers a condition may be decided, and what it chose from lost
    held = {term: sympy.Dummy(real=True) for term in terms}
    scalars = sorted(formula.xreplace(held).free_symbols - set(held.values()), key=str)
    names = tuple((name_of(term), axes_of(term)) for term in terms)
    # the same formula over the variables of another piece or kernel is the same function
    places = sympy.symbols(f"v0:{len(terms) + len(scalars)}", real=True)
    general: Any = formula.xreplace(dict(zip((*terms, *scalars), places, strict=True)))
    return names, tuple(map(str, scalars)), function(places, general)


__all__ = ["BrokenPlan", "Misfit", "OutOfBounds", "Race", "Undefined", "backward", "forward", "run"]
