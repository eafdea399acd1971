"""The float64 gradients that every test compares with: adjoints of chunks, one after the other.  layer -> numbers

The states go forward through the chunks, the adjoints of the states come back through them (docs/maths.md, Gradients).
The tests hold this against central differences of the oracle and against automatic differentiation of the recurrence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .evaluate import evaluate
from .gradient import chunk_adjoint
from .graph import Graph
from .layer import Layer
from .oracle import OracleInput, index_maps, oracle, sequences

Array = np.ndarray[Any, Any]


@cache
def _adjoint(layer: Layer) -> Graph:
    return chunk_adjoint(layer)


def backward(
    layer: Layer,
    inputs: Mapping[str, Any],
    d_y: Array,
    d_final_states: Array | None = None,
    *,
    chunk: int,
    d_varlen_states: Array | None = None,
    graph: Graph | None = None,
) -> dict[str, Array]:
    """Gradients of sum(d_y * y) + sum(d_final_states * final_states) + sum(d_varlen_states * varlen_states).

    inputs: the arguments of `oracle` by name, in its shapes; every option is on where its array is given.
    d_y: [b, L, H, P]; d_final_states: [b, H, P, N]; d_varlen_states: [nseq, H, P, N], only with cu_seqlens.
    chunk: tokens per chunk, which changes the sums' order and nothing else.  graph: another adjoint than the layer's.

    Returns d_x, d_dt, d_A, d_B, d_C and, for those given, d_D, d_z, d_dt_bias and d_initial_states: float64, in the
    shapes of the inputs; d_dt is of the step size before its transform. Raises OracleInput on shapes that do not fit.
    """
    result = oracle(layer, **inputs)  # says what does not fit
    given = {name: np.asarray(inputs[name], np.float64) for name in ("x", "dt", "A", "B", "C")}
    for name in ("D", "z", "dt_bias", "initial_states"):
        if inputs.get(name) is not None:
            given[name] = np.asarray(inputs[name], np.float64)
    if chunk < 1:
        raise OracleInput(f"chunk is {chunk}; a chunk has at least 1 position")
    for name, array, like in (
        ("d_y", d_y, result.y),
        ("d_final_states", d_final_states, result.final_states),
        ("d_varlen_states", d_varlen_states, result.varlen_states),
    ):
        if array is not None and (like is None or np.shape(array) != like.shape):
            wanted = "None without cu_seqlens" if like is None else str(like.shape)
            raise OracleInput(f"{name} has shape {np.shape(array)}; it must be {wanted}")

    # the graph holds every option
    graph = graph or _adjoint(Layer(layer.family, layer.layout))
    found = {f"d_{name}": np.zeros(array.shape) for name, array in given.items()}
    batch, seqlen, nheads = given["dt"].shape
    sizes = (batch, seqlen, nheads, given["x"].shape[3], given["B"].shape[3])
    spans, states = sequences(inputs.get("cu_seqlens"), given.get("initial_states"), sizes)
    index = index_maps(layer, {name: given[name] for name in ("x", "B", "C")}, nheads)
    for place, (span, entering) in enumerate(zip(spans, states, strict=True)):
        leaving = np.zeros(entering.shape)
        if d_final_states is not None and place == len(spans) - 1:
            leaving += d_final_states
        if d_varlen_states is not None:
            leaving += d_varlen_states[place]
        for b in range(batch):
            for heads in _groups(layer, index, nheads):
                run = _Run(layer, graph, inputs, given, found, b, heads, index)
                d_state = run.through(span, entering[b, heads], np.asarray(d_y), leaving[b, heads], chunk)
                if "initial_states" in given and (row := place if len(spans) > 1 else b) < len(given["initial_states"]):
                    found["d_initial_states"][row, heads] = d_state
    return found


def _groups(layer: Layer, index: Mapping[str, list[int]], nheads: int) -> list[list[int]]:
    """Heads that share operands, together; all of them where nothing is shared."""
    shared = [index[name] for name in ("x", "B", "C") if not layer.layout.per_head(name)]
    owner = shared[0] if shared else [0] * nheads
    return [[head for head in range(nheads) if owner[head] == group] for group in sorted(set(owner))]


@dataclass(frozen=True)
class _Run:
    """The chunks of one sequence, for heads that share their operands; gradients are added to `found`."""

    layer: Layer
    graph: Graph
    arguments: Mapping[str, Any]
    given: Mapping[str, Array]
    found: Mapping[str, Array]
    b: int
    heads: list[int]
    index: Mapping[str, list[int]]

    def through(self, span: tuple[int, int], state: Array, d_y: Array, d_state: Array, chunk: int) -> Array:
        """The adjoint of `state`, which enters, from d_state, that of the one that leaves."""
        start, stop = span
        cuts = [slice(first, min(first + chunk, stop)) for first in range(start, stop, chunk)]
        chunks = []
        for part in cuts:
            chunks.append(self._inputs(part, span) | {"state": state})
            state = self._evaluated(chunks[-1], ("state_out",))["state_out"]
        for part, inputs in zip(reversed(cuts), reversed(chunks), strict=True):
            adjoints = {"d_y": np.moveaxis(d_y[self.b, part][:, self.heads], 1, 0), "d_state_out": d_state}
            places = self._places(part)
            targets = [name for name in (*places, "d_state") if name in self.graph]
            values = self._evaluated({**inputs, **adjoints}, targets)
            for name in targets:
                if name != "d_state":
                    own = "d_dt" if name == "d_dt_raw" else name
                    self.found[own][places[name]] += _as_stored(own, values[name], self.found[own].ndim)
            d_state = values["d_state"]
        return d_state

    def _evaluated(self, inputs: dict[str, Any], targets: Any) -> dict[str, Array]:
        flags = {
            "HAS_D": "D" in self.given,
            "HAS_Z": "z" in self.given,
            "HAS_DT_BIAS": "dt_bias" in self.given,
            "DT_SOFTPLUS": self.layer.dt_softplus,
            "HAS_SEQ_IDX": self.arguments.get("seq_idx") is not None,
        }
        return evaluate(self.graph, inputs, flags, targets)

    def _operand(self, name: str) -> Any:
        """Heads of x, B or C that these heads read: all of theirs, or the one that they share."""
        return self.heads if self.layer.layout.per_head(name) else self.index[name][self.heads[0]]

    def _places(self, part: slice) -> dict[str, Any]:
        """Where the gradients of a chunk belong."""
        tokens = np.arange(part.start, part.stop)
        places: dict[str, Any] = {"d_dt_raw": (self.b, tokens[:, None], self.heads)}
        places["d_A"] = places["d_dt_raw"] if self.layer.family.per_token else (self.heads,)
        for name in ("x", "B", "C"):
            heads = self._operand(name)
            places[f"d_{name}"] = (self.b, tokens[:, None] if isinstance(heads, list) else tokens, heads)
        if "z" in self.given:
            places["d_z"] = (self.b, tokens[:, None], self.heads)
        places |= {f"d_{name}": (self.heads,) for name in ("D", "dt_bias") if name in self.given}
        return places

    def _inputs(self, part: slice, span: tuple[int, int]) -> dict[str, Any]:
        """What the graph reads of a chunk, its entering state aside."""
        given, b, heads = self.given, self.b, self.heads
        low, high = self.arguments.get("dt_limit", (0.0, np.inf))
        inputs: dict[str, Any] = {
            "dt_raw": given["dt"][b, part][:, heads].T, "dt_min": low, "dt_max": high,
        }  # fmt: skip
        per_token = self.layer.family.per_token
        inputs["A"] = given["A"][b, part][:, heads].T if per_token else given["A"][heads]
        for name in ("x", "B", "C"):
            mine = given[name][b, part][:, self._operand(name)]
            inputs[name] = np.moveaxis(mine, 1, 0) if self.layer.layout.per_head(name) else mine
        if "D" in given:
            skip = given["D"][heads]
            inputs["D"] = skip if skip.ndim == 2 else np.repeat(skip[:, None], given["x"].shape[3], axis=1)
        if "z" in given:
            inputs["z"] = np.moveaxis(given["z"][b, part][:, heads], 1, 0)
        if "dt_bias" in given:
            inputs["dt_bias"] = given["dt_bias"][heads]
        if self.arguments.get("seq_idx") is not None:
            seq = np.asarray(self.arguments["seq_idx"])[b]
            # the token before a sequence counts as one of it
            before = seq[max(part.start - 1, span[0])]
            inputs |= {"seq": seq[part], "seq_before": before, "seq_last": seq[part.stop - 1]}
        return inputs


def _as_stored(name: str, value: Array, ndim: int) -> Array:
    """A gradient over (h, i, p) as the arrays have it: positions before heads."""
    if name == "d_D":
        return value.sum(axis=1) if ndim == 1 else value
    if name == "d_dt_bias" or (name == "d_A" and ndim == 1):
        return value
    return np.moveaxis(value, 0, 1) if name in ("d_dt", "d_A") or value.ndim == 3 else value


__all__ = ["backward"]
