"""What a launcher does: the buffers of a schedule and its kernels in order, on whatever runs them.  -> interpret

single_pass  step sizes, then one program per head walks all chunks
segments     step sizes, the state each segment leaves, the scan over segments, then the walk from the true states
split        step sizes, the state each chunk leaves, the scan over chunks, then the output chunk by chunk
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..spec.layer import Layer
from . import tiles
from .schedules import common, diagonal, passing, prepare, scan, walk
from .schedules.scan import Scan
from .schedules.walk import Walk

Schedule = Literal["single_pass", "segments", "split"]
Arrays = Mapping[str, Any]

OPTIONS = ("D", "z", "dt_bias", "initial_states", "seq_idx", "cu_seqlens")


@dataclass
class Call:
    """Tensors, sizes and options of one call.

    run: runs a kernel, as interpret.run does; empty: makes an array of the given extents.
    """

    layer: Layer
    tensors: dict[str, Any]
    sizes: dict[str, int]
    constants: dict[str, int]
    flags: dict[str, bool]
    reals: dict[str, float]
    run: Callable[..., None]
    empty: Callable[..., Any]

    @classmethod
    def of(cls, layer: Layer, inputs: Arrays, chunk: int, constants: dict[str, int], run: Any, empty: Any) -> Call:
        """inputs: the arguments of spec.oracle by name; constants: tile sizes other than the least that will do."""
        tensors = {name: inputs.get(name) for name in ("x", "dt", "A", "B", "C", *OPTIONS)}
        batch, seqlen, nheads = inputs["dt"].shape
        headdim, dstate = inputs["x"].shape[3], inputs["B"].shape[3]
        shared = [inputs[name].shape[2] for name in ("x", "B", "C") if not layer.layout.per_head(name)]
        flags = {f"HAS_{name.upper()}": tensors[name] is not None for name in OPTIONS}
        flags |= {"DT_SOFTPLUS": layer.dt_softplus, "HAS_ENTERING": flags["HAS_INITIAL_STATES"], "STORE_FINAL": True}
        flags["HAS_SUMMARIES"] = flags["D_BY_HEAD"] = False
        sizes = {
            "batch": batch,
            "seqlen": seqlen,
            "nheads": nheads,
            "ngroups": shared[0] if shared else nheads,
            "padded": -(-seqlen // chunk) * chunk,
            "nchunks": -(-seqlen // chunk),
            "sequences": len(inputs["cu_seqlens"]) - 1 if flags["HAS_CU_SEQLENS"] else batch,
            "state_size": headdim * dstate,
            "nsegments": 1,
            "nentering": 1,
            "nsummaries": 0,
            "segment_len": seqlen,
        }
        half = max(1, chunk // 2)
        least = {"HEADDIM": headdim, "DSTATE": dstate, "CHUNK": chunk, "BLOCK_M": half, "BLOCK_K": half}
        least |= {"BLOCK_H": min(4, tiles.next_power_of_two(nheads)), "BLOCK": 32}
        low, high = inputs.get("dt_limit", (0.0, float("inf")))
        tensors["D_head"] = inputs["D"] if flags["HAS_D"] and inputs["D"].ndim == 1 else None
        if flags["HAS_D"] and inputs["D"].ndim == 1:
            tensors["D"] = _repeated(inputs["D"], empty(nheads, headdim))
        tensors["y"] = empty(batch, seqlen, nheads, headdim)
        tensors["final_states"] = empty(sizes["sequences"], nheads, headdim, dstate)
        return cls(layer, tensors, sizes, least | constants, flags, {"dt_min": low, "dt_max": high}, run, empty)

    def forward(
        self, schedule: Schedule, segment: int | None, shape: Walk | Scan | None, joined: bool = False
    ) -> tuple[Any, Any]:
        """y and the final states.  Raises ValueError for what no launcher would launch.

        joined: the walks of `segments` go through the summaries before theirs themselves, without `state_passing`.
        """
        match schedule, shape:
            case "single_pass", Walk() | None:
                self._single_pass(shape or Walk())
            case "segments", Walk() | None:
                self._segments(shape or Walk(), 2 * self.constants["CHUNK"] if segment is None else segment, joined)
            case "split", Scan() | None:
                self._split(shape or Scan())
            case _:
                raise ValueError(f"no {schedule} with {shape}; single_pass and segments take a Walk, split a Scan")
        return self.tensors["y"], self.tensors["final_states"]

    # ---- schedules

    def _single_pass(self, shape: Walk) -> None:
        self._walk(replace(shape, outputs=True), {**self.steps(shape.prepared), "entering": self.initial()})

    def _segments(self, shape: Walk, segment: int, joined: bool) -> None:
        steps = self.steps(shape.prepared)
        states = replace(shape, outputs=False, two_terms=False, ahead=False, apart=False, keeps=False)
        if joined:
            if not shape.consumers:
                raise ValueError(f"{shape.name} takes the states that enter from state_passing; give it consumers")
            self.cut(segment)
            whole = self.sizes["nsegments"]
            # nobody needs the summary of the last segment
            self.sizes |= {"nsegments": whole - 1, "nsummaries": whole - 1}
            summaries = self.summaries(states, steps)
            self.sizes["nsegments"] = whole
            tensors = {**steps, **summaries, "entering": self.initial()}
            self._walk(replace(shape, outputs=True), tensors, HAS_SUMMARIES=True)
            return
        entering = self._entering(states, steps, segment)
        # the state that enters is always there now, and the last one is stored already
        tensors = {**steps, "entering": entering, "final_states": None}
        self._walk(replace(shape, outputs=True), tensors, HAS_ENTERING=True, STORE_FINAL=False)

    def _split(self, shape: Scan) -> None:
        steps = self.steps(prepared=True)
        states = Walk(outputs=False, n_tiles=shape.n_tiles, p_tiles=shape.p_tiles)
        entering = self._entering(states, steps, self.constants["CHUNK"])
        for block in ("BLOCK_M", "BLOCK_K"):
            if self.constants["CHUNK"] % self.constants[block]:
                raise ValueError(f"{block} is {self.constants[block]}; it must divide the chunk")
        self.launch(scan.kernel(self.layer, shape), {**steps, "entering": entering})

    # ---- steps of a schedule

    def steps(self, prepared: bool) -> Arrays:
        """Step sizes as a walk takes them: as they were given, or with their running sums, padded to whole chunks."""
        if not prepared:
            return {}
        if self.flags["HAS_CU_SEQLENS"]:
            raise ValueError("packed sequences start anywhere; their step sizes cannot be prepared")
        buffers = {name: self.buffer("batch", "nheads", "padded") for name in ("dt", "dA_cs")}
        self.launch(prepare.kernel(self.layer), {"dt_raw": self.tensors["dt"], **buffers})
        return buffers

    def diagonal(self) -> Arrays:
        """What each token's C and B give together."""
        made = self.buffer(*common.diagonal_tensor(self.layer).dims)
        tensors = {**self.tensors, "CB_diagonal": made}
        # in one tile of dstate, however many the walk has
        whole = {**self.constants, "BLOCK_N": tiles.next_power_of_two(self.constants["DSTATE"])}
        self.run(diagonal.kernel(self.layer), tensors, self.sizes, whole, self.flags, self.reals)
        return {"CB_diagonal": made}

    def _entering(self, shape: Walk, steps: Arrays, segment: int) -> Any:
        """The state that enters each segment; the final states are stored on the way."""
        self.cut(segment)
        self.sizes["nentering"] = self.sizes["nsegments"]
        found = self.summaries(shape, steps)
        states = {name: self.tensors[name] for name in ("initial_states", "final_states")}
        states["summary"] = found["summary"]
        flattened = {name: state if state is None else flat(state) for name, state in states.items()}
        self.launch(passing.kernel(self.layer), {**flattened, "total": found["total"]})
        return found["summary"]

    def initial(self) -> Any:
        """The initial states as the states that enter the only segment."""
        initial = self.tensors["initial_states"]
        return None if initial is None else initial[:, None]

    def cut(self, segment: int) -> None:
        """Segments of so many tokens."""
        if segment < 1 or segment % self.constants["CHUNK"]:
            raise ValueError(f"the segment is {segment}; it must be a multiple of the chunk, {self.constants['CHUNK']}")
        self.sizes |= {"nsegments": -(-self.sizes["seqlen"] // segment), "segment_len": segment}

    def summaries(self, shape: Walk, steps: Arrays) -> dict[str, Any]:
        """What each segment adds to the state and how much of an entering one survives it."""
        found = {
            "summary": self.buffer("batch", "nsegments", "nheads", "HEADDIM", "DSTATE"),
            "total": self.buffer("batch", "nsegments", "nheads"),
        }
        self._walk(shape, {**steps, **found})
        return found

    def _walk(self, shape: Walk, tensors: Arrays, **flags: bool) -> None:
        per_head = all(self.layer.layout.per_head(name) for name in ("x", "B", "C"))
        together = self.sizes["nheads"] // (1 if per_head else self.sizes["ngroups"])
        if together % shape.heads:
            raise ValueError(f"{shape.heads} heads per program do not divide the {together} heads of a group")
        if self.constants["CHUNK"] % shape.row_tiles:
            raise ValueError(f"{shape.row_tiles} row tiles do not divide the chunk, {self.constants['CHUNK']}")
        rows = {"ROWS": self.constants["CHUNK"] // shape.row_tiles}
        if shape.consumers and shape.n_tiles > 1:
            block = -(-self.constants["DSTATE"] // shape.n_tiles)
            rows["BLOCK_N"] = max(tiles.SMALLEST, tiles.next_power_of_two(block))
        if shape.apart:
            tensors = {**tensors, **self.diagonal()}
            if self.tensors["D_head"] is not None:
                flags |= {"D_BY_HEAD": True, "HAS_D": False}
        if shape.keeps:
            kept = self.buffer("batch", "nchunks", "nheads", "HEADDIM", "DSTATE")
            tensors = {**tensors, "states": self.tensors.setdefault("states", kept)}
        self.launch(walk.kernel(self.layer, shape), tensors, rows, **flags)

    def launch(self, kernel: Any, tensors: Arrays, constants: Mapping[str, int] | None = None, **flags: bool) -> None:
        constants = {**self._tiles(kernel.constants), **(constants or {}), **self.constants}
        self.run(kernel, {**self.tensors, **tensors}, self.sizes, constants, {**self.flags, **flags}, self.reals)

    def _tiles(self, names: tuple[str, ...]) -> dict[str, int]:
        """The least tile sizes of dstate and headdim that will do, for as many tiles as the kernel has."""
        found: dict[str, int] = {}
        for stem, extent in (("BLOCK_N", self.constants["DSTATE"]), ("BLOCK_P", self.constants["HEADDIM"])):
            wanted = [name for name in names if name.startswith(stem)]
            sizes = tiles.cut(extent)
            if len(wanted) == 1:
                sizes = (max(tiles.SMALLEST, tiles.next_power_of_two(extent)),)
            if len(wanted) != len(sizes) and not set(wanted) <= set(self.constants):
                raise ValueError(f"an extent of {extent} is cut into {sizes}, not into {len(wanted)} tiles")
            found |= dict(zip(wanted, sizes, strict=False))
        return found

    def buffer(self, *dims: str) -> Any:
        return self.empty(*({**self.sizes, **self.constants}[dim] for dim in dims))


def _repeated(skip: Any, buffer: Any) -> Any:
    """A skip weight per head as one per head and column."""
    buffer[:] = skip[:, None]
    return buffer


def flat(states: Any) -> Any:
    """The last two dimensions as one, on the same memory."""
    return states.reshape(*states.shape[:-2], -1)


__all__ = ["Call", "Schedule", "flat"]
