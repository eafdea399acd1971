"""One sequence over several ranks: the two halves of a call, and the convolution's halo.  public; -> context_parallel

With `mamba_chunk_scan_combined(..., process_group=group)` all of it happens in one call.  For a communication of your
own call the two halves: what a shard does to the state (`summary`), and its output from what enters it (`apply`).

    mine = summary(x, dt, A, B)                         # on every rank
    before = first.joined(second).joined(third)         # those of the ranks before, brought here
    y = apply(x, dt, A, B, C, chunk_size, entering=before.state)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from . import autograd, context_parallel, settings
from .checks import check_forward
from .context_parallel import Steps
from .errors import DeviceError, DtypeError, ShapeError
from .halo import halo
from .interface import mamba_chunk_scan_combined

__all__ = ["Summary", "apply", "halo", "summary"]


@dataclass(frozen=True)
class Summary:
    """What a run of tokens does to a state: it leaves 2 ** total * state + `state`.

    total: [batch, nheads], log2 of the decay over the run, <= 0; -inf where a sequence begins in the run.
    state: [batch, nheads, headdim, dstate], the state after the run if none entered it.
    Both fp32, or float64 if the operands are.
    """

    total: Tensor
    state: Tensor

    def joined(self, after: Summary) -> Summary:
        """The summary of these tokens with those of `after` behind them.  Associative and differentiable.

        after: of the same batch, heads and sizes, in the same dtype and on the same device.

        Returns: a Summary of both runs.
        Errors: ShapeError, DtypeError, DeviceError.
        """
        if self.state.shape != after.state.shape or self.total.shape != after.total.shape:
            raise ShapeError(f"summaries are {list(self.state.shape)} and {list(after.state.shape)}; they must agree")
        if self.state.dtype != after.state.dtype:
            raise DtypeError(f"summaries are {self.state.dtype} and {after.state.dtype}; they must agree")
        if self.state.device != after.state.device:
            raise DeviceError(
                f"summaries are on {self.state.device} and {after.state.device}; bring both to one device"
            )
        return Summary(*settings.combine(self.total, self.state, after.total, after.state))


def summary(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    seq_before: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
) -> Summary:
    """What the tokens of a shard do to the state that enters it.

    Arguments and their errors as in `mamba_chunk_scan_combined`.  initial_states: enters the first shard, whose
    summary's state is then the state that leaves it.  seq_before: [batch], the sequence of the token before the shard;
    None: that of its first token.
    Gradients reach every floating operand.  Costs about a third of a forward pass.
    """
    # these have the shape of B, or nobody reads them
    C = B if settings.PER_HEAD["B"] == settings.PER_HEAD["C"] else _placeholder(x, dt, B)
    problem = check_forward(
        x, dt, A, B, C, 64, None, None, dt_bias, initial_states, seq_idx, None, dt_limit, False, None
    )
    steps = (dt_softplus, float(dt_limit[0]), float(dt_limit[1]))
    operands = (x, dt, A, B, dt_bias, initial_states)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        state = _Leaving.apply(problem, steps, C, seq_idx, *operands)
        total = context_parallel.total_decay(dt, A, dt_bias, seq_idx, steps, state.dtype)
    else:
        total, state = context_parallel.leaving(problem, dict(zip(_LEAVING, operands, strict=True)), seq_idx, steps)
    if (goes_on := _goes_on(seq_idx, seq_before)) is not None:
        total = context_parallel.cut_off(total, goes_on)
    return Summary(total, state)


def apply(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    *,
    entering: Tensor | None,
    seq_before: Tensor | None = None,
    **options,
) -> Tensor | tuple[Tensor, ...]:
    """The output of a shard from the state that enters it; the rest as in `mamba_chunk_scan_combined`.

    entering: [batch, nheads, headdim, dstate], the joined summary's state of all shards before; None: zero.
    seq_before: [batch], the sequence of the token before the shard, with seq_idx: where the first token's is another,
    nothing enters.
    """
    goes_on = _goes_on(options.get("seq_idx"), seq_before)
    if isinstance(entering, Tensor) and entering.dim() == 4 and goes_on is not None:
        entering = context_parallel.kept(entering, goes_on)
    return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, initial_states=entering, **options)


def _goes_on(seq_idx: Tensor | None, seq_before: Tensor | None) -> Tensor | None:
    """Whether the first token of each row belongs to the sequence before the shard, [batch]; None: it does.

    Errors: ShapeError.
    """
    if not isinstance(seq_idx, Tensor) or seq_before is None:
        return None
    if not isinstance(seq_before, Tensor) or seq_before.shape != seq_idx.shape[:1]:
        given = list(seq_before.shape) if isinstance(seq_before, Tensor) else type(seq_before).__name__
        raise ShapeError(f"seq_before is {given}; it must be a tensor [batch] = {list(seq_idx.shape[:1])}, as seq_idx")
    return seq_idx[:, 0] == seq_before


_LEAVING = ("x", "dt", "A", "B", "dt_bias", "initial_states")


def _placeholder(x: Tensor, dt: Tensor, B: Tensor) -> Tensor:
    """A C of zeros, where it has other heads than B."""
    grouped = [t.shape[2] for name, t in (("x", x), ("B", B)) if not settings.PER_HEAD[name]]
    heads = dt.shape[2] if settings.PER_HEAD["C"] or not grouped else grouped[0]
    return B.new_zeros(*B.shape[:2], heads, B.shape[3])


class _Leaving(torch.autograd.Function):
    """The state that leaves a shard, made without y; its gradients are those of a call whose y nobody used."""

    @staticmethod
    def forward(ctx, problem, steps: Steps, C, seq_idx, *operands):
        ctx.problem, ctx.steps = problem, steps
        ctx.save_for_backward(C, seq_idx, *operands)
        return context_parallel.leaving(problem, dict(zip(_LEAVING, operands, strict=True)), seq_idx, steps)[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_state):  # type: ignore[override]
        C, seq_idx, x, dt, A, B, dt_bias, initial_states = ctx.saved_tensors
        needed = dict(zip(_LEAVING, ctx.needs_input_grad[-len(_LEAVING) :], strict=True))
        needs = [needed.get(name, False) for name in autograd.DIFFERENTIABLE]
        found = autograd._backward(
            ctx.problem, None, d_state, x, dt, A, B, C, None, None, dt_bias, initial_states, seq_idx, None, *ctx.steps,
            needs,
        )  # fmt: skip
        names = [name for name, need in zip(autograd.DIFFERENTIABLE, needs, strict=True) if need]
        each = dict(zip(names, found, strict=True))
        return (*[None] * 4, *(each.get(name) for name in _LEAVING))
