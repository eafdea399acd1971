"""Random numbers for Mamba-3, and its recurrence with a complex state, independent of the description."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = dict[str, Any]


def draw(
    seed: int,
    *,
    batch: int = 2,
    seqlen: int = 11,
    nheads: int = 4,
    ngroups: int = 2,
    headdim: int = 3,
    dstate: int = 6,
    rates: int = 2,
    states: bool = True,
    skip: bool = True,
    gate: bool = True,
) -> Arrays:
    """Inputs of the oracle.  rates: number of pairs that turn."""
    random = np.random.default_rng(seed)
    tokens, state = (batch, seqlen, nheads), (batch, nheads, headdim, dstate)
    arrays: Arrays = {
        "x": random.normal(size=(*tokens, headdim)),
        "B": random.normal(size=(batch, seqlen, ngroups, dstate)),
        "C": random.normal(size=(batch, seqlen, ngroups, dstate)),
        "adt": -random.uniform(0.01, 1.0, size=tokens),
        "step": random.uniform(0.1, 1.0, size=tokens),
        "mix": random.normal(size=tokens),
        "rate": random.normal(size=(*tokens, rates)),
        "B_bias": random.normal(size=(nheads, dstate)),
        "C_bias": random.normal(size=(nheads, dstate)),
    }
    if skip:
        arrays["D"] = random.normal(size=nheads)
    if gate:
        arrays["z"] = random.normal(size=(*tokens, headdim))
    if states:
        arrays |= {
            "angle": random.uniform(0, 2 * np.pi, size=(batch, nheads, rates)),
            "state": random.normal(size=state),
            "B_before": random.normal(size=(batch, nheads, dstate)),
            "x_before": random.normal(size=(batch, nheads, headdim)),
        }
    return arrays


def complex_recurrence(arrays: Arrays) -> Any:
    """y [b, L, H, P] by a state that turns itself: half as wide and complex, B and C as they are.

    The state g is the layer's, turned back by the angle of the token: g_t = exp(-i turn_t) alpha_t (g_{t-1} + ..).
    """
    x, heads = arrays["x"], arrays["x"].shape[2]
    pairs, rates = arrays["B"].shape[3] // 2, arrays["rate"].shape[3]
    b, c = (np.repeat(arrays[k], heads // arrays[k].shape[2], axis=2) + arrays[f"{k}_bias"] for k in "BC")
    b, c = (k[..., 0::2] + 1j * k[..., 1::2] for k in (b, c))
    share = 1 / (1 + np.exp(-arrays["mix"]))
    angles = np.zeros((*x.shape[:3], pairs))
    angles[..., :rates] = np.pi * np.tanh(arrays["rate"]) * arrays["step"][..., None]
    g = np.zeros((x.shape[0], heads, x.shape[3], pairs), complex)
    y = np.empty(x.shape)
    for t in range(x.shape[1]):
        if t:
            weight = (1 - share[:, t]) * arrays["step"][:, t]
            g = g + weight[..., None, None] * x[:, t - 1, :, :, None] * b[:, t - 1, :, None]
        g = np.exp(arrays["adt"][:, t, :, None, None] - 1j * angles[:, t, :, None]) * g
        g = g + (share[:, t] * arrays["step"][:, t])[..., None, None] * x[:, t, :, :, None] * b[:, t, :, None]
        y[:, t] = (g * c[:, t, :, None].conj()).real.sum(-1)
    if "D" in arrays:
        y = y + arrays["D"][:, None] * x
    if "z" in arrays:
        y = y * arrays["z"] / (1 + np.exp(-arrays["z"]))
    return y
