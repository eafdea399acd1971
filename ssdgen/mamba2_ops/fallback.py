"""The layer in plain PyTorch, chunk by chunk: for CPUs, devices without Triton and float64.  -> interface, autograd

The same decomposition as the kernels' (docs/maths.md), so its memory grows with seqlen and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import settings

CHUNK = 64


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
    final_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The layer's forward; arguments, already checked, as in `mamba_chunk_scan_combined`.  C: None for states alone.

    Returns: y [batch, seqlen, nheads, headdim] in x's dtype, and with final_states the last state of each row, or of
    each packed sequence if cu_seqlens is given, [rows, nheads, headdim, dstate] in state_dtype (default: the math's).

    All math is in fp32, or in float64 if x is.  Differentiable in every floating operand; each chunk is computed again
    in the backward, so that one state per chunk is kept and no [chunk, chunk] matrix.  Exponents are clamped to <= 0
    token by token and never a difference of two sums: nothing overflows and no gradient is NaN, whatever dt and A are.
    """
    math = torch.float64 if x.dtype == torch.float64 else torch.float32
    dt = step_size(dt.to(math), dt_bias, dt_softplus, dt_limit)
    log_decay = log_decays(dt, A.to(math))
    x, B, C = _by_layout(x, B, C, dt.shape[2])

    if cu_seqlens is None:
        y, states = _row((x, dt, log_decay, B, C, z, seq_idx), D, initial_states)
    else:
        # each sequence is a row of its own; cu_seqlens alone says where they begin
        rows = []
        for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
            tokens = tuple(_cut(t, start, end) for t in (x, dt, log_decay, B, C, z, None))
            given = initial_states is not None and index < initial_states.shape[0]
            rows.append(_row(tokens, D, initial_states[index : index + 1] if given else None))
        y = None if C is None else torch.cat([y for y, _ in rows], dim=1)
        states = torch.cat([state for _, state in rows])
    return y, states.to(state_dtype or math) if final_states else None


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    d_y: Tensor | None,
    d_final_states: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs: frozenset[str],
) -> dict[str, Tensor]:
    """Gradients of sum(d_y * y) + sum(d_final_states * states) by automatic differentiation of `forward`.

    d_y: as y; d_final_states: as the states of `forward`, any floating dtype; None: zero.  needs: names of operands.
    Returns: {name: gradient}, in the shapes and dtypes of the operands.  May be called inside of an operator.
    """
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    given |= {"D": D, "z": z, "dt_bias": dt_bias, "initial_states": initial_states}
    with differentiable(), torch.autocast(x.device.type, enabled=False):
        leaves = {
            name: None if tensor is None else tensor.detach().requires_grad_(name in needs)
            for name, tensor in given.items()
        }
        operands = [leaves.pop(name) for name in ("x", "dt", "A", "B", "C")]
        y, states = forward(
            *operands, **leaves, seq_idx=seq_idx, cu_seqlens=cu_seqlens, dt_softplus=dt_softplus, dt_limit=dt_limit,
            final_states=d_final_states is not None,
        )  # fmt: skip
        leaves |= zip(("x", "dt", "A", "B", "C"), operands, strict=True)
        pairs = [(y, d_y)]
        if states is not None and d_final_states is not None:
            pairs.append((states, d_final_states.to(states.dtype)))
        # an output of operands that need no gradient has none to hand on
        pairs = [(out, d_out) for out, d_out in pairs if d_out is not None and out.requires_grad]
        wanted = {name: leaf for name, leaf in leaves.items() if name in needs and leaf is not None}
        found = (
            torch.autograd.grad(
                [out for out, _ in pairs], list(wanted.values()), [d_out for _, d_out in pairs], allow_unused=True
            )
            if pairs
            else [None] * len(wanted)
        )
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(wanted.items(), found, strict=True)
    }


@contextmanager
def differentiable() -> Iterator[None]:
    """Record gradients, also inside of an operator, where torch's dispatcher passes autograd by."""
    off = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        off = off - torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), off), torch.enable_grad():
        yield


def _by_layout(x: Tensor, B: Tensor, C: Tensor | None, nheads: int) -> tuple[Tensor | None, ...]:
    """The operands with an x for every head, and B and C both for every group or both for every head."""
    given = {"x": x, "B": B, "C": C}
    if x.shape[2] == nheads and (C is None or C.shape[2] == B.shape[2]):
        return x, B, C
    return tuple(None if t is None else t.repeat_interleave(nheads // t.shape[2], dim=2) for t in given.values())


def step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]) -> Tensor:
    """dt as the recurrence uses it: bias, softplus, limits, in this order.  dt: [batch, seqlen, nheads]."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    return dt.clamp(*dt_limit)


def log_decays(dt: Tensor, A: Tensor) -> Tensor:
    """Logarithm of the share of the state that a step keeps, at most 0.

    dt: after its transform, [b, L, H]; A: [H], or [b, L, H] where it is the log-decay itself.
    """
    given = A if A.dim() == 3 else settings.log_decay(dt, A)
    found = torch.as_tensor(given, dtype=dt.dtype, device=dt.device)
    return found.clamp(max=0).expand(dt.shape)


def _cut(tensor: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if tensor is None else tensor[:, start:end]


def _row(tokens: tuple[Tensor | None, ...], D: Tensor | None, state: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Walk the chunks of all rows at once.  tokens: what has a position, each [batch, seqlen, ...] or None."""
    x, dt, log_decay, B, C, _, seq_idx = tokens
    batch, seqlen, nheads, headdim = x.shape
    heads = (B.shape[2], nheads // B.shape[2])  # ngroups, heads per group
    if state is None:
        state = dt.new_zeros(batch, *heads, headdim, B.shape[3])
    else:
        state = state.to(dt.dtype).unflatten(1, heads)

    recompute = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*tokens, D, state))
    outputs = []
    for start in range(0, seqlen, CHUNK):
        chunk = tuple(_cut(t, start, start + CHUNK) for t in tokens)
        # the initial state belongs to the first sequence of the row
        before = None if seq_idx is None else _cut(seq_idx, max(start - 1, 0), max(start, 1))
        if recompute:
            y, state = checkpoint(_chunk, chunk, before, D, state, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _chunk(chunk, before, D, state)
        outputs.append(y)
    return None if C is None else torch.cat(outputs, dim=1), state.flatten(1, 2)


def _chunk(
    tokens: tuple[Tensor | None, ...], before: Tensor | None, D: Tensor | None, state: Tensor
) -> tuple[Tensor | None, Tensor]:
    """One chunk: its diagonal block, what the entering state adds, and the state that leaves it.

    before: seq_idx of the entering state, [b, 1], or None.  state: [b, G, H/G, P, N].
    Returns: y [b, Q, H, P] in x's dtype, the leaving state.
    """
    x, dt, log_decay, B, C, z, seq_idx = tokens
    heads, math, size = state.shape[1:3], dt.dtype, x.shape[1]
    wide_x = x.to(math)
    x_dt = (wide_x * dt.unsqueeze(-1)).transpose(1, 2).unflatten(1, heads)  # [b, G, H/G, Q, P]
    log_decay = log_decay.transpose(1, 2).unflatten(1, heads)  # [b, G, H/G, Q]
    B = B.to(math).transpose(1, 2).unsqueeze(2)  # [b, G, 1, Q, N]

    # the decay from j to i is a running sum from j of its own: the difference of two sums would cancel
    causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    after = causal.tril(-1)  # [k, j]: k > j
    between = torch.where(after, log_decay.unsqueeze(-1), 0.0).cumsum(-2).exp()  # [b, G, H/G, i, j]
    entering = log_decay.cumsum(-1).exp()  # [b, G, H/G, i]
    leaving = between[..., -1, :]  # [b, G, H/G, j]
    if seq_idx is not None:
        same = seq_idx.unsqueeze(2) == seq_idx.unsqueeze(1)  # [b, i, j]
        causal = (causal & same)[:, None, None]
        entering = entering * (seq_idx == before)[:, None, None]
        leaving = leaving * same[:, None, None, -1]

    new_state = entering[..., -1, None, None] * state + (x_dt * leaving.unsqueeze(-1)).mT @ B
    if C is None:
        return None, new_state

    C = C.to(math).transpose(1, 2).unsqueeze(2)
    scores = ((C @ B.mT) * between).masked_fill(~causal, 0.0)
    y = scores @ x_dt + entering.unsqueeze(-1) * (C @ state.mT)  # [b, G, H/G, Q, P]
    y = y.flatten(1, 2).transpose(1, 2)  # [b, Q, H, P]
    if D is not None:
        y = y + (D if D.dim() == 2 else D.unsqueeze(-1)).to(math) * wide_x
    if z is not None:
        y = y * F.silu(z.to(math))
    return y.to(x.dtype), new_state
