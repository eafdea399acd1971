"""A decode step on kernels: strides, device, config.  decode -> launchers

Kernels take operands with the axes that the caller has: a view of each would cost the host as much as a launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .decode_checks import DecodeCall
from .paths import _unit_stride
from .problem import Problem
from .replay import Replay
from .select import decode_config_for

# records are by the bytes of a number of the state: nothing else of its dtype matters as much
RECORDED = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",
    torch.int8: "int8",
    torch.float8_e4m3fn: "int8",
}


def run(
    call: DecodeCall, y, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, slots, dt_limit, pad_slot_id, scale,
    step_states, step_scales, update_state, seed, replay: Replay | None,
) -> None:  # fmt: skip
    """Run the emitted kernels on the device of x; arguments already checked, batch at least 1."""
    if not call.heads:
        x, dt, z, y = (_one_head(t, -2) for t in (x, dt, z, y))
        state, step_states = _one_head(state, -3), _one_head(step_states, -3)
        A, D, dt_bias = (_one_head(t, 0) for t in (A, D, dt_bias))
        B, C = (t if t.dim() == x.dim() else t.unsqueeze(-2) for t in (B, C))
    tensors: dict[str, Tensor | None] = {
        "state": state,
        "state_scale": scale,
        "state_batch_indices": slots,
        "seed": seed,
        "x": _unit_stride(x),
        "dt": dt,
        "A": A,
        "B": _unit_stride(B),
        "C": _unit_stride(C),
        "D": D,
        "z": _unit_stride(z),
        "dt_bias": dt_bias,
        "step_states": step_states,
        "step_scales": step_scales,
        "y": y,
    }
    if replay is not None:
        tensors |= {"kept_x": replay.x, "kept_dt": replay.dt, "kept_B": replay.B, "count": replay.count}
    options = {
        "tied": call.tied,
        "tokens": call.tokens if call.has_tokens else None,
        "dt_softplus": dt_softplus,
        "dt_limit": tuple(dt_limit),
        "pad_slot_id": pad_slot_id,
        "update_state": update_state,
    }
    problem = Problem(call.batch, 1, call.nheads, call.headdim, call.dstate, call.ngroups, RECORDED[state.dtype])
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        # Triton launches on the current device, whatever the tensors are on
        with torch.cuda.device(x.device):
            _run_here(problem, tensors, options)
    else:
        _run_here(problem, tensors, options)


def _run_here(problem: Problem, tensors: dict[str, Tensor | None], options) -> None:
    from .launchers import decode as launcher

    x = tensors["x"]
    assert x is not None
    launcher.step(decode_config_for(problem, x.device, "kept_x" in tensors), tensors, **options)


def _one_head(tensor: Tensor | None, axis: int) -> Tensor | None:
    """With an axis of heads, of extent 1."""
    return None if tensor is None else tensor.unsqueeze(axis)
