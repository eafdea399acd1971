"""`ssd` as the matrix that it stands for, in float64: what the layouts and masks are compared with.

Shares nothing with the description, nor with the PyTorch path: every entry of the matrix is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor

# heads of x, b and c by layout, for nheads and ngroups
HEADS = {
    "multi-input": lambda h, g: (h, g, g),
    "multi-head": lambda h, g: (h, h, h),
    "multi-contract": lambda h, g: (g, g, h),
    "multi-expand": lambda h, g: (g, h, g),
}
MASKS = ("gated", "constant", "none")


def draw(
    layout: str, mask: str, sizes: tuple[int, ...], seed: int, *options: str, sequences: int = 1
) -> dict[str, Tensor]:
    """Operands of `ssd` in float64.  sizes: batch, seqlen, nheads, ngroups, headdim, dstate; options: by argument."""
    batch, seqlen, nheads, ngroups, headdim, dstate = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hx, hb, hc = HEADS[layout](nheads, ngroups)
    decays = {"gated": (batch, seqlen, nheads), "constant": (nheads,)}
    found = {
        "x": normal(batch, seqlen, hx, headdim),
        "b": normal(batch, seqlen, hb, dstate) / dstate**0.5,
        "c": normal(batch, seqlen, hc, dstate),
        "weight": normal(batch, seqlen, nheads),
        "D": normal(nheads),
        "initial_states": normal(sequences if sequences > 1 else batch, nheads, headdim, dstate),
    }
    if mask in decays:
        found["a"] = -torch.rand(decays[mask], dtype=torch.float64, generator=generator)
    return {name: value for name, value in found.items() if name in ("x", "a", "b", "c", *options)}


def matrix(a: Tensor | None, b: Tensor, c: Tensor, nheads: int, weight: Tensor | None = None) -> Tensor:
    """M of every head, [batch, nheads, seqlen, seqlen]."""
    batch, seqlen = b.shape[:2]
    rates = torch.zeros(batch, seqlen, nheads) if a is None else a.expand(batch, seqlen, nheads)
    later = torch.ones(seqlen, seqlen, dtype=torch.bool).tril(-1)  # [k, j]: k > j
    # a running sum from each token on: what it leaves to itself and to every later one
    sums = torch.where(later, rates.mT.unsqueeze(-1), 0.0).cumsum(2)
    kept = torch.where(later.tril(0) | torch.eye(seqlen, dtype=torch.bool), sums.exp(), 0.0)
    scores = torch.einsum("bihn,bjhn->bhij", of_heads(c, nheads), of_heads(b, nheads))
    return kept * scores if weight is None else kept * scores * weight.transpose(1, 2)[:, :, None]


def of_heads(tensor: Tensor, nheads: int) -> Tensor:
    return tensor.repeat_interleave(nheads // tensor.shape[2], dim=2)


def dense(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    a: Tensor | None = None,
    weight: Tensor | None = None,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the final states of `ssd`."""
    nheads = max(tensor.shape[2] for tensor in (x, b, c))
    batch, seqlen = x.shape[:2]
    values, keys = of_heads(x, nheads), of_heads(b, nheads)
    same = torch.ones(batch, seqlen, seqlen) if seq_idx is None else seq_idx[:, :, None] == seq_idx[:, None, :]
    mixed = matrix(a, b, c, nheads, weight) * same[:, None]
    y = torch.einsum("bhij,bjhp->bihp", mixed, values)
    # the last row with its query left out is the state
    kept = matrix(a, torch.ones_like(b[..., :1]), torch.ones_like(c[..., :1]), nheads, weight) * same[:, None]
    state = torch.einsum("bhj,bjhp,bjhn->bhpn", kept[:, :, -1], values, keys)
    if initial_states is not None:
        rates = torch.zeros(batch, seqlen, nheads) if a is None else a.expand(batch, seqlen, nheads)
        since = rates.cumsum(1).exp() * same[:, :, 0, None]
        y = y + torch.einsum("bih,bhpn,bihn->bihp", since, initial_states, of_heads(c, nheads))
        state = state + since[:, -1, :, None, None] * initial_states
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]) * values
    return y, state
