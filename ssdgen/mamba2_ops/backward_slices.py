"""What the slices of a backward pass keep, and the launches of each.  config, Shapes -> launchers.backward

slices.py says in which rows and heads a pass can go; here stands what that takes in memory, how many programs a slice
has for it, and which parts of the tensors its kernels get.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from typing import Any

import torch

from . import memory
from .backward_shapes import Shape, Shapes
from .kernel_shapes import dtype_of_states
from .launching import Sizes
from .slices import Cut, Slice, cut_into, parts_of_slice, pieces_of, segments_of_slice, slices, within
from .tiles import CONSUMER_ROWS


class Slicing:
    """The slices of a package's backward passes.

    axes: tensor -> along which of its axes rows (b), heads (h) and groups (g) lie; v: groups of a slice's heads, r: its
    rows.  by_groups: heads that share B and C are added up by programs; in other layouts slices are of rows alone.
    """

    def __init__(self, shapes: Shapes, axes: dict[str, str], by_groups: bool) -> None:
        self._shapes, self._axes, self._by_groups = shapes, axes, by_groups

    def cut(self, sizes: Sizes, config: dict[str, Any], limit: int, by_chunks: bool) -> Cut:
        """How many rows and heads a slice has: what the config says, or less where more is kept than may be."""
        names = sizes.names
        batch = names["batch"]
        # heads of other layouts share operands in other ways
        pieces = pieces_of(names["nheads"], names["ngroups"]) if self._by_groups else [1]
        found = cut_into(config.get("slices", 1), batch, pieces)
        if limit and self._kept_bytes(sizes, config, found, by_chunks) > limit:
            kept = partial(self._kept_bytes, sizes, config, by_chunks=by_chunks, fill=True)
            found = within(limit, found, batch, pieces, kept)
            least = kept(found)
            names |= {"fill": True, "room": max(0, limit - least)}
            if least > limit:
                memory.warn(limit, least)
        return found

    def launch(
        self,
        sizes: Sizes,
        part: Slice,
        shape: Shape,
        slots: dict[str, str],
        each: int = 1,
        **names: Any,
    ) -> None:
        """Add a launch for a slice: of the rows and heads in it, in the tensors of all.

        each: programs of a group.  names: integers and constants beside those of the plan and of the shape.
        """
        module, numbers, blocks = shape
        everything = sizes.names
        whole = {"b": everything["batch"], "h": everything["nheads"], "g": everything["ngroups"], "r": 0}
        whole["v"] = everything["ngroups"] * part.shares
        first, count = part.groups
        own = {"b": part.rows, "h": part.heads, "g": part.groups, "r": (0, part.rows[1])}
        own["v"] = (first * part.shares + part.share, count)

        def part_of(slot: str) -> str:
            axes = enumerate(self._axes.get(slot, ""))
            return sizes.view(slot, *((axis, *own[at]) for axis, at in axes if at != "." and own[at] != (0, whole[at])))

        grid = {"batch": part.rows[1], "nheads": part.heads[1], "ngroups": part.groups[1], "parts": each}
        sizes.launch(module, numbers, slots, part_of, grid, **{"ngroups": whole["v"], **names, **blocks})

    def parts(self, sizes: Sizes, config: dict[str, Any], cut: Cut) -> int:
        """Programs that share out the heads of a group, or of a slice of one; each leaves a part of d_B and d_C."""
        names = sizes.names
        heads = names["nheads"] // names["ngroups"] // names["shares"]
        if names["fill"]:
            across = cut.rows * max(1, names["ngroups"] // cut.pieces) * names["nchunks"]
            return parts_of_slice(heads, names["shares"], across, _multiprocessors(sizes.tensors["x"].device))
        parts = config.get("parts", 1)
        return next(count for count in range(min(parts, heads), 0, -1) if heads % count == 0)

    def slots(self, sizes: Sizes, config: dict[str, Any], cut: Cut) -> int:
        """Parts of d_B and d_C that are there at a time, 0 where the only one is the gradient: those of two slices."""
        parts, shares = self.parts(sizes, config, cut), sizes.names["shares"]
        return 0 if parts * shares == 1 else parts * min(2, shares)

    def _kept_bytes(self, sizes: Sizes, config: dict[str, Any], cut: Cut, by_chunks: bool, fill: bool = False) -> int:
        """What the states of a slice and their adjoints take, those between segments, and the parts of d_B and d_C.

        fill: with the parts that suit the slice, whatever the config says.  Segments are those of the config.
        """
        names, shapes = sizes.names, self._shapes
        with _assumed(sizes, cut, fill):
            kernels = [shapes.states(sizes, config, "chunk_states")]
            if by_chunks:
                kernels += [shapes.states(sizes, config, "chunk_adjoints"), shapes.gradients(sizes, config)]
            else:
                kernels += [shapes.walk(sizes, config, True), shapes.groups(sizes, config)]
            states = prod(_kept_shape(sizes, cut, kernels))
            found = 2 * states * dtype_of_states(config).itemsize
            if names["nsegments"] > 1:
                found += names["nsegments"] * _bytes_of_segment(sizes, config)
            if self._by_groups and (names["NEEDS_B"] or names["NEEDS_C"]):
                shares = names["shares"] if names["shares"] > 1 else 0
                apart = self.slots(sizes, config, cut) if by_chunks else shares
                rows = cut.rows if by_chunks else names["batch"]
                found += 4 * 2 * apart * rows * names["seqlen"] * names["ngroups"] * names["DSTATE"]
        return found


def segment_of(sizes: Sizes, config: dict[str, Any], cut: Cut) -> int:
    """Tokens of a segment: the config's, or where memory is limited what suits the slices, as far as it allows."""
    names = sizes.names
    length, chunk, own = names["segment_len"], names["CHUNK"], names["nsegments"]
    if not names["fill"]:
        return length
    walks = cut.rows * (names["nheads"] // cut.pieces) * -(-names["HEADDIM"] // CONSUMER_ROWS)
    wanted = segments_of_slice(walks, names["nchunks"], own, _multiprocessors(sizes.tensors["x"].device))
    # those of all rows and heads are there at a time
    allowed = names["room"] // _bytes_of_segment(sizes, config) + (own if own > 1 else 0)
    count = min(wanted, allowed)
    # whole chunks: where one is a segment all are kept, so two at least
    return max(2, -(-names["nchunks"] // count)) * chunk if count > own else length


def _bytes_of_segment(sizes: Sizes, config: dict[str, Any]) -> int:
    """What the states that enter a segment take, and the adjoints of those that leave it, of all rows and heads."""
    names = sizes.names
    states = prod(names[name] for name in ("batch", "nheads", "HEADDIM", "DSTATE"))
    return 2 * states * dtype_of_states(config).itemsize


def keep(sizes: Sizes, config: dict[str, Any], name: str, cut: Cut, made: list[Shape]) -> None:
    """Where the states of each slice go, or their adjoints, by the kernels that write and read them."""
    sizes.scratch(name, _kept_shape(sizes, cut, made), dtype_of_states(config))


def _kept_shape(sizes: Sizes, cut: Cut, made: list[Shape]) -> tuple[int, ...]:
    """Of the states of a slice.  Kernels without descriptors step over the heads of all slices."""
    names = sizes.names
    described = all(hasattr(module, "blocks") for module, *_ in made)
    heads = names["nheads"] // cut.pieces if described else names["nheads"]
    return (cut.rows, names["nchunks"], heads, names["HEADDIM"], names["DSTATE"])


@contextmanager
def _assumed(sizes: Sizes, cut: Cut, fill: bool) -> Iterator[None]:
    """With the names as they would be for such slices."""
    names = sizes.names
    inner = slices(cut, names["batch"], names["nheads"], names["ngroups"])[0]
    before = {name: names[name] for name in ("shares", "fill", "pieces")}
    names |= {"shares": inner.shares, "fill": fill, "pieces": cut.pieces}
    try:
        yield
    finally:
        names |= before


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
