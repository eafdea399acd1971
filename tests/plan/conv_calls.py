"""Calls of the convolution's kernels, interpreted, and what they must give: the graph of each sequence in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssdgen.plan import ir
from ssdgen.plan.interpret import run
from ssdgen.spec.conv import conv_adjoint, conv_graph
from ssdgen.spec.evaluate import evaluate

Array = np.ndarray[Any, Any]
OPTIONS = ("bias", "silu", "seq_idx", "cu_seqlens", "initial", "states")


@dataclass
class Case:
    """options: of OPTIONS; lengths: of the packed sequences, with cu_seqlens."""

    width: int = 4
    options: tuple[str, ...] = ()
    batch: int = 2
    dim: int = 5
    seqlen: int = 11
    lengths: tuple[int, ...] = (4, 1, 6)
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.lengths) if self.has("cu_seqlens") else self.batch

    def has(self, option: str) -> bool:
        return option in self.options

    def draw(self, seed: int) -> Case:
        """Fill `arrays`: operands, and adjoints of the results."""
        made = np.random.default_rng(seed)
        if self.has("cu_seqlens"):
            self.batch, self.seqlen = 1, sum(self.lengths)
        row, states = (self.batch, self.seqlen, self.dim), (self.rows, self.dim, self.width - 1)
        shapes = {"x": row, "d_y": row, "weight": (self.dim, self.width), "bias": (self.dim,)}
        shapes |= {"initial_states": states, "d_states": states}
        self.arrays = {name: made.standard_normal(shape) for name, shape in shapes.items()}
        cuts = np.sort(made.integers(0, self.seqlen + 1, (self.batch, 2)), axis=1)
        position = np.arange(self.seqlen)
        # numbers in any order, and padding in front
        numbers = np.array([-1, 7, 2])
        self.arrays["seq_idx"] = numbers[(position >= cuts[:, :1]).astype(int) + (position >= cuts[:, 1:])]
        self.arrays["cu_seqlens"] = np.cumsum([0, *self.lengths])
        return self

    def sequences(self) -> list[tuple[int, slice]]:
        """(row of x, its positions) of each sequence that is walked by itself."""
        if not self.has("cu_seqlens"):
            return [(row, slice(0, self.seqlen)) for row in range(self.batch)]
        ends = self.arrays["cu_seqlens"]
        return [(0, slice(start, end)) for start, end in zip(ends[:-1], ends[1:], strict=True)]


def expected(case: Case) -> dict[str, Array]:
    """y, final_states, and the gradients by name, from the graph over each sequence with its history."""
    before, width = case.width - 1, case.width
    flags = {"HAS_BIAS": case.has("bias"), "SILU": case.has("silu"), "HAS_SEQ_IDX": case.has("seq_idx")}
    arrays = case.arrays
    found = {name: np.zeros_like(arrays[name]) for name in ("x", "weight", "bias", "initial_states")}
    found = {f"d_{name}": array for name, array in found.items()}
    found |= {"y": np.zeros_like(arrays["x"]), "final_states": np.zeros_like(arrays["initial_states"])}
    for number, (row, at) in enumerate(case.sequences()):
        x, d_y = arrays["x"][row, at], arrays["d_y"][row, at]
        history = arrays["initial_states"][number].T if case.has("initial") else np.zeros((before, case.dim))
        seq = arrays["seq_idx"][row, at]
        inputs = {"x": np.concatenate([history, x]), "bias": arrays["bias"]}
        inputs |= {"seq": np.concatenate([np.full(before, seq[0]), seq]), "seq_last": seq[-1]}
        inputs |= {f"weight_{back}": arrays["weight"][:, width - 1 - back] for back in range(width)}
        d_states = np.zeros_like(inputs["x"])
        if case.has("states"):
            d_states[len(x) :] = arrays["d_states"][number].T
        more = {"d_y": np.concatenate([np.zeros_like(history), d_y]), "d_state_out": d_states}
        outputs = evaluate(conv_graph(width), inputs, flags, ("y", "state_out"))
        weights = tuple(f"d_weight_{back}" for back in range(width))
        # a token before the row has a value of its own in the graph: what is no output has no adjoint
        adjoints = evaluate(conv_adjoint(width), {**inputs, **more}, flags, ("d_x", "d_bias", *weights))
        found["y"][row, at] = outputs["y"][before:]
        found["final_states"][number] = outputs["state_out"][len(x) :].T
        found["d_x"][row, at] = adjoints["d_x"][before:]
        found["d_initial_states"][number] = adjoints["d_x"][:before].T
        found["d_weight"] += np.stack([adjoints[name] for name in reversed(weights)], axis=1)
        found["d_bias"] += adjoints["d_bias"]
    return found


def interpreted(kernel: ir.Kernel, case: Case, backward: bool, parts: int, **constants: int) -> dict[str, Array]:
    """The same names as `expected` has, as far as the kernel makes them.

    parts: programs along a sequence.  An output that is not written at all stays NaN.
    """
    width, rows = case.width, case.rows
    sizes = {"batch": case.batch, "rows": rows, "seqlen": case.seqlen, "dim": case.dim, "width": width}
    sizes |= {"state_len": width - 1, "sums": width + 1, "nsegments": parts, "ntiles": parts}
    flags = {f"HAS_{name.upper()}": case.has(name) for name in ("bias", "seq_idx", "cu_seqlens", "initial")}
    flags |= {"SILU": case.has("silu"), "STORE_FINAL": case.has("states"), "HAS_D_STATES": case.has("states")}
    flags["STORE_D_INITIAL"] = case.has("initial")
    out = {"y": "x", "d_x": "x", "final_states": "initial_states", "d_initial_states": "initial_states"}
    made = {name: np.full_like(case.arrays[of], np.nan) for name, of in out.items()}
    made["parts"] = np.full((rows, parts, width + 1, case.dim), np.nan)
    absent = [name for name in ("bias", "seq_idx", "cu_seqlens") if not case.has(name)]
    tensors = {**case.arrays, **made, **dict.fromkeys(absent)}
    turned = {}
    if kernel.tensor("x").dims[-1] == "seqlen":
        turned = {name: np.ascontiguousarray(np.swapaxes(tensors[name], 1, 2)) for name in ("x", "y", "d_x", "d_y")}
    run(kernel, {**tensors, **turned}, sizes, constants, flags, {})
    made |= {name: np.swapaxes(array, 1, 2) for name, array in turned.items() if name in made}
    if not backward:
        return {name: made[name] for name in ("y", *(["final_states"] if case.has("states") else []))}
    summed = made["parts"].sum((0, 1))
    found = {"d_x": made["d_x"], "d_weight": summed[:width].T}
    if case.has("bias"):
        found["d_bias"] = summed[width]
    if case.has("initial"):
        found["d_initial_states"] = made["d_initial_states"]
    return found
