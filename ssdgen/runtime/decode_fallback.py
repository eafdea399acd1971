"""The decode step in plain PyTorch: the recurrence itself, for CPUs, devices without Triton and float64.  -> decode"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import settings
from .fallback import step_size
from .storage import noise, restore, store

if TYPE_CHECKING:
    from .replay import Replay


@torch.no_grad()
def step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    y: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    slots: Tensor | None,
    pad_slot_id: int,
    scale: Tensor | None,
    step_states: Tensor | None,
    step_scales: Tensor | None,
    update_state: bool,
    seed: Tensor | None,
    replay: Replay | None,
) -> None:
    """Advance the states by the tokens of a call, in place, and write y.  Arguments already checked.

    state: [slots, nheads, headdim, dstate]; x, z, y: [batch, tokens, heads, headdim]; B, C: [batch, tokens, heads,
    dstate]; dt: [batch, tokens, nheads], with A, dt_bias [nheads], or each with headdim and A with dstate behind.
    scale: [slots, nheads, headdim]; step_states and step_scales: the same with [batch, tokens, ..] in front.
    The others as in `decode.selective_state_update`.
    """
    math = torch.float64 if x.dtype is torch.float64 else torch.float32
    nheads = state.shape[1]
    y.zero_()
    rows, at = _rows(state, slots, pad_slot_id)
    if not rows.numel():
        return
    x, B, C = (_per_head(t[rows].to(math), nheads) for t in (x, B, C))
    raw = dt[rows].to(math)
    steps = step_size(raw, dt_bias, dt_softplus, dt_limit)
    if replay is not None:
        kept = _replayed(replay, at, A.to(math), nheads)
    current = restore(state[at], None if scale is None else scale[at], math)
    for t in range(x.shape[1]):
        if replay is not None:
            # the state as it was written last, and what was kept since
            current = kept(current)
        current = _advance(current, x[:, t], steps[:, t], A.to(math), B[:, t])
        result = torch.einsum("bhpn,bhn->bhp", current, C[:, t])
        if D is not None:
            result = result + D.to(math).reshape(nheads, -1) * x[:, t]
        if z is not None:
            gate = z[rows, t].to(math)
            result = result * gate * torch.sigmoid(gate)
        y[rows, t] = result.to(y.dtype)
        if step_states is not None:
            _put(step_states, step_scales, (rows, t), current, _noise(state, seed, at, t))
    if replay is not None:
        written = ~_keep(replay, at, x[:, 0], steps[:, 0], B[:, 0])
        current, at = current[written], at[written]
    if update_state and at.numel():
        _put(state, scale, (at,), current, _noise(state, seed, at, x.shape[1] - 1))


def _advance(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The state after one more token.  state: [rows, nheads, headdim, dstate]; dt: [rows, nheads] or with headdim."""
    dt = dt.reshape(*dt.shape, *[1] * (4 - dt.dim()))  # [rows, nheads, 1 or headdim, 1]
    A = A.reshape(*A.shape, *[1] * (3 - A.dim()))
    decay = torch.as_tensor(settings.log_decay(dt, A), dtype=dt.dtype, device=dt.device).clamp(max=0).exp()
    return decay * state + (dt * x.unsqueeze(-1)) * B.unsqueeze(-2)


def _rows(state: Tensor, slots: Tensor | None, pad_slot_id: int) -> tuple[Tensor, Tensor]:
    """Rows of the batch that are no padding, and the slot of each."""
    if slots is None:
        rows = torch.arange(state.shape[0], device=state.device)
        return rows, rows
    slots = slots.long()
    rows = ((slots >= 0) & (slots < state.shape[0]) & (slots != pad_slot_id)).nonzero().flatten()
    return rows, slots[rows]


def _per_head(tensor: Tensor, nheads: int) -> Tensor:
    """[rows, tokens, heads or groups, ..] with an entry for every head."""
    return tensor if tensor.shape[2] == nheads else tensor.repeat_interleave(nheads // tensor.shape[2], dim=2)


def _noise(state: Tensor, seed: Tensor | None, at: Tensor, token: int) -> Tensor | None:
    """Random bits for the states of slots `at`."""
    if seed is None:
        return None
    _, nheads, headdim, dstate = state.shape
    row = torch.arange(nheads * headdim, device=state.device).reshape(nheads, headdim)
    return noise(state.dtype, seed.flatten()[0], at[:, None, None] * (nheads * headdim) + row, dstate, token)


def _put(target: Tensor, scales: Tensor | None, at: tuple[Any, ...], state: Tensor, bits: Tensor | None) -> None:
    stored, scale = store(state, target.dtype, bits)
    target[at] = stored
    if scales is not None and scale is not None:
        scales[at] = scale


def _replayed(replay: Replay, at: Tensor, A: Tensor, nheads: int):
    """A function that brings states of slots `at` up to date with the inputs that are kept of them."""
    count = replay.count[at]
    x, B = (_heads(t[at].to(A.dtype), nheads) for t in (replay.x, replay.B))
    dt = replay.dt[at].to(A.dtype)

    def bring(state: Tensor) -> Tensor:
        for number in range(int(count.max())):
            after = _advance(state, x[:, :, number], dt[:, :, number], A, B[:, :, number])
            state = torch.where((number < count)[:, None, None, None], after, state)
        return state

    return bring


def _heads(tensor: Tensor, nheads: int) -> Tensor:
    """[rows, heads or groups, ..] with an entry for every head."""
    return tensor if tensor.shape[1] == nheads else tensor.repeat_interleave(nheads // tensor.shape[1], dim=1)


def _keep(replay: Replay, at: Tensor, x: Tensor, dt: Tensor, B: Tensor) -> Tensor:
    """Keep the inputs of a token where there is room, and say where there was.  Counts go up, or to 0."""
    count = replay.count[at].long()
    room = count < replay.steps - 1
    inside, number = at[room], count[room]
    for kept, new in ((replay.x, x), (replay.B, B)):
        shared = new[:, :: new.shape[1] // kept.shape[1]]
        kept[inside, :, number] = shared[room].to(kept.dtype)
    replay.dt[inside, :, number] = dt[room].float()
    replay.count[at] = torch.where(room, count + 1, 0).to(torch.int32)
    return room


def flush(state: Tensor, A: Tensor, replay: Replay, scale: Tensor | None) -> None:
    """Write every state as it is after the inputs that are kept, and forget these.  A: [nheads]."""
    at = (replay.count > 0).nonzero().flatten()
    if at.numel():
        math = torch.float64 if A.dtype is torch.float64 else torch.float32
        bring = _replayed(replay, at, A.to(math), state.shape[1])
        current = bring(restore(state[at], None if scale is None else scale[at], math))
        _put(state, scale, (at,), current, None)
    replay.count.zero_()
