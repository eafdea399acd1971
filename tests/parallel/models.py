"""Cases of a model on ranks: its parameters sharded by FSDP2, the sequence cut over the same mesh."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ssdgen.mamba2_ops import mamba_chunk_scan_combined, parallel
from tests.parallel.processes import Case

WIDTH, HEADS, HEADDIM, DSTATE = 4, 4, 4, 4


class Mixer(nn.Module):
    """A Mamba-2 block without its norm: projection, causal convolution, scan, projection."""

    def __init__(self) -> None:
        super().__init__()
        inner, grouped = HEADS * HEADDIM, 2 * DSTATE
        self.in_proj = nn.Linear(8, inner + grouped + HEADS, bias=False, dtype=torch.float64)
        self.taps = nn.Parameter(torch.randn(inner + grouped, WIDTH, dtype=torch.float64))
        self.A_log = nn.Parameter(torch.randn(HEADS, dtype=torch.float64))
        self.dt_bias = nn.Parameter(torch.randn(HEADS, dtype=torch.float64))
        self.out_proj = nn.Linear(inner, 8, bias=False, dtype=torch.float64)

    def forward(self, u: Tensor, ranks: Any = None) -> Tensor:
        channels, dt = self.in_proj(u).split([self.taps.shape[0], HEADS], dim=-1)
        before = channels.new_zeros(u.shape[0], WIDTH - 1, self.taps.shape[0])
        if ranks is not None:
            before = parallel.halo(channels, WIDTH, ranks)
        windows = torch.cat((before, channels), dim=1).unfold(1, WIDTH, 1)
        x, B, C = (windows * self.taps).sum(-1).split([HEADS * HEADDIM, DSTATE, DSTATE], dim=-1)
        y = mamba_chunk_scan_combined(
            x.unflatten(-1, (HEADS, HEADDIM)), dt, -self.A_log.exp(), B.unsqueeze(2), C.unsqueeze(2), 16,
            dt_bias=self.dt_bias, dt_softplus=True, process_group=ranks,
        )  # fmt: skip
        return self.out_proj(y.flatten(2))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Mixer(), Mixer())


def tokens() -> tuple[Tensor, Tensor]:
    """Inputs, and what the outputs are multiplied with in the loss."""
    draw = torch.Generator().manual_seed(1)
    u, weights = (torch.randn(2, 40, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    return u, weights


def whole() -> dict[str, Tensor]:
    one, (u, weights) = model(), tokens()
    for mixer in one:
        u = mixer(u)
    (u * weights).sum().backward()
    return {name: parameter.grad for name, parameter in one.named_parameters()} | {"output": u.detach()}


def fsdp(group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The gradients of all parameters, whole, and the output of this rank's shard."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(group),), mesh_dim_names=("sequence",))
    ours, (u, weights) = model(), tokens()
    for mixer in ours:
        fully_shard(mixer, mesh=mesh)
        # gradients of shards add up; a mean is for batches
        mixer.set_gradient_divide_factor(1.0)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    part, weights = u.chunk(size, dim=1)[rank], weights.chunk(size, dim=1)[rank]
    for mixer in ours:
        part = mixer(part, mesh["sequence"])
    (part * weights).sum().backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in ours.named_parameters()}
    return found | {"output": part.detach()}


CASES: dict[str, tuple[int, Case]] = {"fsdp": (4, fsdp)}
