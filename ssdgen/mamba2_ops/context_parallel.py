"""A sequence that is cut over ranks, forward and backward.  interface -> context_parallel -> exchange, paths

Forward, each rank: the pair (total, state) of its shard by the kernels that make states alone; an exchange, after which
it has the state that enters its shard; then the call that one process would make, from that state.  Backward the same
from the last rank to the first: the adjoint of the state that enters, made of the shard alone; an exchange, after which
the rank has the adjoint of the state that leaves its shard; then the backward pass that one process would run.  So no
output is corrected afterwards, and nothing about a shard's decays has to be differentiated outside of the kernels.

The heads go in two halves: the pairs of the first travel while those of the second are computed.  The sizes and the
sequences of the shards' ends travel while the first are.  What travels does not depend on seqlen.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from math import log

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import autograd, exchange, fallback, paths
from .autograd import DIFFERENTIABLE
from .checks import check_forward
from .errors import DtypeError, OptionError, ShapeError
from .problem import Problem
from .ranks import CALLS, DTYPES, Agreement, Ranks, as_int, ranks_of, talking
from .sequences import check_sequences, seq_idx_of
from .settings import PER_HEAD

# axis of the heads; of the others it is 2
_HEAD_AXIS = {"A": 0, "D": 0, "dt_bias": 0, "initial_states": 1, "d_states": 1}
_SHARED = frozenset(name for name, per_head in PER_HEAD.items() if not per_head)

Operands = dict[str, Tensor | None]
# dt_softplus, dt_min, dt_max
Steps = tuple[bool, float, float]


@torch.compiler.disable
def on_ranks(
    process_group, x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus,
    dt_limit, return_final_states, return_varlen_states, state_dtype,
):  # fmt: skip
    """`mamba_chunk_scan_combined` on a shard.  torch.compile leaves it out of its graphs: it cannot be traced."""
    ranks = ranks_of(process_group, x)
    if ranks.size == 1:
        from .interface import mamba_chunk_scan_combined

        return mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
            return_final_states, return_varlen_states, state_dtype,
        )  # fmt: skip
    operands = dict(zip(DIFFERENTIABLE, (x, dt, A, B, C, D, z, dt_bias, initial_states), strict=True))
    y, leaving_state = scan(
        ranks, operands, chunk_size=chunk_size, seq_idx=seq_idx, cu_seqlens=cu_seqlens, dt_softplus=dt_softplus,
        dt_limit=dt_limit, final_states=return_final_states, varlen_states=return_varlen_states,
        state_dtype=state_dtype,
    )  # fmt: skip
    return (y, leaving_state) if return_final_states else y


def scan(
    ranks: Ranks,
    operands: Operands,
    *,
    chunk_size: int,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    final_states: bool,
    varlen_states: bool,
    state_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """y of this rank's shard and, with final_states, the state that leaves it.

    operands: by the names in DIFFERENTIABLE, nothing checked yet; the rest as in `mamba_chunk_scan_combined`.
    Errors: those of the checks on the rank whose argument is wrong, RankMismatchError on the others;
    CommunicationError.
    """
    problem, failed = None, None
    call = {"call": CALLS.index("mamba_chunk_scan_combined")}
    x = operands["x"]
    try:
        problem = _checked(operands, chunk_size, seq_idx, cu_seqlens, dt_limit, varlen_states, state_dtype)
        needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands.values())
        call |= _call(problem, operands, seq_idx, cu_seqlens, dt_softplus, dt_limit)
        call |= {"return_final_states": int(final_states), "gradients": int(needs)}
    except Exception as error:
        # whatever it is: the others are told before it is raised here
        failed = error
    agreed = Agreement(ranks, call, failed)
    assert problem is not None and x is not None
    if not problem.batch:
        agreed.wait()
        return fallback.forward(**operands, final_states=final_states, state_dtype=state_dtype)
    if cu_seqlens is not None:
        seq_idx = _cut_here(ranks, agreed, cu_seqlens, problem)
    goes_on = None if seq_idx is None else _goes_on(ranks, seq_idx)
    agreed.wait()
    steps = (dt_softplus, float(dt_limit[0]), float(dt_limit[1]))
    tensors = [operands[name] for name in DIFFERENTIABLE]
    given = (ranks, problem, steps, chunk_size, final_states, state_dtype, goes_on, seq_idx, *tensors)
    y, ends, *_ = _Sharded.apply(*given) if needs else _forward(*given)
    return y, ends if final_states else None


def _checked(operands, chunk_size, seq_idx, cu_seqlens, dt_limit, varlen_states, state_dtype) -> Problem:
    x, dt, A, B, C, D, z, dt_bias, initial_states = (operands[name] for name in DIFFERENTIABLE)
    if varlen_states:
        raise OptionError(
            "return_varlen_states=True with a process_group: a packed sequence may end on any rank; ask for "
            "return_final_states, which gives the state that leaves each shard"
        )
    if cu_seqlens is not None:
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
            raise ShapeError(
                "cu_seqlens must be a tensor [number of sequences + 1], of the whole row and not of a shard"
            )
        if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.device != x.device:
            where = f"{cu_seqlens.dtype} on {cu_seqlens.device}"
            raise DtypeError(f"cu_seqlens is {where}; it must be int32 or int64, on x's device")
        if isinstance(x, Tensor) and x.dim() and x.shape[0] != 1:
            raise ShapeError(f"cu_seqlens was given with batch {x.shape[0]}; packed sequences are one row: batch 1")
    return check_forward(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, None, dt_limit, False, state_dtype
    )


def _call(problem: Problem, operands: Operands, seq_idx, cu_seqlens, dt_softplus, dt_limit) -> dict[str, int]:
    """What the ranks must have in common, and the two things that they need not."""
    dtype, packed = operands["x"].dtype, 0
    if cu_seqlens is not None:
        # on a GPU the contents would have to be waited for
        values = repr(cu_seqlens.tolist()) if cu_seqlens.device.type == "cpu" else str(cu_seqlens.shape[0])
        packed = zlib.crc32(values.encode())
    given = ("D", "z", "dt_bias")
    limits = zip(("lower dt_limit", "upper dt_limit"), dt_limit, strict=True)
    return {
        "batch": problem.batch,
        "nheads": problem.nheads,
        "headdim": problem.headdim,
        "dstate": problem.dstate,
        "ngroups": problem.ngroups,
        "dtype": DTYPES.index(dtype),
        **{name: int(operands[name] is not None) for name in given},
        "seq_idx": int(seq_idx is not None and cu_seqlens is None),
        "cu_seqlens": packed,
        "dt_softplus": int(dt_softplus),
        **{name: as_int(limit) for name, limit in limits},
        "seqlen": problem.seqlen,
        "initial": int(operands["initial_states"] is not None),
    }


def _cut_here(ranks: Ranks, agreed: Agreement, cu_seqlens: Tensor, problem: Problem) -> Tensor:
    """seq_idx of this rank's shard of a row of packed sequences."""
    seqlens = agreed.seqlens
    if seqlens.device.type == "cpu":
        check_sequences(cu_seqlens, int(seqlens.sum()))
    return seq_idx_of(cu_seqlens, problem.seqlen, seqlens[: ranks.rank].sum().to(cu_seqlens.dtype))


def _goes_on(ranks: Ranks, seq_idx: Tensor) -> Tensor:
    """Whether the first token of each row belongs to the sequence of the token before it, on another rank: [batch]."""
    last = seq_idx[:, -1].long().contiguous()
    ends = last.new_empty(ranks.size, *last.shape)
    with talking(ranks, "sequences"):
        dist.all_gather(list(ends.unbind(0)), last, group=ranks.group, async_op=True).wait()
    # an initial state belongs to the first token's sequence
    return seq_idx[:, 0] == (ends[ranks.rank - 1] if ranks.rank else seq_idx[:, 0])


def halves(problem: Problem) -> list[tuple[slice, slice]]:
    """Heads and groups in two halves, or in one part if there is only one head."""
    heads, groups = problem.nheads, problem.ngroups
    if heads == 1:
        return [(slice(0, 1), slice(0, 1))]
    if groups == 1:
        return [(slice(0, heads // 2), slice(0, 1)), (slice(heads // 2, heads), slice(0, 1))]
    group, each = groups // 2, heads // groups
    return [(slice(0, group * each), slice(0, group)), (slice(group * each, heads), slice(group, groups))]


def _part(problem: Problem, half: tuple[slice, slice], tensors: Operands) -> tuple[Problem, Operands]:
    heads, groups = half
    sizes = replace(problem, nheads=heads.stop - heads.start, ngroups=groups.stop - groups.start)
    if sizes == problem:
        return problem, tensors

    def cut(name: str, tensor: Tensor | None) -> Tensor | None:
        part = groups if name in _SHARED else heads
        axis = _HEAD_AXIS.get(name, 2)
        return None if tensor is None else tensor.narrow(axis, part.start, part.stop - part.start)

    return sizes, {name: cut(name, tensor) for name, tensor in tensors.items()}


def leaving(problem: Problem, tensors: Operands, seq_idx: Tensor | None, steps: Steps) -> tuple[Tensor, Tensor]:
    """What a shard does to the state: (total, state) in the precision of its math, without gradients.

    tensors: x, dt, A, B, dt_bias, initial_states.  total: [batch, nheads], log2 of the decay over the shard.
    """
    x, dt, A, B, dt_bias, initial = (tensors[n] for n in ("x", "dt", "A", "B", "dt_bias", "initial_states"))
    options = {
        "dt_bias": dt_bias,
        "initial_states": initial,
        "seq_idx": seq_idx,
        "dt_softplus": steps[0],
        "dt_limit": steps[1:],
    }
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if problem.batch and paths.runs_kernels(x):
            state, total = paths.states(problem, x, dt, A, B, **options)
            return total, state
        _, state = fallback.forward(x, dt, A, B, None, **options, final_states=True)
        return total_decay(dt, A, dt_bias, seq_idx, steps, state.dtype), state


def total_decay(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, seq_idx: Tensor | None, steps: Steps, dtype: torch.dtype
) -> Tensor:
    """log2 of the decay over a shard, [batch, nheads]; -inf with a sequence boundary in it.  Differentiable."""
    softplus, *limits = steps
    dt = fallback.step_size(dt.to(dtype), dt_bias, softplus, tuple(limits))
    total = fallback.log_decays(dt, A.to(dtype)).sum(1) / log(2)
    return total if seq_idx is None else cut_off(total, seq_idx[:, -1] == seq_idx[:, 0])


def cut_off(total: Tensor, goes_on: Tensor) -> Tensor:
    """The total where a sequence goes on, -inf where it does not.  goes_on: [batch]."""
    return torch.where(goes_on.unsqueeze(-1), total, -torch.inf)


def kept(state: Tensor, goes_on: Tensor | None) -> Tensor:
    """A state where its sequence goes on, 0 elsewhere.  A choice and no product: a NaN stays in its sequence."""
    return state if goes_on is None else torch.where(goes_on[:, None, None, None], state, 0.0)


def _forward(
    ranks: Ranks, problem: Problem, steps: Steps, chunk_size: int, final_states: bool, state_dtype, goes_on, seq_idx,
    *tensors: Tensor | None,
):  # fmt: skip
    """y, the state that leaves the shard (as `autograd._forward`), the state that enters it, its total decay."""
    operands = dict(zip(DIFFERENTIABLE, tensors, strict=True))
    summarised = {name: operands[name] for name in ("x", "dt", "A", "B", "dt_bias", "initial_states")}
    last = ranks.rank == ranks.size - 1
    exchanges, totals = [], []
    for half in halves(problem):
        sizes, part = _part(problem, half, summarised)
        if last:
            # nobody comes after it; the backward pass asks for the total of the others alone
            total, state = _nothing(sizes, part["x"])
        else:
            total, state = leaving(sizes, part, seq_idx, steps)
        if goes_on is not None:
            total = cut_off(total, goes_on)
        exchanges.append(exchange.start(ranks, total, state))
        totals.append(total)
    arrived = [pending.finish() for pending in exchanges]
    entering = operands["initial_states"] if arrived[0] is None else kept(torch.cat(arrived, dim=1), goes_on)
    operands["initial_states"] = entering
    y, ends = autograd._forward(
        problem, *operands.values(), seq_idx, None, *steps, chunk_size, final_states, state_dtype
    )
    total = torch.cat(totals, dim=1)
    return y, ends, entering, total


def _nothing(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of a shard that nobody asks for."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    total = x.new_zeros(problem.batch, problem.nheads, dtype=dtype)
    return total, total.new_zeros(problem.batch, problem.nheads, problem.headdim, problem.dstate)


class _Sharded(torch.autograd.Function):
    """`_forward` with gradients.  Both passes of a rank wait for the same passes of the others."""

    @staticmethod
    def forward(ctx, ranks, problem, steps, chunk_size, final_states, state_dtype, goes_on, seq_idx, *tensors):
        y, ends, entering, total = _forward(
            ranks, problem, steps, chunk_size, final_states, state_dtype, goes_on, seq_idx, *tensors
        )
        ctx.ranks, ctx.problem, ctx.steps = ranks, problem, steps
        ctx.save_for_backward(total, goes_on, seq_idx, *tensors[:-1], entering)
        ctx.set_materialize_grads(False)
        return y, ends

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y, d_ends):  # type: ignore[override]
        ranks, problem, steps = ctx.ranks, ctx.problem, ctx.steps
        total, goes_on, seq_idx, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[-len(DIFFERENTIABLE) :]
        operands = dict(zip(DIFFERENTIABLE, tensors, strict=True))
        d_states = _leaving_adjoint(ranks, problem, steps, total, goes_on, seq_idx, d_y, d_ends, operands)
        found = autograd._backward(problem, d_y, d_states, *operands.values(), seq_idx, None, *steps, list(needs))
        each = iter(found)
        return (*[None] * 8, *(next(each) if needed else None for needed in needs))


def _leaving_adjoint(
    ranks: Ranks, problem: Problem, steps: Steps, total: Tensor, goes_on, seq_idx, d_y, d_ends, operands: Operands
) -> Tensor | None:
    """The adjoint of the state that leaves this rank's shard: what later ranks and the caller do with it."""
    only_state = [name == "initial_states" for name in DIFFERENTIABLE]
    exchanges = []
    for half in halves(problem):
        given = {**operands, "d_y": d_y, "d_states": d_ends}
        sizes, part = _part(problem, half, given)
        d_part, d_state = part.pop("d_y"), part.pop("d_states")
        if ranks.rank == 0:
            # nobody comes before it
            _, entering = _nothing(sizes, part["x"])
        else:
            (entering,) = autograd._backward(sizes, d_part, d_state, *part.values(), seq_idx, None, *steps, only_state)
            entering = kept(entering.to(total.dtype), goes_on)
        exchanges.append(exchange.start(ranks, total[:, half[0]].contiguous(), entering, reverse=True))
    arrived = [pending.finish() for pending in exchanges]
    if arrived[0] is None:
        return d_ends
    d_states = torch.cat(arrived, dim=1)
    return d_states if d_ends is None else d_states + d_ends
