"""The forward in float64, chunk by chunk, on the device where the inputs are.  Inputs -> y, states -> gate

It shares no code with the generator: a mistake in the description must not hide here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Inputs, steps

# few chunks are few launches, of which a long sequence would need a million
CHUNK = 256

# elements of the output that are compared: all heads of most problems, in at most 1 GB of fp32
LARGEST = 2**28


def sample_heads(batch: int, seqlen: int, nheads: int, headdim: int, largest: int = LARGEST) -> list[int]:
    """The heads to compare: all, or evenly spread ones with the first and the last if all would be too much."""
    count = max(1, min(nheads, largest // (batch * seqlen * headdim)))
    if count == 1:
        return [nheads - 1]
    return sorted({round(k * (nheads - 1) / (count - 1)) for k in range(count)})


def forward(inputs: Inputs, heads: list[int]) -> tuple[Tensor, Tensor]:
    """y [batch, seqlen, heads, headdim] and final states [batch, heads, headdim, dstate] of the given heads.

    Computed in float64 and rounded to fp32.

    y_i = sum_{j <= i} exp(s_i - s_j) (C_i . B_j) dt_j x_j + exp(s_i) C_i H + D x_i, with H carried from chunk to chunk
    (docs/maths.md); the step is softplus(dt + dt_bias), or with decays for every token dt itself.
    """
    (batch, seqlen), headdim = inputs.x.shape[:2], inputs.x.shape[3]
    chosen = torch.tensor(heads, device=inputs.x.device)
    of_x, of_B, of_C = (chosen // inputs.each(name) for name in ("x", "B", "C"))
    D = inputs.D[chosen].double()
    bias = None if inputs.dt_bias is None else inputs.dt_bias[chosen].double()
    state = torch.zeros(batch, len(heads), headdim, inputs.B.shape[3], dtype=torch.float64, device=inputs.x.device)
    y = torch.empty(batch, seqlen, len(heads), headdim, device=inputs.x.device)
    # what heads share of B and C once, however many they are
    pairs, of_head = torch.stack((of_B, of_C)).unique(dim=1, return_inverse=True)
    for start in range(0, seqlen, CHUNK):
        at = slice(start, start + CHUNK)
        x = inputs.x[:, at, of_x].double().transpose(1, 2)  # [b, h, i, p]
        A = (inputs.A[chosen] if inputs.A.dim() == 1 else inputs.A[:, at, chosen]).double()
        dt, decays = (t.transpose(1, 2) for t in steps(inputs.dt[:, at, chosen].double(), A, bias))  # [b, h, i]
        B = inputs.B[:, at, pairs[0]].double().transpose(1, 2)  # [b, g, i, n]
        C = inputs.C[:, at, pairs[1]].double().transpose(1, 2)
        s = decays.cumsum(-1)
        below = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).tril()
        # masked before exp: above the diagonal it would overflow
        decay = (s[..., :, None] - s[..., None, :]).masked_fill(~below, float("-inf")).exp()
        weights = (C @ B.mT)[:, of_head] * decay * dt[..., None, :]  # [b, h, i, j]
        entering = s.exp()[..., None] * (C[:, of_head] @ state.mT)  # [b, h, i, p]
        y[:, at] = (weights @ x + entering + D[:, None, None] * x).transpose(1, 2)
        last = s[..., -1:]
        gathered = (x * ((last - s).exp() * dt)[..., None]).mT @ B[:, of_head]  # [b, h, p, n]
        state = last.exp()[..., None] * state + gathered
    return y, state.float()
