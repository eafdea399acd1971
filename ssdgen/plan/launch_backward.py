"""What the launcher of the backward pass does: its buffers and kernels in order.  launch.Call -> interpret

walk      one program per head goes through all chunks, forwards for the states, then back
segments  each segment has a program; what enters and leaves the segments is made first
split     a segment is a chunk: what enters and leaves the segments is all that is needed
"""

from __future__ import annotations

from typing import Any

from . import tiles
from .launch import Arrays, Call, flat
from .schedules import adjoint, groups, passing, reverse, states, steps
from .schedules.groups import Groups
from .schedules.reverse import Reverse
from .schedules.states import States
from .schedules.walk import Walk

DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
# inputs whose gradients need what decays and step sizes get
OF_STEPS = frozenset({"dt", "A", "dt_bias"})


def backward(
    call: Call, inputs: Arrays, d_y: Any, d_final_states: Any, segment: int | None, needs: frozenset[str] | None
) -> dict[str, Any]:
    """Gradients of the inputs in `needs`, or of all that are there.  segment: None for the whole sequence."""
    there = frozenset(name for name in DIFFERENTIABLE if inputs.get(name) is not None)
    run = _Backward(call, d_y, d_final_states, there if needs is None else needs & there)
    run.go(segment)
    return run.results(inputs)


class _Backward:
    """One call.  needs: inputs whose gradients are wanted, all of them there."""

    def __init__(self, call: Call, d_y: Any, d_final_states: Any, needs: frozenset[str]) -> None:
        self.call, self.layer, self.needs = call, call.layer, needs
        call.tensors |= {"d_y": d_y, "d_final_states": d_final_states, "raw_dt": call.tensors["dt"]}
        call.sizes["nchunks"] = call.sizes["padded"] // call.constants["CHUNK"]
        self.n_tiles = len(tiles.cut(call.constants["DSTATE"]))
        self.p_tiles = len(tiles.cut(call.constants["HEADDIM"]))
        call.flags |= {f"NEEDS_{name.upper()}": name in needs for name in ("x", "z", "D", "B", "C", "A", "dt_bias")}
        call.flags["NEEDS_DT"] = bool(needs & OF_STEPS)

    def go(self, segment: int | None) -> None:
        call, sizes = self.call, self.call.sizes
        chunk = call.constants["CHUNK"]
        call.cut(-(-sizes["seqlen"] // chunk) * chunk if segment is None else segment)
        split, several = sizes["segment_len"] == chunk, sizes["nsegments"] > 1
        call.tensors |= {**call.steps(prepared=True)}
        entering, leaving = call.initial(), call.tensors["d_final_states"]
        leaving = None if leaving is None else leaving[:, None]
        if several:
            entering, leaving = self._passed()
        self.states, self.adjoints = (entering, leaving) if several and split else self._kept(entering)
        self._walk(leaving, not (several and split), several)
        if self.needs & ({"B", "C"} | OF_STEPS):
            self._groups()
        if self.needs & OF_STEPS:
            self._steps()

    def _passed(self) -> tuple[Any, Any]:
        """The states that enter the segments, and the adjoints of those that leave them."""
        call = self.call
        found = call.summaries(Walk(outputs=False, n_tiles=self.n_tiles, p_tiles=self.p_tiles), {})
        initial, total = call.tensors["initial_states"], found["total"]
        tensors = {"summary": _flat(found["summary"]), "total": total, "initial_states": _flat(initial)}
        call.launch(passing.kernel(self.layer), {**tensors, "final_states": None}, STORE_FINAL=False)
        adjoints = call.buffer("batch", "nsegments", "nheads", "HEADDIM", "DSTATE")
        call.launch(reverse.kernel(self.layer, Reverse(outputs=False, n_tiles=self.n_tiles)), {"summary": adjoints})
        leaving = call.tensors["d_final_states"]
        self._initial_buffer()
        tensors = {"summary": _flat(adjoints), "total": total, "initial_states": _flat(leaving)}
        tensors["final_states"] = _flat(call.tensors["d_initial"])
        flags = {"HAS_ENTERING": leaving is not None, "STORE_FINAL": "initial_states" in self.needs}
        call.launch(passing.kernel(self.layer, reverse=True), tensors, None, **flags)
        return found["summary"], adjoints

    def _initial_buffer(self) -> None:
        state = ("batch", "nheads", "HEADDIM", "DSTATE")
        self.call.tensors["d_initial"] = self.call.buffer(*state) if "initial_states" in self.needs else None

    def _kept(self, entering: Any) -> tuple[Any, Any]:
        """The states that enter the chunks, and where the adjoints of those that leave them go."""
        call, dims = self.call, ("batch", "nchunks", "nheads", "HEADDIM", "DSTATE")
        found = call.buffer(*dims)
        tensors = {"entering": entering, "states": found}
        call.launch(states.kernel(self.layer, States(self.n_tiles)), tensors, HAS_ENTERING=entering is not None)
        return found, call.buffer(*dims)

    def _walk(self, leaving: Any, store: bool, several: bool) -> None:
        call = self.call
        tokens = ("batch", "seqlen", "nheads", "HEADDIM")
        outs = {f"d_{name}": call.buffer(*tokens) if name in self.needs else None for name in ("x", "z")}
        outs["d_D"] = call.buffer("batch", "nsegments", "nheads", "HEADDIM") if "D" in self.needs else None
        call.tensors |= outs | self._vectors(adjoint.WALK_VECTORS, ())
        if not several:
            self._initial_buffer()
        tensors = {"leaving": leaving, "states": self.states, "d_states": self.adjoints if store else None}
        flags = {"HAS_LEAVING": leaving is not None, "STORE_ADJOINTS": store}
        flags["STORE_INITIAL"] = not several and "initial_states" in self.needs
        tensors["d_initial"] = call.tensors["d_initial"] if flags["STORE_INITIAL"] else None
        shape = Reverse(n_tiles=self.n_tiles, p_tiles=self.p_tiles)
        call.launch(reverse.kernel(self.layer, shape), tensors, None, **flags)

    def _groups(self) -> None:
        call = self.call
        owner = "ngroups" if adjoint.loops(self.layer) else "nheads"
        for name in ("B", "C"):
            wanted = name in self.needs
            call.tensors[f"d_{name}"] = call.buffer("batch", "seqlen", owner, "DSTATE") if wanted else None
        call.tensors |= self._vectors(adjoint.GROUP_VECTORS, adjoint.GROUP_NUMBERS)
        tensors = {"states": self.states, "d_states": self.adjoints}
        call.launch(groups.kernel(self.layer, Groups(self.n_tiles, self.p_tiles)), tensors)

    def _steps(self) -> None:
        call = self.call
        for name in ("A", "dt_bias"):
            call.tensors[f"d_{name}"] = call.buffer("batch", "nchunks", "nheads") if name in self.needs else None
        call.tensors["d_dt"] = call.buffer("batch", "seqlen", "nheads")
        call.launch(steps.kernel(self.layer), {"dt_raw": call.tensors["raw_dt"]})

    def _vectors(self, vectors: tuple[str, ...], numbers: tuple[str, ...]) -> dict[str, Any]:
        if not self.needs & OF_STEPS:
            return dict.fromkeys((*vectors, *numbers))
        found = {name: self.call.buffer("batch", "nheads", "padded") for name in vectors}
        return found | {name: self.call.buffer("batch", "nchunks", "nheads") for name in numbers}

    def results(self, inputs: Arrays) -> dict[str, Any]:
        """The gradients in the shapes of the inputs; what programs share is added up."""
        call, found = self.call, {}
        for name in self.needs:
            made = call.tensors["d_initial" if name == "initial_states" else f"d_{name}"]
            if name in ("x", "B", "C") and made.shape[2] != (heads := inputs[name].shape[2]):
                made = made.reshape(*made.shape[:2], heads, -1, made.shape[3]).sum(3)
            if name == "A" and not self.layer.family.uses_a:
                made = inputs["A"] * 0.0
            elif name in ("A", "D", "dt_bias"):
                made = made.sum((0, 1))
            if name == "D" and inputs["D"].ndim == 1:
                made = made.sum(1)
            found[f"d_{name}"] = made
        return found


def _flat(state: Any) -> Any:
    return None if state is None else flat(state)


__all__ = ["backward"]
