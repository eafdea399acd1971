"""The causal convolution in plain PyTorch: for CPUs, devices without Triton and float64.  -> conv, conv_autograd"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequences import seq_idx_of


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments, already checked, as in `causal_conv1d_fn`.  Returns y in x's dtype, and the states or None.

    All math is in fp32, or in float64 if x is.  Differentiable in every floating operand; nothing waits for the device.
    """
    math = torch.float64 if x.dtype is torch.float64 else torch.float32
    seqlen, width = x.shape[2], weight.shape[1]
    # inputs before the first token: zero where no initial states are given
    history = _history(x, width, cu_seqlens, initial_states, math)
    taps, states = (_row if cu_seqlens is None else _packed)(x.to(math), history, cu_seqlens, seq_idx)
    y = sum(weight[:, width - 1 - back, None].to(math) * tap for back, tap in enumerate(taps))
    assert isinstance(y, Tensor) and y.shape[2] == seqlen
    if bias is not None:
        y = y + bias[:, None].to(math)
    y = F.silu(y) if silu else y
    if seq_idx is not None:
        y = y.masked_fill((seq_idx < 0).unsqueeze(1), 0.0)
    return _dense(y.to(x.dtype), x), states.to(x.dtype).contiguous() if final_states else None


def _dense(y: Tensor, x: Tensor) -> Tensor:
    """y with the strides of `empty_like(x)`."""
    return y.transpose(1, 2).contiguous().transpose(1, 2) if channels_last(x) else y.contiguous()


def _history(
    x: Tensor, width: int, cu_seqlens: Tensor | None, initial_states: Tensor | None, math: torch.dtype
) -> Tensor:
    """[rows, dim, width - 1]: a row for each sequence."""
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_states is None:
        return x.new_zeros(rows, x.shape[1], width - 1, dtype=math)
    # given for the first sequence only: the others start from zero
    more = rows - initial_states.shape[0]
    return F.pad(initial_states.to(math), (0, 0, 0, 0, 0, more))


def _row(x: Tensor, history: Tensor, _: Tensor | None, seq_idx: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """What each tap sees, from the token itself back, [batch, dim, seqlen] each, and the states after the last one."""
    seqlen, before = x.shape[2], history.shape[2]
    whole = torch.cat([history, x], dim=2)
    taps = [whole[:, :, before - back : before - back + seqlen] for back in range(before + 1)]
    states = whole[:, :, seqlen:]
    if seq_idx is not None:
        # what comes before the row belongs to its first token's sequence
        sequence = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], dim=1).unsqueeze(1)
        own = sequence[:, :, before:]
        taps = [
            tap.masked_fill(sequence[:, :, before - back : before - back + seqlen] != own, 0.0)
            for back, tap in enumerate(taps)
        ]
        states = states.masked_fill(sequence[:, :, seqlen:] != own[:, :, -1:], 0.0)
    return taps, states


def _packed(x: Tensor, history: Tensor, cu_seqlens: Tensor | None, _: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The same of a row of packed sequences; states [sequences, dim, width - 1]."""
    assert cu_seqlens is not None
    seqlen, before = x.shape[2], history.shape[2]
    sequence = seq_idx_of(cu_seqlens, seqlen)[0].long()
    within = torch.arange(seqlen, device=x.device) - cu_seqlens[sequence]
    row, entering = x[0], history.transpose(1, 2)  # [dim, tokens], [sequences, width - 1, dim]
    taps = [x]
    for back in range(1, before + 1):
        seen = F.pad(row, (back, 0))[:, :seqlen]
        place = (before + within - back).clamp(0, before - 1)
        taps.append(torch.where(within >= back, seen, entering[sequence, place].T).unsqueeze(0))
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    place = ends - before + torch.arange(before, device=x.device)  # [sequences, width - 1]
    kept = row.T[place.clamp(min=0)]
    earlier = entering.gather(1, (before + place - starts).clamp(0, before - 1)[..., None].expand_as(kept))
    return taps, torch.where((place >= starts)[..., None], kept, earlier).transpose(1, 2)


def empty_like(x: Tensor) -> Tensor:
    """A dense tensor of x's sizes, its channels last where x's are."""
    batch, dim, seqlen = x.shape
    if channels_last(x):
        return x.new_empty(batch, seqlen, dim).transpose(1, 2)
    return x.new_empty(batch, dim, seqlen)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of [batch, dim, seqlen] lie side by side: a slice of a projection, transposed."""
    return x.stride(1) == 1 and (x.shape[1] > 1 or x.stride(2) != 1)


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """Arguments, already checked, as in `causal_conv1d_update`, x [batch, dim, tokens].  Returns y."""
    slots, _, state_len = conv_state.shape
    batch, dim, tokens = x.shape
    before = weight.shape[1] - 1
    state = conv_state
    there = None
    if conv_state_indices is not None:
        there = (conv_state_indices >= 0) & (conv_state_indices < slots)
        state = conv_state[torch.where(there, conv_state_indices, 0).long()]
    if cache_seqlens is None:
        history = state[:, :, state_len - before :]
        new = torch.cat([state, x.to(state.dtype)], dim=2)[:, :, tokens:]
    else:
        back = torch.arange(-before, 0, device=x.device)
        ring = torch.remainder(cache_seqlens.long()[:, None] + back, state_len)
        history = state.gather(2, ring[:, None].expand(batch, dim, before))
        # of more tokens than the ring holds the last ones stay
        kept = min(tokens, state_len)
        place = torch.arange(tokens - kept, tokens, device=x.device)
        place = torch.remainder(cache_seqlens.long()[:, None] + place, state_len)
        new = state.scatter(2, place[:, None].expand(batch, dim, kept), x[:, :, tokens - kept :].to(state.dtype))
    y, _ = forward(x, weight, bias, None, None, history, silu, False)
    if there is None:
        conv_state.copy_(new)
        return y
    assert conv_state_indices is not None
    conv_state[conv_state_indices[there].long()] = new[there]
    return y.masked_fill(~there[:, None, None], 0.0)


def varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Arguments, already checked, as in `causal_conv1d_varlen_states`."""
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    place = ends - state_len + torch.arange(state_len, device=x.device)  # [sequences, state_len]
    states = x[place.clamp(min=0)].masked_fill((place < starts)[..., None], 0.0)
    return states.transpose(1, 2)
