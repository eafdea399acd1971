"""Which kernel each step of a backward pass is, with its numbers and tiles.  config, sizes -> launchers.backward

A config says what it wishes; what a package, a device or the sizes of a call do not have falls back to what they have.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .errors import OptionError
from .kernel_shapes import can_specialise, constants_of, dtype_of_states, left_out, narrow, numbers_of
from .launching import Sizes
from .tiles import CONSUMER_ROWS, LARGEST, SMALLEST, consumer_tiles, cut, next_power_of_two

# module, numbers and tiles
Shape = tuple[ModuleType, dict[str, Any], dict[str, int]]

# of dstate, what each program that adds up heads has where its warps are specialised
SHARED_DSTATE = 128

# numbers of a kernel whose warps cannot be specialised as they were to be
WITHOUT_CONSUMERS = {
    "reverse_walk": {"share": 32, "num_warps": 4, "num_stages": 1},
    "group_gradients": {"share": SHARED_DSTATE, "num_warps": 8, "num_stages": 1},
    "chunk_gradients": {"num_warps": 8, "num_stages": 1},
}

# numbers of walks that make states, by tiles of dstate, where they were not to be specialised by warps and have to be
DESCRIBED = {
    1: {"consumers": 1, "num_stages": 2, "maxnreg": 128},
    2: {"consumers": 2, "num_stages": 2},
}

# chunks of a head whose gradients a program makes one after the other, where every head is a group
CHUNKS_OF_RUN = 8

# what walks that make states read by descriptors
OPERANDS = {
    "segment_state": ("x", "B"),
    "chunk_states": ("x", "B"),
    "segment_adjoint": ("d_y", "C"),
    "chunk_adjoints": ("d_y", "C"),
}


class Shapes:
    """The kernels of a package.

    tables: kernel -> tiles of dstate and, where a program has all of it, of headdim -> module; "_blocks": of the one
    that programs do not share out.  consumers: kernel -> (consumers, tiles) -> module specialised by warps.
    """

    def __init__(
        self, tables: dict[str, dict[Any, ModuleType]], consumers: dict[str, dict[tuple[int, int], ModuleType]]
    ) -> None:
        self._tables, self._consumers = tables, consumers

    def states(self, sizes: Sizes, config: dict[str, Any], kernel: str) -> Shape:
        """Of a walk that makes states, whose programs share out headdim.  kernel: one of OPERANDS."""
        names = sizes.names
        block, tiles = consumer_tiles(names["DSTATE"])
        if names["fill"] and (names["pieces"] > 1 or kernel not in config["kernels"]):
            # for want of memory: only with descriptors does a slice of heads take less, and segments are not the
            # config's
            described = {**config, "kernels": {**config["kernels"], kernel: DESCRIBED[min(tiles, 2)]}}
            operands = OPERANDS[kernel]
            if not _wanted(sizes, config, kernel, operands) and _wanted(sizes, described, kernel, operands):
                config = described
        numbers = numbers_of(config, kernel)
        if consumers := _wanted(sizes, config, kernel, OPERANDS[kernel]):
            # what goes through shared memory has the operands' dtype
            if kernel in ("segment_state", "segment_adjoint") or dtype_of_states(config) is sizes.tensors["x"].dtype:
                module = self._consumers.get(kernel, {}).get((consumers, tiles))
                if module is not None:
                    numbers = {"num_stages": numbers.get("num_stages", 2), "maxnreg": numbers.get("maxnreg", 0)}
                    return module, numbers, {"BLOCK_N": block, "BLOCK_P": CONSUMER_ROWS}
        if numbers.get("consumers"):
            # what fits anywhere, where warps cannot be specialised
            numbers = {"num_stages": 1}
        block = max(SMALLEST, min(numbers.get("block_p", 64), next_power_of_two(names["HEADDIM"])))
        if block < 64 or names["CHUNK"] < 64:
            numbers = narrow(numbers, sizes.tensors["x"])
        n_tiles = cut(names["DSTATE"])
        module = self._there(kernel, len(n_tiles), sizes)
        return module, numbers, {**constants_of("BLOCK_N", n_tiles), "BLOCK_P": block}

    def gradients(self, sizes: Sizes, config: dict[str, Any]) -> Shape:
        """Of the kernel that makes a chunk's gradients."""
        names, numbers = sizes.names, numbers_of(config, "chunk_gradients")
        block, tiles = consumer_tiles(names["DSTATE"])
        module = self._specialised(sizes, config, "chunk_gradients", 1)
        if module is not None and tiles == 1 and names["HEADDIM"] == CONSUMER_ROWS:
            by_head = self._consumers.get("chunk_gradients_by_head", {}).get((2, 1))
            by_head = by_head if names["ngroups"] == names["nheads"] else None
            # the gate has a tile of its own, or every stage a B and a C: either leaves room for two stages
            stages = min(numbers.get("num_stages", 2), 2 if names["HAS_Z"] or by_head else 3)
            numbers = {"num_stages": stages, "maxnreg": numbers.get("maxnreg", 0)}
            names["run"], module = CHUNKS_OF_RUN, by_head or module
            return module, numbers, {"BLOCK_N": block, "BLOCK_P": CONSUMER_ROWS}
        if numbers.get("consumers"):
            numbers = WITHOUT_CONSUMERS["chunk_gradients"]
        return self._whole("chunk_gradients", sizes, numbers)

    def walk(self, sizes: Sizes, config: dict[str, Any], store: bool) -> Shape:
        """Of the walk back; `p_blocks` says how many programs share out headdim.

        store: it keeps the adjoints of the states.
        """
        names, numbers = sizes.names, numbers_of(config, "reverse_walk")
        n_tiles = 2 * consumer_tiles(names["DSTATE"])[1]
        shape = "reverse_walk_left" if numbers.get("left") else "reverse_walk"
        module = self._specialised(sizes, config, "reverse_walk", n_tiles, shape)
        walks = names["nheads"] // names["ngroups"] // names["shares"] * -(-names["HEADDIM"] // CONSUMER_ROWS)
        if module is not None and store and not names["HAS_Z"] and walks % numbers["consumers"] == 0:
            names["p_blocks"] = -(-names["HEADDIM"] // CONSUMER_ROWS)
            numbers = {"num_stages": min(numbers.get("num_stages", 2), 3 if names["DSTATE"] <= SHARED_DSTATE else 2)}
            return module, numbers, {"BLOCK_N": CONSUMER_ROWS, "BLOCK_P": CONSUMER_ROWS}
        if numbers.get("consumers"):
            numbers = WITHOUT_CONSUMERS["reverse_walk"]
        if block := _share(names["HEADDIM"], numbers):
            n_tiles = _halves(names["DSTATE"], numbers.get("block_n", LARGEST))
            names["p_blocks"] = -(-names["HEADDIM"] // block)
            module = self._there("reverse_walk_blocks", len(n_tiles), sizes)
            return module, _small(numbers, block, sizes), {**constants_of("BLOCK_N", n_tiles), "BLOCK_P": block}
        return self._whole("reverse_walk", sizes, numbers)

    def groups(self, sizes: Sizes, config: dict[str, Any]) -> Shape:
        """Of what adds up the heads; `n_blocks` says how many programs share out dstate."""
        names, numbers = sizes.names, numbers_of(config, "group_gradients")
        p_tiles, block = -(-names["HEADDIM"] // CONSUMER_ROWS), min(consumer_tiles(names["DSTATE"])[0], SHARED_DSTATE)
        if names["HAS_Z"] and p_tiles > 1:
            # the adjoint of y with the gate has tiles of its own
            block = min(block, SHARED_DSTATE // 2)
        module = self._specialised(sizes, config, "group_gradients", p_tiles)
        if module is not None:
            names["n_blocks"] = -(-names["DSTATE"] // block)
            numbers = {"num_stages": min(numbers.get("num_stages", 2), 2 if p_tiles > 1 else 3)}
            return module, numbers, {"BLOCK_N": block, "BLOCK_P": CONSUMER_ROWS}
        if numbers.get("consumers"):
            numbers = WITHOUT_CONSUMERS["group_gradients"]
        if block := _share(names["DSTATE"], numbers):
            p_tiles = _halves(names["HEADDIM"], numbers.get("block_p", LARGEST))
            names["n_blocks"] = -(-names["DSTATE"] // block)
            module = self._there("group_gradients_blocks", len(p_tiles), sizes)
            return module, _small(numbers, min(p_tiles), sizes), {**constants_of("BLOCK_P", p_tiles), "BLOCK_N": block}
        return self._whole("group_gradients", sizes, numbers)

    def _specialised(
        self, sizes: Sizes, config: dict[str, Any], kernel: str, tiles: int, shape: str = ""
    ) -> ModuleType | None:
        """The module with as many consumers as the config wants, if it can run; shape: its table, if not the kernel's.

        What goes through shared memory has the operands' dtype.
        """
        module = self._consumers.get(shape or kernel, {}).get((numbers_of(config, kernel).get("consumers", 0), tiles))
        possible = (
            module is not None
            and _wanted(sizes, config, kernel, ("x", "B", "C", "d_y"))
            and dtype_of_states(config) is sizes.tensors["x"].dtype
        )
        return module if possible else None

    def _whole(self, kernel: str, sizes: Sizes, numbers: dict[str, Any]) -> Shape:
        """Of a kernel whose programs have all of headdim.

        block_n, block_p: what is wider is cut in two.
        """
        names = sizes.names
        n_tiles = _halves(names["DSTATE"], numbers.get("block_n", LARGEST))
        p_tiles = _halves(names["HEADDIM"], numbers.get("block_p", LARGEST))
        module = self._there(kernel, (len(n_tiles), len(p_tiles)), sizes)
        tiles = {**constants_of("BLOCK_N", n_tiles), **constants_of("BLOCK_P", p_tiles)}
        return module, _small(numbers, min(p_tiles), sizes), tiles

    def _there(self, kernel: str, tiles: Any, sizes: Sizes) -> ModuleType:
        """The module for so many tiles; a package for fixed sizes may lack it.  Errors: OptionError."""
        module = self._tables.get(kernel, {}).get(tiles)
        if module is None:
            raise OptionError(left_out(sizes.names, "backward kernel"))
        return module


def _wanted(sizes: Sizes, config: dict[str, Any], kernel: str, operands: tuple[str, ...]) -> int:
    """How many consumers a program has; 0 where its warps cannot be specialised."""
    wanted = numbers_of(config, kernel).get("consumers", 0)
    return wanted if wanted and can_specialise(sizes, operands) else 0


def _share(extent: int, numbers: dict[str, Any]) -> int:
    """The tile of an extent that each program has; 0 where one has all of it."""
    if not numbers.get("share"):
        return 0
    block = max(SMALLEST, next_power_of_two(numbers["share"]))
    return block if block < extent else 0


def _small(numbers: dict[str, Any], p_tile: int, sizes: Sizes) -> dict[str, Any]:
    """The numbers for tiles of so much headdim.

    With all registers of a thread, said aloud: where they do not do, ptxas otherwise takes 32 or 40 of them.
    """
    if p_tile < 64 or sizes.names["CHUNK"] < 64:
        numbers = narrow(numbers, sizes.tensors["x"])
    return {"maxnreg": 255, **numbers} if numbers.get("num_warps", 4) <= 8 else numbers


def _halves(extent: int, block: int) -> tuple[int, ...]:
    """The tiles of an extent, two where it is wider than `block`."""
    return cut(extent, max(SMALLEST, block, next_power_of_two(-(-extent // 2))))
