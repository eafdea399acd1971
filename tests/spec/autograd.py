"""The layer as a plain recurrence in torch, and its automatic gradients: written by hand, knows nothing of chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ssdgen.spec.layer import Layer
from tests.spec.cases import Arrays

DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")


def automatic(
    layer: Layer, arrays: Arrays, d_y: Any, d_final_states: Any = None, d_varlen_states: Any = None
) -> dict[str, Any]:
    """Gradients by name, as ssdgen.spec.oracle_gradient.backward gives them."""
    leaves = {
        name: torch.tensor(np.asarray(arrays[name], np.float64), requires_grad=True)
        for name in DIFFERENTIABLE
        if name in arrays
    }
    y, ends = _layer(layer, leaves, arrays)
    loss = (y * torch.tensor(d_y)).sum()
    if d_final_states is not None:
        loss = loss + (ends[-1] * torch.tensor(d_final_states)).sum()
    if d_varlen_states is not None:
        loss = loss + (torch.cat(ends) * torch.tensor(d_varlen_states)).sum()
    loss.backward()
    return {
        f"d_{name}": np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy() for name, leaf in leaves.items()
    }


def _layer(layer: Layer, given: dict[str, torch.Tensor], arrays: Arrays) -> tuple[torch.Tensor, list[torch.Tensor]]:
    dt = given["dt"]
    batch, seqlen, nheads = dt.shape
    if "dt_bias" in given:
        dt = dt + given["dt_bias"]
    if layer.dt_softplus:
        dt = F.softplus(dt, threshold=1e9)
    dt = dt.clamp(*arrays.get("dt_limit", (0.0, float("inf"))))
    log_decay = {
        "ssd": lambda: dt * given["A"],
        "constant": lambda: given["A"].expand(dt.shape),
        "none": lambda: torch.zeros_like(dt),
        "gated": lambda: given["A"].clamp(max=0),
    }[layer.family.name]()

    def of_heads(name: str) -> torch.Tensor:
        return given[name].repeat_interleave(nheads // given[name].shape[2], dim=2)

    x, B, C = (of_heads(name) for name in ("x", "B", "C"))
    bounds = [int(bound) for bound in arrays.get("cu_seqlens", [0, seqlen])]
    packed = "cu_seqlens" in arrays
    seq = arrays.get("seq_idx", np.zeros((batch, seqlen)))
    y, ends = [], []
    for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        state = torch.zeros(batch, nheads, x.shape[3], B.shape[3], dtype=torch.float64)
        if "initial_states" in given:
            states = given["initial_states"]
            if not packed:
                state = states
            elif number < len(states):
                state = states[number : number + 1]
        for t in range(start, stop):
            same = np.ones(batch) if t == start else seq[:, t] == seq[:, t - 1]
            kept = log_decay[:, t].exp() * torch.tensor(same, dtype=torch.float64)[:, None]
            added = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
            state = kept[:, :, None, None] * state + added
            y.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]))
        ends.append(state)
    out = torch.stack(y, dim=1)
    if "D" in given:
        d = given["D"]
        out = out + (d if d.ndim == 2 else d[:, None]) * x
    if "z" in given:
        out = out * F.silu(given["z"])
    return out, ends
