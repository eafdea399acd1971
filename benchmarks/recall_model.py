"""A small Mamba-2 language model around any scan, and the task that it learns.  -> recall"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# mamba_chunk_scan_combined, or what has its signature
Scan = Callable[..., Tensor]
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """Multi-query associative recall: keys with their values, then the keys again, scattered, in another order.

    Where a key comes again its value is to be said.  pairs: of a sequence; keys, values: to choose from.
    """

    pairs: int = 8
    seqlen: int = 192
    keys: int = 32
    values: int = 32

    @property
    def vocabulary(self) -> int:
        """Keys, then values, then one token that means nothing."""
        return self.keys + self.values + 1

    def batch(self, size: int, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """(tokens, targets), both [size, seqlen]; targets are IGNORED where nothing is asked.

        Every device draws others; those of the CPU are the same everywhere.
        """
        draw = torch.Generator(device).manual_seed(seed)

        def some(of: int, count: int) -> Tensor:
            return torch.rand(size, of, generator=draw, device=device).argsort(1)[:, :count]

        keys = some(self.keys, self.pairs)
        values = self.keys + torch.randint(self.values, keys.shape, generator=draw, device=device)
        start = 2 * self.pairs
        tokens = torch.full((size, self.seqlen), self.keys + self.values, device=device)
        tokens[:, :start] = torch.stack([keys, values], dim=2).flatten(1)
        targets = torch.full_like(tokens, IGNORED)
        places = start + some(self.seqlen - start, self.pairs)
        return tokens.scatter(1, places, keys), targets.scatter(1, places, values)


@dataclass(frozen=True)
class Sizes:
    """d_inner is twice d_model; nheads is d_inner over headdim."""

    d_model: int = 128
    layers: int = 2
    headdim: int = 32
    dstate: int = 64
    width: int = 4

    @property
    def d_inner(self) -> int:
        return 2 * self.d_model

    @property
    def nheads(self) -> int:
        return self.d_inner // self.headdim


class RMSNorm(nn.Module):
    """x over its root mean square, in fp32; with a gate z it is silu(z) * x that is normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        wide = x.float()
        if z is not None:
            wide = wide * F.silu(z.float())
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Mixer(nn.Module):
    """Mamba-2's block: projection, short convolution, scan, gated norm, projection."""

    def __init__(self, sizes: Sizes, scan: Scan) -> None:
        super().__init__()
        self.sizes, self.scan = sizes, scan
        conv = sizes.d_inner + 2 * sizes.dstate
        self.in_proj = nn.Linear(sizes.d_model, sizes.d_inner + conv + sizes.nheads, bias=False)
        self.conv1d = nn.Conv1d(conv, conv, sizes.width, groups=conv, padding=sizes.width - 1)
        step = torch.exp(torch.rand(sizes.nheads) * (log(0.1) - log(0.001)) + log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(sizes.nheads)))
        self.D = nn.Parameter(torch.ones(sizes.nheads))
        self.norm = RMSNorm(sizes.d_inner)
        self.out_proj = nn.Linear(sizes.d_inner, sizes.d_model, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        sizes, seqlen = self.sizes, u.shape[1]
        z, xBC, dt = self.in_proj(u).split([sizes.d_inner, sizes.d_inner + 2 * sizes.dstate, sizes.nheads], dim=-1)
        xBC = F.silu(self.conv1d(xBC.transpose(1, 2))[..., :seqlen]).transpose(1, 2).contiguous()
        x, B, C = xBC.split([sizes.d_inner, sizes.dstate, sizes.dstate], dim=-1)
        y = self.scan(
            x.unflatten(2, (sizes.nheads, sizes.headdim)), dt, -torch.exp(self.A_log.float()), B.unsqueeze(2),
            C.unsqueeze(2), 64, D=self.D, dt_bias=self.dt_bias, dt_softplus=True,
        )  # fmt: skip
        return self.out_proj(self.norm(y.flatten(2), z))


class Model(nn.Module):
    """Tokens -> logits, [batch, seqlen, vocabulary]."""

    def __init__(self, vocabulary: int, sizes: Sizes, scan: Scan) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, sizes.d_model)
        self.mixers = nn.ModuleList(Mixer(sizes, scan) for _ in range(sizes.layers))
        self.norms = nn.ModuleList(RMSNorm(sizes.d_model) for _ in range(sizes.layers + 1))
        self.head = nn.Linear(sizes.d_model, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            hidden = hidden + mixer(norm(hidden))
        return self.head(self.norms[-1](hidden))
