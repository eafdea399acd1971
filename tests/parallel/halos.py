"""Cases of the convolution's halo: a causal convolution over shards, as one process would have it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ssdgen.mamba2_ops import parallel
from tests.parallel.processes import Case


@dataclass(frozen=True)
class Halo:
    """lengths: of the shards of four ranks; channels_first: [batch, channels, seqlen]."""

    lengths: tuple[int, ...] = (9, 9, 9, 9)
    width: int = 4
    channels_first: bool = False
    initial: bool = False
    sequences: bool = False

    def operands(self) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(3)
        seqlen = sum(self.lengths)
        found = {
            "x": torch.randn(2, seqlen, 3, generator=draw, dtype=torch.float64),
            "taps": torch.randn(self.width, 3, generator=draw, dtype=torch.float64),
            "d_y": torch.randn(2, seqlen, 3, generator=draw, dtype=torch.float64),
        }
        if self.initial:
            found["initial"] = torch.randn(2, self.width - 1, 3, generator=draw, dtype=torch.float64)
        places = torch.arange(seqlen)
        starts = torch.tensor([5, self.lengths[0], 2 * self.lengths[0] - 1])
        found["seq_idx"] = torch.stack([torch.searchsorted(starts, places, right=True), places // 20])
        return found


def convolved(taps: Tensor, before: Tensor, x: Tensor, seq_idx: Tensor | None) -> Tensor:
    """y_t = sum over k of taps_k x_{t - k}, of the same sequence.  before: [batch, width - 1, channels]."""
    width, seqlen = taps.shape[0], x.shape[1]
    tokens = torch.cat((before, x), dim=1)
    # what comes before counts as of the first token's sequence
    ids = None if seq_idx is None else torch.cat((seq_idx[:, :1].expand(-1, width - 1), seq_idx), dim=1)
    y = torch.zeros_like(x)
    for back in range(width):
        part = tokens[:, width - 1 - back :][:, :seqlen]
        if ids is not None:
            part = part * (ids[:, width - 1 - back :][:, :seqlen] == seq_idx).unsqueeze(-1)
        y = y + part * taps[back]
    return y


def whole(halo: Halo) -> dict[str, Tensor]:
    given = halo.operands()
    x, initial = given["x"].requires_grad_(), given.get("initial")
    before = x.new_zeros(2, halo.width - 1, 3) if initial is None else initial.requires_grad_()
    y = convolved(given["taps"], before, x, given["seq_idx"] if halo.sequences else None)
    (y * given["d_y"]).sum().backward()
    return {"y": y.detach(), "d_x": x.grad} | ({} if initial is None else {"d_initial": initial.grad})


def shard(halo: Halo, group: dist.ProcessGroup) -> dict[str, Tensor]:
    rank, given = dist.get_rank(group), halo.operands()
    start, length = sum(halo.lengths[:rank]), halo.lengths[rank]
    x = given["x"][:, start : start + length].clone().requires_grad_()
    seq_idx = given["seq_idx"][:, start : start + length] if halo.sequences else None
    initial = given["initial"].requires_grad_() if rank == 0 and halo.initial else None
    turned = (lambda t: None if t is None else t.transpose(1, 2)) if halo.channels_first else (lambda t: t)
    before = parallel.halo(
        turned(x), halo.width, group, dim=2 if halo.channels_first else 1, initial=turned(initial), seq_idx=seq_idx
    )
    y = convolved(given["taps"], turned(before), x, seq_idx)
    (y * given["d_y"][:, start : start + length]).sum().backward()
    return {"y": y.detach(), "d_x": x.grad} | ({} if initial is None else {"d_initial": initial.grad})


HALOS = {
    "even": Halo(),
    "channels first": Halo(channels_first=True),
    "initial": Halo(initial=True, lengths=(2, 3, 30, 1)),
    "one token each": Halo(lengths=(1, 1, 1, 1), width=4),
    "wider than all shards": Halo(lengths=(2, 1, 1, 2), width=7, initial=True),
    "sequences": Halo(sequences=True),
    "sequences in short shards": Halo(sequences=True, lengths=(6, 1, 2, 30)),
    "width 2": Halo(width=2, lengths=(1, 5, 1, 7)),
    "width 1": Halo(width=1),
}
CASES: dict[str, tuple[int, Case]] = {f"halo {name}": (4, partial(shard, halo)) for name, halo in HALOS.items()}
