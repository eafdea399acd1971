"""One problem, as one process sees it and cut over ranks: operands, loss, gradients."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as gather

from ssdgen.mamba2_ops import exchange, mamba_chunk_scan_combined, parallel
from tests.parallel.processes import Case

# axis of the tokens; the others are the same on every rank
TOKENS = {"x": 1, "dt": 1, "B": 1, "C": 1, "z": 1, "seq_idx": 1}
# shards of 2, 3 and 4 ranks; even, and with a single token
EVEN = {2: (60, 60), 3: (40, 40, 40), 4: (30, 30, 30, 30)}
UNEVEN = {2: (113, 7), 3: (1, 97, 22), 4: (50, 1, 2, 67)}


@dataclass(frozen=True)
class Problem:
    """sequences: lengths of packed sequences, "" for none, "seq_idx" or "cu_seqlens" for how they are given."""

    lengths: dict[int, tuple[int, ...]] = field(default_factory=lambda: EVEN)
    sequences: str = ""
    batch: int = 2
    nheads: int = 4
    ngroups: int = 2
    dtype: torch.dtype = torch.float64
    full: bool = True
    wide_skip: bool = False
    # operands that need no gradient
    frozen: tuple[str, ...] = ()
    # up to how many ranks every rank gets every pair
    gather_up_to: int = exchange.GATHER_UP_TO

    def operands(self, size: int) -> dict[str, Any]:
        """Of the whole sequence, the same in every process."""
        draw = torch.Generator().manual_seed(7)
        seqlen, headdim, dstate = sum(self.lengths[size]), 6, 5

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        tokens = (self.batch, seqlen, self.nheads)
        found: dict[str, Any] = {
            "x": normal(*tokens, headdim).to(self.dtype),
            "dt": (normal(*tokens) - 2).to(wide),
            "A": -normal(self.nheads).exp().to(wide),
            "B": normal(self.batch, seqlen, self.ngroups, dstate).to(self.dtype),
            "C": normal(self.batch, seqlen, self.ngroups, dstate).to(self.dtype),
        }
        if self.full:
            found |= {
                "D": normal(*((self.nheads, headdim) if self.wide_skip else (self.nheads,))).to(wide),
                "z": normal(*tokens, headdim).to(self.dtype),
                "dt_bias": normal(self.nheads).to(wide),
                "initial_states": normal(self.batch, self.nheads, headdim, dstate).to(wide),
            }
        for name, tensor in found.items():
            tensor.requires_grad_(name not in self.frozen)
        # one ends where a shard of the even cut does, one inside of a shard, one is a single token
        starts = torch.tensor([0, 17, 18, 60, 85, seqlen])
        if self.sequences == "cu_seqlens":
            found["cu_seqlens"] = starts.int()
        if self.sequences == "seq_idx":
            places = torch.arange(seqlen)
            rows = [torch.searchsorted(starts[1:], places, right=True) + 3]
            rows += [(places >= sum(self.lengths[size][:-1])).long()] * (self.batch - 1)
            found["seq_idx"] = torch.stack(rows)
        return found

    def options(self) -> dict[str, Any]:
        steps = {"dt_softplus": True, "dt_limit": (0.01, 0.6)} if self.full else {"dt_softplus": True}
        return {"chunk_size": 16, "return_final_states": True, **steps}

    def weights(self, size: int) -> tuple[Tensor, Tensor]:
        """What y and the final states are multiplied with in the loss."""
        draw = torch.Generator().manual_seed(8)
        tokens = (self.batch, sum(self.lengths[size]), self.nheads, 6)
        y = torch.randn(*tokens, generator=draw, dtype=torch.float64)
        return y, torch.randn(self.batch, self.nheads, 6, 5, generator=draw, dtype=torch.float64)


Found = dict[str, Tensor]


def whole(problem: Problem, size: int) -> Found:
    """y, final and the gradients of one process."""
    operands = problem.operands(size)
    y, final = mamba_chunk_scan_combined(**operands, **problem.options())
    weights_y, weights_final = problem.weights(size)
    ((y * weights_y).sum() + (final * weights_final).sum()).backward()
    return {"y": y, "final": final} | {f"d_{n}": t.grad for n, t in operands.items() if t.requires_grad}


def cut(problem: Problem, size: int, rank: int) -> dict[str, Any]:
    """The operands of a rank, leaves of their own."""
    start = sum(problem.lengths[size][:rank])
    length = problem.lengths[size][rank]
    found = {}
    for name, tensor in problem.operands(size).items():
        part = tensor.narrow(TOKENS[name], start, length) if name in TOKENS else tensor
        found[name] = part.detach().clone().requires_grad_(tensor.requires_grad)
    if rank:
        found.pop("initial_states", None)
    return found


def shard(problem: Problem, group: dist.ProcessGroup) -> Found:
    """The same on a rank."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    operands = cut(problem, size, rank)
    kept, exchange.GATHER_UP_TO = exchange.GATHER_UP_TO, problem.gather_up_to
    try:
        y, final = mamba_chunk_scan_combined(**operands, **problem.options(), process_group=group)
        weights_y, weights_final = problem.weights(size)
        start = sum(problem.lengths[size][:rank])
        loss = (y * weights_y.narrow(1, start, y.shape[1])).sum()
        if rank == size - 1:
            loss = loss + (final * weights_final).sum()
        loss.backward()
    finally:
        exchange.GATHER_UP_TO = kept
    return {"y": y.detach(), "final": final.detach()} | {
        f"d_{n}": t.grad for n, t in operands.items() if t.requires_grad
    }


def together(shards: list[Found]) -> Found:
    """What the ranks found, as one process would have."""
    joined = {}
    for name in shards[0]:
        parts = [found[name] for found in shards if name in found]
        axis = TOKENS.get(name.removeprefix("d_"), 1 if name == "y" else None)
        if name == "final":
            joined[name] = parts[-1]
        elif axis is not None:
            joined[name] = torch.cat(parts, dim=axis)
        else:
            joined[name] = sum(parts)
    return joined


PROBLEMS = {
    "plain": Problem(full=False),
    "full": Problem(),
    "uneven": Problem(lengths=UNEVEN),
    "scan": Problem(lengths=UNEVEN, gather_up_to=1),
    "seq_idx": Problem(sequences="seq_idx"),
    "seq_idx_scan": Problem(lengths=UNEVEN, sequences="seq_idx", gather_up_to=1, full=False),
    "cu_seqlens": Problem(lengths=UNEVEN, sequences="cu_seqlens", batch=1),
    "one_group": Problem(nheads=3, ngroups=1, wide_skip=True),
    "one_head": Problem(nheads=1, ngroups=1),
    "three_groups": Problem(nheads=6, ngroups=3, full=False),
    "frozen": Problem(frozen=("A", "B", "dt", "D", "dt_bias", "initial_states")),
    "float32": Problem(dtype=torch.float32, lengths=UNEVEN),
    "bfloat16": Problem(dtype=torch.bfloat16),
}
SIZES = (2, 3, 4)
CASES: dict[str, tuple[int, Case]] = {
    f"{name}-{size}": (size, partial(shard, PROBLEMS[name])) for name in PROBLEMS for size in SIZES
}


def spied(problem: Problem, group: dist.ProcessGroup) -> tuple[int, int]:
    """Bytes that a rank sends and receives in both passes."""
    others, counts = dist.get_world_size(group) - 1, [0, 0]
    all_gather, swap = dist.all_gather, dist.batch_isend_irecv

    def counted_gather(parts: list[Tensor], tensor: Tensor, **options: Any) -> Any:
        counts[0] += others * tensor.nbytes
        counts[1] += sum(part.nbytes for part in parts) - tensor.nbytes
        return all_gather(parts, tensor, **options)

    def counted_swap(operations: list[dist.P2POp]) -> Any:
        for operation in operations:
            counts[operation.op is dist.irecv] += operation.tensor.nbytes
        return swap(operations)

    dist.all_gather, dist.batch_isend_irecv = counted_gather, counted_swap
    try:
        shard(problem, group)
    finally:
        dist.all_gather, dist.batch_isend_irecv = all_gather, swap
    return counts[0], counts[1]


SEQLENS = (8, 200)
SPIED = {"gather": Problem(batch=1), "scan": Problem(batch=1, gather_up_to=1)}
CASES |= {
    f"bytes-{name}-{seqlen}": (4, partial(spied, replace(problem, lengths={4: (seqlen,) * 4})))
    for name, problem in SPIED.items()
    for seqlen in SEQLENS
}

HALVES = Problem(lengths=UNEVEN, sequences="seq_idx")


def halves(group: dist.ProcessGroup) -> Found:
    """The call in two halves, around an all-gather that torch differentiates."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    operands, options = cut(HALVES, size, rank), HALVES.options()
    shared = {name: options[name] for name in ("dt_softplus", "dt_limit")}
    # known beforehand here, as where a loader hands out shards
    ids = HALVES.operands(size)["seq_idx"]
    start = sum(HALVES.lengths[size][:rank])
    before = ids[:, start - 1] if rank else None
    names = ("x", "dt", "A", "B", "dt_bias", "initial_states", "seq_idx")
    mine = parallel.summary(**{n: operands.get(n) for n in names}, seq_before=before, **shared)
    # one collective: those of a backward pass must come in one order on all ranks
    messages = torch.stack(gather(torch.cat((mine.total.unsqueeze(-1), mine.state.flatten(2)), dim=-1), group=group))
    shape = mine.state.shape
    earlier = [parallel.Summary(part[..., 0], part[..., 1:].reshape(shape)) for part in messages[:rank]]
    initial = operands.pop("initial_states", None)
    entering = reduce(parallel.Summary.joined, earlier).state if rank else initial
    y, final = parallel.apply(**operands, entering=entering, seq_before=before, **options)
    weights_y, weights_final = HALVES.weights(size)
    loss = (y * weights_y.narrow(1, start, y.shape[1])).sum()
    # all ranks must differentiate the collective, also the first, which needs nothing of it
    loss = loss + 0 * messages.nan_to_num(neginf=0.0).sum()
    if rank == size - 1:
        loss = loss + (final * weights_final).sum()
    loss.backward()
    operands["initial_states"] = initial
    return {"y": y.detach(), "final": final.detach()} | {
        f"d_{n}": t.grad for n, t in operands.items() if t is not None and t.requires_grad
    }


CASES["halves"] = (4, halves)
