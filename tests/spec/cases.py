"""Random numbers for a layer, and the layer computed chunk by chunk from its graph.  What the tests of spec share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.evaluate import evaluate
from ssdgen.spec.graph import Graph
from ssdgen.spec.layer import Layer

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    batch: int = 1
    seqlen: int = 7
    nheads: int = 2
    headdim: int = 3
    dstate: int = 4
    ngroups: int = 1


def draw(layer: Layer, sizes: Sizes, seed: int) -> Arrays:
    """Arguments of the oracle for every option of the layer; the boundaries are in seq_idx."""
    random = np.random.default_rng(seed)
    b, length, h, p, n, g = (getattr(sizes, name) for name in sizes.__dataclass_fields__)

    def heads(operand: str) -> int:
        return h if layer.layout.per_head(operand) else g

    arrays: Arrays = {
        "x": random.normal(size=(b, length, heads("x"), p)),
        "dt": random.normal(size=(b, length, h)),
        "A": -random.uniform(0.1, 2, size=(b, length, h) if layer.family.per_token else h),
        "B": random.normal(size=(b, length, heads("B"), n)),
        "C": random.normal(size=(b, length, heads("C"), n)),
    }
    if layer.skip != "none":
        arrays["D"] = random.normal(size=(h,) if layer.skip == "head" else (h, p))
    if layer.gate:
        arrays["z"] = random.normal(size=(b, length, h, p))
    if layer.dt_bias:
        arrays["dt_bias"] = random.normal(size=h)
    if layer.initial_states:
        arrays["initial_states"] = random.normal(size=(b, h, p, n))
    if layer.boundaries:
        arrays["seq_idx"] = np.cumsum(random.uniform(size=(b, length)) < 0.3, axis=1)
    return arrays


def chunked(
    layer: Layer, arrays: Arrays, chunk: int, limits: tuple[float, float] = (0.0, np.inf), graph: Graph | None = None
) -> tuple[Any, Any]:
    """y [b, L, H, P] and the last states [b, H, P, N], from the graph of a chunk: one chunk after another."""
    graph = graph or chunk_graph(layer)
    batch, seqlen, nheads = arrays["dt"].shape
    shared = [arrays[name].shape[2] for name in ("x", "B", "C") if not layer.layout.per_head(name)]
    groups = shared[0] if shared else 1
    per_group = nheads // groups
    headdim, dstate = arrays["x"].shape[3], arrays["B"].shape[3]
    y, last = np.empty((batch, seqlen, nheads, headdim)), np.empty((batch, nheads, headdim, dstate))
    for b in range(batch):
        for group in range(groups):
            mine = slice(group * per_group, (group + 1) * per_group)
            state = (
                arrays["initial_states"][b, mine] if layer.initial_states else np.zeros((per_group, headdim, dstate))
            )
            for start in range(0, seqlen, chunk):
                part = slice(start, min(start + chunk, seqlen))
                inputs = _inputs(layer, arrays, b, group, mine, part) | {"state": state}
                inputs |= {"dt_min": limits[0], "dt_max": limits[1]}
                read = {name: value for name, value in inputs.items() if name in graph}
                found = evaluate(graph, read, layer.flags(), ("y", "state_out"))
                y[b, part, mine] = np.moveaxis(found["y"], 0, 1)
                state = found["state_out"]
            last[b, mine] = state
    return y, last


def _inputs(layer: Layer, arrays: Arrays, b: int, group: int, mine: slice, part: slice) -> Arrays:
    """Inputs of the graph for one chunk and one group of heads."""
    inputs: Arrays = {"dt_raw": arrays["dt"][b, part, mine].T, "A": arrays["A"][mine]}
    for name in ("x", "B", "C"):
        of_heads = np.moveaxis(arrays[name][b, part], 0, 1)
        inputs[name] = of_heads[mine] if layer.layout.per_head(name) else of_heads[group]
    if "D" in arrays:
        d = arrays["D"][mine]
        inputs["D"] = d if d.ndim == 2 else np.repeat(d[:, None], arrays["x"].shape[3], axis=1)
    if "z" in arrays:
        inputs["z"] = np.moveaxis(arrays["z"][b, part, mine], 0, 1)
    if "dt_bias" in arrays:
        inputs["dt_bias"] = arrays["dt_bias"][mine]
    if "seq_idx" in arrays:
        seq = arrays["seq_idx"][b]
        inputs |= {"seq": seq[part], "seq_before": seq[max(part.start - 1, 0)], "seq_last": seq[part.stop - 1]}
    return inputs
