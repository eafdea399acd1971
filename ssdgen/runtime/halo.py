"""The tokens before a shard, for a causal convolution over a sequence that is cut over ranks.  parallel -> halo

A shard may be shorter than what the convolution looks back.  So every rank sends its last tokens to as many ranks after
it as tokens are looked back, and each of these takes from what arrived the ones that are next to it.  How many there
are is known on the device alone, and what is sent depends on the width and not on seqlen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DtypeError, OptionError, ShapeError
from .ranks import CALLS, DTYPES, Agreement, Ranks, ranks_of, talking


def halo(
    x: Tensor,
    width: int,
    process_group: Any,
    *,
    dim: int = 1,
    initial: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """The width - 1 tokens before this rank's shard: the initial state of its causal convolution.  Differentiable.

    x: this rank's shard, [batch, seqlen, ...], or [batch, channels, seqlen] with dim=2; at least one token; any
        floating dtype, sizes but seqlen as on the other ranks.
    width: of the convolution, at least 1.
    process_group: a ProcessGroup or a DeviceMesh with one dimension, in the order of the sequence.
    dim: the axis of the tokens, not the first.
    initial: what comes before the first rank's shard, as x with width - 1 tokens; on that rank alone; None: zero.
    seq_idx: [batch, seqlen], int32 or int64; tokens of another sequence than the shard's first one become 0.

    Returns: as x with width - 1 tokens.  The backward pass sends every token's gradient to the rank it came from, so
    all ranks must run it.
    Errors: ShapeError, DtypeError, OptionError, GroupError, RankMismatchError, CommunicationError.
    """
    ranks = ranks_of(process_group, x)
    failed = None
    call = {"call": CALLS.index("halo")}
    try:
        _check(x, width, dim, initial, seq_idx)
        sizes = [size for axis, size in enumerate(x.shape) if axis != dim]
        needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, initial))
        call |= {"width": width, "dim": dim, "dtype": DTYPES.index(x.dtype), "gradients": int(needs)}
        call |= {"dimensions": x.dim(), **{f"size {axis}": size for axis, size in enumerate(sizes)}}
        call |= {"seq_idx": int(seq_idx is not None), "seqlen": x.shape[dim], "initial": int(initial is not None)}
    except Exception as error:
        # whatever it is: the others are told before it is raised here
        failed = error
    agreed = Agreement(ranks, call, failed)
    before, tokens = width - 1, x.movedim(dim, 0)
    if not before or not x.numel():
        agreed.wait()
        return x.narrow(dim, 0, 0) if not before else x.new_zeros(before, *tokens.shape[1:]).movedim(0, dim)

    first = tokens.new_zeros(before, *tokens.shape[1:]) if initial is None else initial.movedim(dim, 0)
    # tokens of the first rank are never too few: what comes before it counts as its own
    tail = torch.cat((first, tokens[-before:]))[-before:]
    arrived = _Tails.apply(ranks, before, tail, first)
    chosen = _nearest(ranks, before, agreed.seqlens)
    found = arrived.index_select(0, chosen)
    if seq_idx is not None:
        # what comes before the first rank is of its first sequence
        ids = seq_idx.T.long()
        own = torch.cat((ids[:1].expand(before, -1), ids[-before:]))[-before:]
        with torch.no_grad():
            others = _Tails.apply(ranks, before, own, ids[:1].expand(before, -1)).index_select(0, chosen)
        same = (others == ids[0]).reshape(before, -1, *[1] * (found.dim() - 2))
        found = torch.where(same, found, 0.0)
    return found.movedim(0, dim)


def _check(x: Tensor, width: int, dim: int, initial: Tensor | None, seq_idx: Tensor | None) -> None:
    if not isinstance(x, Tensor) or not 2 <= x.dim() <= 5 or not isinstance(dim, int) or not 1 <= dim < x.dim():
        shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"x is {shape}, dim is {dim}; x must be [batch, ...] with the tokens on an axis 1 to 4, dim")
    if x.dtype not in DTYPES:
        raise DtypeError(f"x is {x.dtype}; it must be one of {', '.join(map(str, DTYPES))}")
    if not isinstance(width, int) or width < 1:
        raise OptionError(f"width is {width!r}; it must be an integer of at least 1")
    if not x.shape[dim]:
        raise ShapeError("x has no tokens; give every rank at least one")
    wanted = (*x.shape[:dim], width - 1, *x.shape[dim + 1 :])
    if initial is not None and (initial.shape != wanted or initial.dtype != x.dtype):
        raise ShapeError(f"initial is {list(initial.shape)}, {initial.dtype}; it must be {list(wanted)}, {x.dtype}")
    if seq_idx is not None and seq_idx.shape != (x.shape[0], x.shape[dim]):
        raise ShapeError(f"seq_idx has shape {list(seq_idx.shape)}; it must be {[x.shape[0], x.shape[dim]]}")


def _nearest(ranks: Ranks, before: int, seqlens: Tensor) -> Tensor:
    """Which of the tokens that arrived are the last `before`; those of shorter shards are padded in front."""
    nearest = ranks.rank - torch.arange(min(before, ranks.size), 0, -1, device=seqlens.device)
    # of the first rank all tokens count, and in its own place what comes before it
    count = torch.where(nearest > 0, seqlens[nearest.clamp(min=0)].clamp(max=before), before)
    count = torch.where(nearest >= min(0, ranks.rank - 1), count, 0)
    place = torch.arange(nearest.numel() * before, device=seqlens.device)
    there = place % before >= before - count.repeat_interleave(before)
    return torch.where(there, place, -1).sort().values[-before:]


class _Tails(torch.autograd.Function):
    """The last tokens of the ranks before this one, the farthest first; its adjoint adds up what they are sent back."""

    @staticmethod
    def forward(ctx, ranks, before, tail, first):
        ctx.ranks, ctx.before = ranks, before
        reach = min(before, ranks.size)
        tail = tail.contiguous()
        arrived = tail.new_zeros(reach, *tail.shape)
        steps = range(1, reach + 1)
        _swap(ranks, {ranks.rank + k: tail for k in steps}, {ranks.rank - k: arrived[reach - k] for k in steps})
        if ranks.rank == 0:
            arrived[-1] = first
        return arrived.flatten(0, 1)

    @staticmethod
    def backward(ctx, d_arrived):  # type: ignore[override]
        ranks, before = ctx.ranks, ctx.before
        d_arrived = d_arrived.unflatten(0, (-1, before)).contiguous()
        reach = d_arrived.shape[0]
        steps = range(1, reach + 1)
        d_tails = d_arrived.new_zeros(d_arrived.shape)
        _swap(
            ranks,
            {ranks.rank - k: d_arrived[reach - k] for k in steps},
            {ranks.rank + k: d_tails[k - 1] for k in steps},
        )
        return None, None, d_tails.sum(0), d_arrived[-1] if ranks.rank == 0 else torch.zeros_like(d_arrived[-1])


def _swap(ranks: Ranks, sent: dict[int, Tensor], received: dict[int, Tensor]) -> None:
    """Send to ranks and receive from ranks at once; those that are none are left out."""
    operations = [
        dist.P2POp(how, tensor, ranks.place(rank), ranks.group)
        for how, tensors in ((dist.isend, sent), (dist.irecv, received))
        for rank, tensor in tensors.items()
        if 0 <= rank < ranks.size
    ]
    with talking(ranks, "tokens at the ends of shards"):
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
