"""vLLM's prefill call, by the scan.  packed sequences and chunks -> mamba_chunk_scan_combined

from mamba2_ops.vllm import mamba_chunk_scan_combined_varlen
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from .errors import DtypeError, ShapeError
from .fallback import step_size
from .interface import mamba_chunk_scan_combined
from .sequences import trust
from .settings import log_decay as log_decay_of


def mamba_chunk_scan_combined_varlen(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    cu_seqlens: Tensor,
    cu_chunk_seqlens: Tensor,
    last_chunk_indices: Tensor,
    seq_idx: Tensor,
    out: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
    return_intermediate_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor:
    """The scan of packed sequences, same signature as vLLM's function of this name.

    x: [tokens, nheads, headdim]; dt: [tokens, nheads]; B, C: [tokens, ngroups, dstate]; z: as x or None.
    A, D, dt_bias, chunk_size, dt_softplus, dt_limit: as in `mamba_chunk_scan_combined`.
    cu_seqlens: [sequences + 1], none of them empty.  Its contents are trusted: nothing here waits for the device.
    cu_chunk_seqlens: [chunks + 1], where chunks begin; a sequence begins with a chunk.
    last_chunk_indices: [sequences], the last chunk of each.  seq_idx: [chunks], the sequence of each.  Both, like
        cu_chunk_seqlens, are read for intermediate states only: the kernels cut sequences as they like.
    out: as x; y is written to it.
    initial_states: [sequences, nheads, headdim, dstate] or None.
    return_intermediate_states: return the state after every chunk, at the price of a second pass over the tokens.

    Returns: states in state_dtype (default fp32), [sequences, nheads, headdim, dstate], or with intermediate ones
    [chunks, nheads, headdim, dstate].
    No gradient.  Errors: those of `mamba_chunk_scan_combined`.
    """
    sequences = cu_seqlens.shape[0] - 1
    if out.shape != x.shape:
        raise ShapeError(f"out has shape {list(out.shape)}; it must be that of x, {list(x.shape)}")
    if out.dtype is not x.dtype:
        raise DtypeError(f"out is {out.dtype}; it must be {x.dtype}, as x is")
    if last_chunk_indices.shape != (sequences,) or seq_idx.shape != (cu_chunk_seqlens.shape[0] - 1,):
        raise ShapeError(
            f"last_chunk_indices has shape {list(last_chunk_indices.shape)} and seq_idx {list(seq_idx.shape)}; with "
            f"cu_seqlens of {sequences} sequences and cu_chunk_seqlens of {cu_chunk_seqlens.shape[0] - 1} chunks they "
            "must be [sequences] and [chunks]"
        )
    if initial_states is not None and initial_states.shape[:1] != (sequences,):
        raise ShapeError(f"initial_states has shape {list(initial_states.shape)}; it must have {sequences} rows")
    packed = {name: t.unsqueeze(0) for name, t in (("x", x), ("dt", dt), ("B", B), ("C", C))}
    trust(cu_seqlens, x.shape[0])
    with torch.no_grad():
        y, states = mamba_chunk_scan_combined(
            **packed, A=A, chunk_size=chunk_size, D=D, z=None if z is None else z.unsqueeze(0), dt_bias=dt_bias,
            initial_states=initial_states, cu_seqlens=cu_seqlens, dt_softplus=dt_softplus, dt_limit=dt_limit,
            return_varlen_states=True, state_dtype=state_dtype,
        )  # fmt: skip
        out.copy_(y.squeeze(0))
        if not return_intermediate_states:
            return states
        steps = step_size(dt.float(), dt_bias, dt_softplus, dt_limit)
        return _after_each_chunk(
            packed, A, steps, chunk_size, cu_chunk_seqlens, seq_idx, initial_states, state_dtype or torch.float32
        )


def _after_each_chunk(
    packed: dict[str, Tensor],
    A: Tensor,
    steps: Tensor,
    chunk_size: int,
    cu_chunk_seqlens: Tensor,
    seq_idx: Tensor,
    initial_states: Tensor | None,
    state_dtype: torch.dtype,
) -> Tensor:
    """The state after every chunk: each chunk by itself, then from one to the next within a sequence.

    steps: [tokens, nheads], fp32, the step sizes as the recurrence uses them.
    """
    trust(cu_chunk_seqlens, steps.shape[0])
    _, own = mamba_chunk_scan_combined(
        **packed | {"dt": steps.unsqueeze(0)}, A=A, chunk_size=chunk_size, cu_seqlens=cu_chunk_seqlens,
        return_varlen_states=True,
    )  # fmt: skip
    log_decay = torch.as_tensor(log_decay_of(steps, A.float()), dtype=torch.float32, device=steps.device)
    kept = torch.segment_reduce(
        log_decay.clamp(max=0).expand(steps.shape).contiguous(), "sum", offsets=cu_chunk_seqlens
    )
    kept = kept.exp()[..., None, None]  # [chunks, nheads, 1, 1]
    before = torch.zeros_like(own) if initial_states is None else initial_states.float()[seq_idx]
    begins = torch.ones_like(seq_idx, dtype=torch.bool)
    begins[1:] = seq_idx[1:] != seq_idx[:-1]
    state = before[0]
    for chunk in range(own.shape[0]):
        state = torch.where(begins[chunk], before[chunk], state)
        state = own[chunk] = kept[chunk] * state + own[chunk]
    return own.to(state_dtype)
