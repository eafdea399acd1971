"""The public decode step.  arguments -> checks -> config -> launcher, or the PyTorch path

In eager mode the code is called directly; torch.compile gets one operator that says what it writes to.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import decode_fallback
from .autograd import NAMESPACE
from .decode_checks import DecodeCall, check_decode, check_slots, is_tied
from .replay import Replay


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    *,
    dt_limit: tuple[float, float] = (0.0, inf),
    pad_slot_id: int = -1,
    state_scale: Tensor | None = None,
    step_states: Tensor | None = None,
    step_scales: Tensor | None = None,
    update_state: bool = True,
    rng_seed: int | Tensor | None = None,
    replay: Replay | None = None,
    out: Tensor | None = None,
    validate_slots: bool | None = None,
) -> Tensor:
    """One more token, or a few, of every sequence: the state is updated in place.  Signature as in mamba_ssm.

    With dt_t = clamp(softplus(dt_t + dt_bias), dt_limit), for each row, head and its group:

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        [headdim, dstate]
        y_t = (h_t C_t + D x_t) silu(z_t)

    state: [batch or slots, nheads, headdim, dstate], bf16, fp16, fp32, int8 or float8_e4m3fn; rows of dstate lie one
        after the other, slots and heads may have any strides.
    x: [batch, nheads, headdim], bf16, fp16 or fp32; several tokens of a sequence: [batch, tokens, nheads, headdim], and
        so dt, B, C and z with tokens behind batch.
    dt: [batch, nheads, headdim], or one number for a head: [batch, nheads], or expanded to that (stride 0).
    A: [nheads, headdim, dstate], or [nheads], or expanded; normally < 0.  Exponents are clamped to <= 0.
    B, C: [batch, ngroups, dstate]; head h uses group h // (nheads / ngroups).
    D, dt_bias: [nheads, headdim] or [nheads]; None: no skip, no bias.  z: as x; None: no gate.
    dt_softplus: apply softplus.  dt_limit: (low, high) for the step size, as in `mamba_chunk_scan_combined`.
    Without an axis of heads, as mamba_ssm also has it: state [batch, dim, dstate], x, dt, z [batch, dim], A
        [dim, dstate], B, C [batch, dstate], D, dt_bias [dim].
    state_batch_indices: [batch], int32 or int64, the slot of each row; None: row b has slot b.  Negative ones and
        pad_slot_id are padding: y is 0 there and no state changes.  So are slots past the end; no memory outside of
        the state is ever touched.
    validate_slots: check that no slot is past the end or named twice (SlotError).  On a CPU this is done anyway, unless
        False.  On a GPU it waits for the device, so only with True, or with None and SSDGEN_CHECK_SLOTS=1, and never
        while a CUDA graph is captured or under torch.compile; two rows that name one slot race, unchecked.
    state_scale: fp32, [slots, nheads, headdim], contiguous, of an 8-bit state: state = stored * scale.  It is updated,
        so that the largest number of a row of dstate is 127 (int8) or 448 (float8).  A row of zeros may have any scale.
    step_states: [batch, tokens, nheads, headdim, dstate], the state's dtype: gets the state after every token, for
        speculative decoding.  step_scales: its scales, [batch, tokens, nheads, headdim].
    update_state: False: `state` is only read.  After a rejected draft, state[slots] = step_states[rows, accepted - 1].
    rng_seed: states of 8 and 16 bits are rounded at random, up or down by how near each is, instead of to nearest; the
        same seed gives the same bits.  Give another one at each step.  A tensor (one int64, on the device) can be
        counted up in a CUDA graph and spares a launch.
    replay: inputs of the last steps (`Replay.allocate`): the state is written at every replay.steps-th step only.  One
        token a call, dt and A one number for a head.  `replay.flush` writes the states as they are.
    out: where y goes, in its shape and dtype.

    Returns: y, the shape of x (nheads heads), x's dtype.  y comes from the state before it is rounded to be stored.
    No gradient flows through this call.  It can be captured in a CUDA graph, and torch.compile takes it whole.

    All math is in fp32; on a CPU, without Triton and where x is float64 it runs in PyTorch (in float64 if x is).

    Errors, all before the state is touched, all ValueError: ShapeError, DtypeError, DeviceError, StrideError,
    OptionError, OperandError, SlotError, and RecordError and UntunedError as in `mamba_chunk_scan_combined`.
    Source: Dao and Gu, Transformers are SSMs, 2024, equation 2, the recurrence.
    """
    if is_compiling():
        return _traced(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, dt_limit, pad_slot_id, state_scale,
            step_states, step_scales, update_state, rng_seed, replay, out,
        )  # fmt: skip
    call = check_decode(
        state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, dt_limit, state_scale, step_states, step_scales,
        rng_seed, replay, out,
    )  # fmt: skip
    if state_batch_indices is not None:
        check_slots(state_batch_indices, call.slots, pad_slot_id, validate_slots)
    y = _result(state, x, out)
    if call.batch:
        seed = _seed(rng_seed, state)
        _run(
            call, y, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, dt_limit, pad_slot_id,
            state_scale, step_states, step_scales, update_state, seed, replay,
        )  # fmt: skip
    return y


def _result(state: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
    """Memory for y: as x, with every head."""
    if out is not None:
        return out
    shape = (*x.shape[:-2], state.shape[1], x.shape[-1]) if state.dim() == 4 else x.shape
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _seed(seed: int | Tensor | None, state: Tensor) -> Tensor | None:
    if seed is None or isinstance(seed, Tensor):
        return seed
    return torch.full((1,), seed, dtype=torch.int64, device=state.device)


def _run(
    call: DecodeCall, y, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, slots, dt_limit, pad_slot_id, scale,
    step_states, step_scales, update_state, seed, replay,
) -> None:  # fmt: skip
    """The step in PyTorch, on tensors that all have axes of tokens and heads."""
    if not call.heads:
        state, A = state.unsqueeze(1), A.unsqueeze(0)
        D, dt_bias = (None if t is None else t.unsqueeze(0) for t in (D, dt_bias))
        scale = None if scale is None else scale.unsqueeze(1)
        step_states, step_scales = (None if t is None else t.unsqueeze(2) for t in (step_states, step_scales))
    x, z, y, dt, B, C = (_with_axes(call, t, name) for name, t in zip("xzydBC", (x, z, y, dt, B, C), strict=True))
    if call.tied:
        dt = dt[..., 0] if dt.dim() == 4 else dt
        A = A if A.dim() == 1 else A[:, 0, 0]
        dt_bias = dt_bias if dt_bias is None or dt_bias.dim() == 1 else dt_bias[:, 0]
    else:
        shape = (call.nheads, call.headdim, call.dstate)
        dt = dt if dt.dim() == 4 else dt.unsqueeze(-1).expand(*dt.shape, call.headdim)
        A = A if A.dim() == 3 else A[:, None, None].expand(shape)
        if dt_bias is not None and dt_bias.dim() == 1:
            dt_bias = dt_bias[:, None].expand(shape[:2])
    decode_fallback.step(
        state, x, dt, A, B, C, y=y, D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit, slots=slots,
        pad_slot_id=pad_slot_id, scale=scale, step_states=step_states, step_scales=step_scales,
        update_state=update_state, seed=seed, replay=replay,
    )  # fmt: skip


def _with_axes(call: DecodeCall, tensor: Tensor | None, name: str) -> Tensor | None:
    """[batch, tokens, heads, ..] of an operand that may lack tokens or heads."""
    if tensor is None:
        return None
    if not call.has_tokens:
        tensor = tensor.unsqueeze(1)
    # B and C may have their one group already
    return tensor.unsqueeze(2) if not call.heads and tensor.dim() == 3 else tensor


def _traced(
    state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, slots, dt_limit, pad_slot_id, scale, step_states, step_scales,
    update_state, rng_seed, replay, out,
) -> Tensor:  # fmt: skip
    """The call as one operator, which checks its arguments itself."""
    if state.dim() == 4 and is_tied(x, dt, A, dt_bias, True):
        # a compiler may give what is expanded memory of its own, and one number for a head would not be known as such
        dt = dt[..., 0] if dt.dim() == x.dim() else dt
        A = A[:, 0, 0] if A.dim() == 3 else A
        dt_bias = dt_bias[:, 0] if dt_bias is not None and dt_bias.dim() == 2 else dt_bias
    y = _result(state, x, out)
    kept = (None,) * 4 if replay is None else (replay.x, replay.dt, replay.B, replay.count)
    low, high = dt_limit
    decode_step(
        state, y, scale, step_states, step_scales, *kept, x, dt, A, B, C, D, z, dt_bias, slots, _seed(rng_seed, state),
        dt_softplus, float(low), float(high), pad_slot_id, update_state,
    )  # fmt: skip
    return y


def _step_operator(
    state, y, scale, step_states, step_scales, kept_x, kept_dt, kept_B, count, x, dt, A, B, C, D, z, dt_bias, slots,
    seed, dt_softplus, dt_min, dt_max, pad_slot_id, update_state,
) -> None:  # fmt: skip
    replay = None if kept_x is None else Replay(kept_x, kept_dt, kept_B, count)
    with torch.autocast(x.device.type, enabled=False):
        selective_state_update(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, slots, dt_limit=(dt_min, dt_max),
            pad_slot_id=pad_slot_id, state_scale=scale, step_states=step_states, step_scales=step_scales,
            update_state=update_state, rng_seed=seed, replay=replay, out=y,
        )  # fmt: skip


def _step_fake(
    state, y, scale, step_states, step_scales, kept_x, kept_dt, kept_B, count, x, dt, A, B, C, D, z, dt_bias, slots,
    seed, dt_softplus, dt_min, dt_max, pad_slot_id, update_state,
) -> None:  # fmt: skip
    replay = None if kept_x is None else Replay(kept_x, kept_dt, kept_B, count)
    check_decode(
        state, x, dt, A, B, C, D, z, dt_bias, slots, (dt_min, dt_max), scale, step_states, step_scales, seed, replay, y
    )


decode_step = torch.library.custom_op(
    f"{NAMESPACE}::decode_step",
    _step_operator,
    mutates_args=(
        "state", "y", "scale", "step_states", "step_scales", "kept_x", "kept_dt", "kept_B", "count",
    ),
    schema=(
        "(Tensor(a!) state, Tensor(b!) y, Tensor(c!)? scale, Tensor(d!)? step_states, Tensor(e!)? step_scales, "
        "Tensor(f!)? kept_x, Tensor(g!)? kept_dt, Tensor(h!)? kept_B, Tensor(i!)? count, Tensor x, Tensor dt, "
        "Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? slots, Tensor? seed, "
        "bool dt_softplus, float dt_min, float dt_max, int pad_slot_id, bool update_state) -> ()"
    ),
)  # fmt: skip
decode_step.register_fake(_step_fake)
