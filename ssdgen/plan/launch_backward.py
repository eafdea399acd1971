"""What the launcher of the backward pass does: its buffers and kernels in order.  launch.Call -> interpret

The states that enter the chunks are made first, in one walk, or by segments: each segment has a program, and what
enters and leaves the segments is made before.  Where a segment is a chunk that is all that is needed.  Then, by
schedule:

walk    one program per head (and segment) goes back through the chunks and makes d_x with the adjoint of the state in
        registers; the heads of a group are added up afterwards
chunks  the adjoints of the states are made as the states are; then everything else, chunk by chunk
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from . import tiles
from .ir import Kernel
from .launch import Arrays, Call, flat
from .schedules import adjoint, consumers, gradients, groups, passing, reverse, states, steps
from .schedules.gradients import Gradients
from .schedules.groups import Groups
from .schedules.reverse import Reverse
from .schedules.states import States
from .schedules.steps import Steps
from .schedules.walk import Walk

DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
# inputs whose gradients need what decays and step sizes get
OF_STEPS = frozenset({"dt", "A", "dt_bias"})


BackwardSchedule = Literal["walk", "chunks"]


@dataclass(frozen=True)
class How:
    """How a backward pass is cut.

    segment: tokens, None for the whole sequence; parts: programs that share out the heads of a group in "chunks";
    specialised: with the kernels that are specialised by warps, where there are such; block_p, block_n: tiles of
    headdim and of dstate that programs share out in "walk", 0 for all in one; left, three: of these kernels, as in
    `Reverse` and `Gradients`.
    """

    schedule: BackwardSchedule = "walk"
    segment: int | None = None
    parts: int = 1
    specialised: bool = False
    block_p: int = 0
    block_n: int = 0
    left: bool = False
    three: bool = False


def backward(
    call: Call, inputs: Arrays, d_y: Any, d_final_states: Any, how: How, needs: frozenset[str] | None
) -> dict[str, Any]:
    """Gradients of the inputs in `needs`, or of all that are there."""
    there = frozenset(name for name in DIFFERENTIABLE if inputs.get(name) is not None)
    run = _Backward(call, d_y, d_final_states, there if needs is None else needs & there, how)
    run.go()
    return run.results(inputs)


class _Backward:
    """One call.  needs: inputs whose gradients are wanted, all of them there."""

    def __init__(self, call: Call, d_y: Any, d_final_states: Any, needs: frozenset[str], how: How) -> None:
        self.call, self.layer, self.needs, self.how = call, call.layer, needs, how
        call.tensors |= {"d_y": d_y, "d_final_states": d_final_states, "raw_dt": call.tensors["dt"]}
        call.sizes["nchunks"] = call.sizes["padded"] // call.constants["CHUNK"]
        self.n_tiles = len(tiles.cut(call.constants["DSTATE"]))
        self.p_tiles = len(tiles.cut(call.constants["HEADDIM"]))
        self.block_p, self.block_n = how.block_p, how.block_n
        self.specialised = how.schedule == "walk" and how.specialised and adjoint.loops(self.layer)
        if self.specialised:
            # consumers have a tile each, in pairs; headdim goes in two where heads are added up
            half = max(tiles.SMALLEST, tiles.next_power_of_two(-(-call.constants["HEADDIM"] // 2)))
            self.block_p, self.block_n = self.block_p or half, self.block_n or tiles.SMALLEST
        # without decays nothing is a sum over states
        self.three = how.three and self.layer.family.decays
        self.blocks = how.schedule == "walk" and bool(self.block_p or self.block_n)
        for name, extent, block in (("p_blocks", "HEADDIM", self.block_p), ("n_blocks", "DSTATE", self.block_n)):
            call.sizes[name] = -(-call.constants[extent] // block) if block else 1
        call.flags |= {f"NEEDS_{name.upper()}": name in needs for name in ("x", "z", "D", "B", "C", "A", "dt_bias")}
        # of no account where kernels run one after the other
        call.flags |= {"NEEDS_DT": bool(needs & OF_STEPS), consumers.BESIDE: False}

    def go(self) -> None:
        call, sizes, segment = self.call, self.call.sizes, self.how.segment
        chunk = call.constants["CHUNK"]
        call.cut(-(-sizes["seqlen"] // chunk) * chunk if segment is None else segment)
        split, several = sizes["segment_len"] == chunk, sizes["nsegments"] > 1
        call.tensors |= {**call.steps(prepared=True)}
        entering, leaving = call.initial(), call.tensors["d_final_states"]
        leaving = None if leaving is None else leaving[:, None]
        if several:
            entering, leaving = self._passed()
        kept = not (several and split)
        if self.how.schedule == "chunks":
            if kept:
                entering, _ = self._kept(entering)
                leaving = self._kept_adjoints(leaving, several)
            self.states, self.adjoints = entering, leaving
            self._gradients()
        else:
            self.states, self.adjoints = self._kept(entering) if kept else (entering, leaving)
            self._walk(leaving, kept, several)
            if self.needs & ({"B", "C"} | OF_STEPS):
                self._groups()
        if self.needs & OF_STEPS:
            self._steps()

    def _passed(self) -> tuple[Any, Any]:
        """The states that enter the segments, and the adjoints of those that leave them."""
        call = self.call
        found = call.summaries(Walk(outputs=False, n_tiles=self.n_tiles, p_tiles=self.p_tiles), {})
        adjoints = call.buffer("batch", "nsegments", "nheads", "HEADDIM", "DSTATE")
        self._states(States(True, False), {"summary": adjoints})
        self._initial_buffer()
        tensors = {"summary": _flat(found["summary"]), "d_summary": _flat(adjoints), "total": found["total"]}
        states = ("initial_states", "d_final_states", "d_initial")
        tensors |= {name: _flat(call.tensors[name]) for name in states}
        flags = {"HAS_ENTERING": tensors["initial_states"] is not None, "STORE_INITIAL": "initial_states" in self.needs}
        flags["HAS_LEAVING"] = tensors["d_final_states"] is not None
        call.launch(passing.both(self.layer), tensors, None, **flags)
        return found["summary"], adjoints

    def _initial_buffer(self) -> None:
        state = ("batch", "nheads", "HEADDIM", "DSTATE")
        self.call.tensors["d_initial"] = self.call.buffer(*state) if "initial_states" in self.needs else None

    def _kept(self, entering: Any) -> tuple[Any, Any]:
        """The states that enter the chunks, and where the adjoints of those that leave them go."""
        call, dims = self.call, ("batch", "nchunks", "nheads", "HEADDIM", "DSTATE")
        found = call.buffer(*dims)
        tensors = {"entering": entering, "states": found}
        self._states(States(), tensors, HAS_ENTERING=entering is not None)
        return found, call.buffer(*dims)

    def _kept_adjoints(self, leaving: Any, several: bool) -> Any:
        """The adjoints of the states that leave the chunks."""
        call = self.call
        found = call.buffer("batch", "nchunks", "nheads", "HEADDIM", "DSTATE")
        if not several:
            self._initial_buffer()
        wanted = not several and "initial_states" in self.needs
        tensors = {"leaving": leaving, "d_states": found, "d_initial": call.tensors["d_initial"] if wanted else None}
        self._states(States(True), tensors, HAS_LEAVING=leaving is not None, STORE_INITIAL=wanted)
        return found

    def _states(self, shape: States, tensors: Arrays, **flags: bool) -> None:
        """A walk that makes states; one that is specialised has equal tiles of dstate."""
        call, rows = self.call, {}
        if self.how.specialised:
            block, count = tiles.consumer_tiles(call.constants["DSTATE"])
            shape, rows = replace(shape, n_tiles=count, consumers=2), {"BLOCK_N": block}
        else:
            shape = replace(shape, n_tiles=self.n_tiles)
        call.launch(states.kernel(self.layer, shape), tensors, rows, **flags)

    def _gradients(self) -> None:
        """All but the adjoints of the states, chunk by chunk."""
        call, loops = self.call, adjoint.loops(self.layer)
        call.sizes["parts"] = self.how.parts
        self._tokens("nchunks")
        rows = ("batch", "seqlen", "ngroups" if loops else "nheads", "DSTATE")
        for name in ("B", "C"):
            wanted = name in self.needs
            call.tensors[f"d_{name}"] = call.buffer(*(("parts",) if loops else ()), *rows) if wanted else None
        call.tensors |= self._vectors(adjoint.VECTORS, adjoint.NUMBERS)
        shape = Gradients(self.n_tiles, self.p_tiles)
        if self.how.specialised and loops and shape == Gradients():
            shape = Gradients(specialised=True, three=self.three)
        call.launch(gradients.kernel(self.layer, shape), {"states": self.states, "d_states": self.adjoints})
        for name in ("B", "C") if loops else ():
            if name in self.needs:
                call.tensors[f"d_{name}"] = call.tensors[f"d_{name}"].sum(0)

    def _tokens(self, parts: str) -> None:
        """Buffers for the gradients of x, z and D, the last in as many parts as programs make one each."""
        call, tokens = self.call, ("batch", "seqlen", "nheads", "HEADDIM")
        outs = {f"d_{name}": call.buffer(*tokens) if name in self.needs else None for name in ("x", "z")}
        outs["d_D"] = call.buffer("batch", parts, "nheads", "HEADDIM") if "D" in self.needs else None
        call.tensors |= outs

    def _walk(self, leaving: Any, store: bool, several: bool) -> None:
        call, sizes = self.call, self.call.sizes
        # walks in pairs that keep the adjoints, without a gate
        pairs = sizes["nheads"] // sizes["ngroups"] * sizes["p_blocks"] % 2 == 0
        specialised = self.specialised and pairs and store and not call.flags["HAS_Z"]
        self._tokens("nchunks" if specialised else "nsegments")
        call.tensors |= self._vectors(adjoint.WALK_VECTORS, (), "p_blocks")
        if not several:
            self._initial_buffer()
        tensors = {"leaving": leaving, "states": self.states, "d_states": self.adjoints if store else None}
        flags = {"HAS_LEAVING": leaving is not None, "STORE_ADJOINTS": store}
        flags["STORE_INITIAL"] = not several and "initial_states" in self.needs
        tensors["d_initial"] = call.tensors["d_initial"] if flags["STORE_INITIAL"] else None
        shape, rows = Reverse(n_tiles=self.n_tiles, p_tiles=self.p_tiles), {}
        if self.block_p:
            shape, rows = Reverse(n_tiles=self.n_tiles, blocks=True), {"BLOCK_P": self.block_p}
        if specialised:
            block, count = tiles.consumer_tiles(call.constants["DSTATE"])
            rows["BLOCK_N"] = max(tiles.SMALLEST, block // 2)
            shape = Reverse(n_tiles=2 * count, blocks=True, consumers=2, left=self.how.left)
        self._launch(reverse.kernel(self.layer, shape), tensors, rows, **flags)

    def _groups(self) -> None:
        call = self.call
        owner = "ngroups" if adjoint.loops(self.layer) else "nheads"
        for name in ("B", "C"):
            wanted = name in self.needs
            call.tensors[f"d_{name}"] = call.buffer("batch", "seqlen", owner, "DSTATE") if wanted else None
        call.tensors |= self._vectors(adjoint.GROUP_VECTORS, adjoint.NUMBERS, "n_blocks")
        tensors = {"states": self.states, "d_states": self.adjoints}
        shape, rows = Groups(self.n_tiles, self.p_tiles), {}
        if self.block_n:
            shape, rows = Groups(p_tiles=self.p_tiles, blocks=True), {"BLOCK_N": self.block_n}
        if self.specialised:
            shape = Groups(p_tiles=2, blocks=True, specialised=True, three=self.three)
            rows["BLOCK_P"] = self.block_p
        self._launch(groups.kernel(self.layer, shape), tensors, rows)

    def _steps(self) -> None:
        call = self.call
        for name in ("A", "dt_bias"):
            rows = "seqlen" if name == "A" and self.layer.family.per_token else "nchunks"
            call.tensors[f"d_{name}"] = call.buffer("batch", rows, "nheads") if name in self.needs else None
        call.tensors["d_dt"] = call.buffer("batch", "seqlen", "nheads")
        call.launch(steps.kernel(self.layer, Steps(self.blocks)), {"dt_raw": call.tensors["raw_dt"]})

    def _launch(self, kernel: Kernel, tensors: Arrays, rows: dict[str, int], **flags: bool) -> None:
        """A kernel that leaves vectors and numbers, in parts where its programs share out a tile's extent.

        Of one that does not there is one part, which it takes for the whole.
        """
        parts = {
            tensor.name: self.call.tensors[tensor.name][0]
            for tensor in kernel.tensors
            if tensor.name in (*adjoint.VECTORS, *adjoint.NUMBERS)
            and self.blocks
            and not rows
            and self.needs & OF_STEPS
        }
        self.call.launch(kernel, {**tensors, **parts}, rows, **flags)

    def _vectors(self, vectors: tuple[str, ...], numbers: tuple[str, ...], blocks: str = "") -> dict[str, Any]:
        """Buffers for what step sizes get; blocks: how many programs leave a part of each."""
        if not self.needs & OF_STEPS:
            return dict.fromkeys((*vectors, *numbers))
        lead = (blocks,) if blocks and self.blocks else ()
        found = {name: self.call.buffer(*lead, "batch", "nheads", "padded") for name in vectors}
        return found | {name: self.call.buffer(*lead, "batch", "nchunks", "nheads") for name in numbers}

    def results(self, inputs: Arrays) -> dict[str, Any]:
        """The gradients in the shapes of the inputs; what programs share is added up."""
        call, found = self.call, {}
        for name in self.needs:
            made = call.tensors["d_initial" if name == "initial_states" else f"d_{name}"]
            if name in ("x", "B", "C") and made.shape[2] != (heads := inputs[name].shape[2]):
                made = made.reshape(*made.shape[:2], heads, -1, made.shape[3]).sum(3)
            if name == "A" and not self.layer.family.uses_a:
                made = inputs["A"] * 0.0
            elif name in ("D", "dt_bias") or (name == "A" and not self.layer.family.per_token):
                made = made.sum((0, 1))
            if name == "D" and inputs["D"].ndim == 1:
                made = made.sum(1)
            found[f"d_{name}"] = made
        return found


def _flat(state: Any) -> Any:
    return None if state is None else flat(state)


__all__ = ["BackwardSchedule", "How", "backward"]
