"""Every mistake in the arguments of a decode step is found here, before the state is touched.  decode -> DecodeCall

Two sets of shapes are taken: with heads, and mamba_ssm's without, [batch, dim, dstate], which are those of one head.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import _FLOATS, _FLOATS_64, _INTS, _device, _dtype, _list, _shape
from .errors import DtypeError, OperandError, OptionError, ShapeError, SlotError, StrideError
from .replay import Replay
from .settings import PER_HEAD
from .storage import FORMATS, LARGEST

_STATES = frozenset(FORMATS)
_REQUIRED = ("state", "x", "dt", "A", "B", "C")


@dataclass(frozen=True)
class DecodeCall:
    """Sizes of a checked call.

    heads: whether the tensors have an axis of heads.  tokens: steps in one call; has_tokens: whether x has an axis of
    them.  tied: the step size and the decay rate are one number for a head, as Mamba-2 has them.
    """

    batch: int
    tokens: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int
    slots: int
    heads: bool
    has_tokens: bool
    tied: bool


def check_decode(
    state, x, dt, A, B, C, D, z, dt_bias, slots, dt_limit, scale, step_states, step_scales, seed, replay, out
) -> DecodeCall:
    """Check the arguments of `selective_state_update` (shapes and dtypes are listed there).

    Errors: ShapeError, DtypeError, DeviceError, StrideError, OptionError, OperandError.  Reads no tensor's contents.
    """
    given = {
        "state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias,
        "state_batch_indices": slots, "state_scale": scale, "step_states": step_states, "step_scales": step_scales,
        "out": out,
    }  # fmt: skip
    _tensors(given)
    call = _sizes(state, x, dt, A, B, C, D, dt_bias, slots)
    for name, tensor in given.items():
        if tensor is not None and tensor.device != state.device:
            _device(state.device, state=state, **{name: tensor})
    _dtypes(given)
    _shapes(call, given)
    _state(call, state, scale, "state", "state_scale")
    if step_states is not None:
        if step_states.dtype is not state.dtype:
            raise DtypeError(f"step_states is {step_states.dtype}; it must have the state's dtype, {state.dtype}")
        _state(call, step_states, step_scales, "step_states", "step_scales")
    elif step_scales is not None:
        raise OptionError("step_scales was given and step_states was not; give both, or neither")
    _limits(dt_limit)
    _seed(seed, state)
    if replay is not None:
        _replay(call, replay, state, step_states)
    return call


def check_slots(slots: Tensor, count: int, pad_slot_id: int, wanted: bool | None) -> None:
    """Check the contents of state_batch_indices: each of `count` slots at most once; negative ones are padding.

    Always done where the indices are on the CPU.  On a GPU it waits for the device, so only where it is wanted (True,
    or None with SSDGEN_CHECK_SLOTS=1), and never while a CUDA graph is captured.  Errors: SlotError.
    """
    if slots.device.type != "cpu":
        if wanted is None:
            wanted = os.environ.get("SSDGEN_CHECK_SLOTS") == "1"
        if not wanted or (slots.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
    elif wanted is False:
        return
    seen: dict[int, int] = {}
    for row, slot in enumerate(slots.tolist()):
        if slot < 0 or slot == pad_slot_id:
            continue
        if slot >= count:
            raise SlotError(
                f"state_batch_indices[{row}] is {slot}, the state has slots 0 to {count - 1}; negative ones and "
                f"pad_slot_id = {pad_slot_id} are padding"
            )
        if slot in seen:
            raise SlotError(
                f"state_batch_indices[{row}] and [{seen[slot]}] are both {slot}; two rows of a batch cannot update one "
                "state: give the tokens of a sequence as x [batch, tokens, nheads, headdim]"
            )
        seen[slot] = row


def is_tied(x, dt, A, dt_bias, heads: bool) -> bool:
    """Whether step size and decay rate are one number per head: they have no more axes, or no stride along them."""
    return (
        (dt.dim() < x.dim() or (heads and _same_along(dt, 1)))
        and (A.dim() == 1 or (heads and _same_along(A, 2)))
        and (dt_bias is None or dt_bias.dim() < 2 or _same_along(dt_bias, 1))
        and heads
    )


def _same_along(tensor: Tensor, axes: int) -> bool:
    """Whether all entries along the last `axes` axes are one number in memory."""
    return all(tensor.stride(-k) == 0 or tensor.shape[-k] == 1 for k in range(1, axes + 1))


def _tensors(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor) and (value is not None or name in _REQUIRED):
            allowed = "a torch.Tensor" if name in _REQUIRED else "a torch.Tensor or None"
            raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}")


def _sizes(state, x, dt, A, B, C, D, dt_bias, slots) -> DecodeCall:
    if state.dim() not in (3, 4) or 0 in state.shape[1:]:
        _shape("state", state, "[slots, nheads, headdim, dstate] or [batch, dim, dstate], with at least 1 in each")
    heads = state.dim() == 4
    count, nheads, headdim, dstate = state.shape if heads else (state.shape[0], 1, *state.shape[1:])
    one = 3 if heads else 2
    if x.dim() not in (one, one + 1):
        wanted = "[batch, nheads, headdim] or [batch, tokens, nheads, headdim]" if heads else "[batch, dim]"
        _shape("x", x, f"{wanted} for a state of shape {list(state.shape)}")
    has_tokens = x.dim() == one + 1
    tokens = x.shape[1] if has_tokens else 1
    if not tokens:
        _shape("x", x, "at least 1 in tokens")
    batch = x.shape[0]
    if slots is None and count != batch:
        raise ShapeError(
            f"state has {count} rows, x has {batch}; they must agree, or state_batch_indices say which row is whose"
        )
    ngroups = nheads
    if heads:
        shared = [t for name, t in (("B", B), ("C", C), ("x", x)) if not PER_HEAD[name] and t.dim() >= 2]
        ngroups = shared[0].shape[-2] if shared else nheads
        if not ngroups or nheads % ngroups:
            raise ShapeError(f"nheads {nheads} is not divisible by ngroups {ngroups}; choose a divisor")
    tied = is_tied(x, dt, A, dt_bias, heads)
    return DecodeCall(batch, tokens, nheads, headdim, dstate, ngroups, count, heads, has_tokens, tied)


def _shapes(call: DecodeCall, given: dict[str, Any]) -> None:
    """Every operand but the state has one of the shapes that the sizes leave it."""
    tokens = (call.tokens,) if call.has_tokens else ()
    letters = "batch, tokens" if tokens else "batch"
    if call.heads:
        p, n, h = (call.headdim,), (call.dstate,), (call.nheads,)
        rows = {"x": p, "B": n, "C": n}
        heads = {name: h if PER_HEAD[name] else (call.ngroups,) for name in rows}
        word = {name: "nheads" if PER_HEAD[name] else "ngroups" for name in rows}
        last = {"x": "headdim", "B": "dstate", "C": "dstate"}
        allowed = {
            name: (f"[{letters}, {word[name]}, {last[name]}]", [(call.batch, *tokens, *heads[name], *rows[name])])
            for name in rows
        }
        entry, vector = (call.batch, *tokens, *h), (f"[{letters}, nheads, headdim]", [(call.batch, *tokens, *h, *p)])
        allowed |= {
            "dt": (f"[{letters}, nheads] or [{letters}, nheads, headdim]", [entry, (*entry, *p)]),
            "A": ("[nheads] or [nheads, headdim, dstate]", [h, (*h, *p, *n)]),
            "D": ("[nheads] or [nheads, headdim]", [h, (*h, *p)]),
            "dt_bias": ("[nheads] or [nheads, headdim]", [h, (*h, *p)]),
            "z": vector,
            "out": vector,
        }
        slots = ("slots, nheads", (call.slots, *h))
        steps = ("batch, tokens, nheads", (call.batch, call.tokens, *h))
    else:
        p, n = (call.headdim,), (call.dstate,)
        entry = (f"[{letters}, dim]", [(call.batch, *tokens, *p)])
        shared = [(call.batch, *tokens, *n), (call.batch, *tokens, 1, *n)]
        allowed = dict.fromkeys(("x", "dt", "z", "out"), entry)
        allowed |= dict.fromkeys(("B", "C"), (f"[{letters}, dstate] or [{letters}, 1, dstate]", shared))
        allowed |= {"A": ("[dim, dstate]", [(*p, *n)]), "D": ("[dim]", [p]), "dt_bias": ("[dim]", [p])}
        slots, steps = ("slots", (call.slots,)), ("batch, tokens", (call.batch, call.tokens))
    rows_word = "headdim" if call.heads else "dim"
    allowed |= {
        "state_batch_indices": ("[batch]", [(call.batch,)]),
        "state_scale": (f"[{slots[0]}, {rows_word}]", [(*slots[1], *p)]),
        "step_states": (f"[{steps[0]}, {rows_word}, dstate]", [(*steps[1], *p, *n)]),
        "step_scales": (f"[{steps[0]}, {rows_word}]", [(*steps[1], *p)]),
    }
    for name, (words, shapes) in allowed.items():
        tensor = given[name]
        if tensor is not None and tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise ShapeError(f"{name} has shape {list(tensor.shape)}; it must be {words}, here {wanted}")


def _dtypes(given: dict[str, Any]) -> None:
    state, x = given["state"], given["x"]
    double = x.dtype is torch.float64
    floats = _FLOATS_64 if double else _FLOATS
    for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias"):
        tensor = given[name]
        if tensor is not None and tensor.dtype not in floats:
            _dtype(name, tensor, floats)
    allowed = _STATES | {torch.float64} if double else _STATES
    if state.dtype not in allowed:
        _dtype("state", state, allowed)
    for name in ("state_scale", "step_scales"):
        tensor = given[name]
        if tensor is not None and tensor.dtype is not torch.float32:
            _dtype(name, tensor, frozenset((torch.float32,)))
    slots = given["state_batch_indices"]
    if slots is not None and slots.dtype not in _INTS:
        _dtype("state_batch_indices", slots, _INTS)
    out = given["out"]
    if out is not None and out.dtype is not x.dtype:
        raise DtypeError(f"out is {out.dtype}; it must have the dtype of x, {x.dtype}")


def _state(call: DecodeCall, state: Tensor, scale: Tensor | None, name: str, scale_name: str) -> None:
    """What is updated in place: where it lies in memory, and whether it has scales when it needs them."""
    if (state.dtype in LARGEST) != (scale is not None):
        if scale is None:
            raise OptionError(
                f"{name} is {state.dtype}, which has a scale for each row: give {scale_name}, fp32, in the shape of "
                f"{name} without dstate"
            )
        raise OptionError(f"{name} is {state.dtype} and has no scales; leave out {scale_name}, or store it in 8 bits")
    if state.stride(-1) != 1 and call.dstate > 1 or state.stride(-2) != call.dstate and call.headdim > 1:
        raise StrideError(
            f"{name} has strides {state.stride()}; rows of dstate must lie one after the other, strides (.., "
            f"{call.dstate}, 1): it is updated in place, so make it once with .contiguous() and keep that"
        )
    for tensor, its_name in ((state, name), (scale, scale_name)):
        # a row that is there twice would be updated by two programs
        if tensor is not None and any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
            raise StrideError(f"{its_name} is expanded (strides {tensor.stride()}); give each row its memory")
    if scale is not None and not scale.is_contiguous():
        raise StrideError(f"{scale_name} has strides {scale.stride()}; it must be contiguous")


def _limits(dt_limit) -> None:
    try:
        low, high = dt_limit
        ordered = low <= high
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise OptionError(f"dt_limit is {dt_limit!r}; it must be two numbers, (low, high), with low <= high")


def _seed(seed, state: Tensor) -> None:
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, (int, Tensor)):
        raise OperandError(f"rng_seed is a {type(seed).__name__}; it must be an int, an int64 tensor of one, or None")
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype is not torch.int64:
            raise OptionError(f"rng_seed is {seed.dtype} {list(seed.shape)}; a tensor must be one int64")
        if seed.device != state.device:
            _device(state.device, state=state, rng_seed=seed)
    elif not -(2**63) <= seed < 2**63:
        raise OptionError(f"rng_seed is {seed}; it must fit into 64 bits")
    if state.dtype in (torch.float32, torch.float64):
        raise OptionError(f"rng_seed is for states of 8 and 16 bits, which are rounded; this one is {state.dtype}")


def _replay(call: DecodeCall, replay, state: Tensor, step_states) -> None:
    if not isinstance(replay, Replay):
        raise OperandError(f"replay is a {type(replay).__name__}; make it with Replay.allocate(state, steps, ngroups)")
    if not call.tied or call.has_tokens or step_states is not None:
        raise OptionError(
            "replay takes one token a call, with one dt and A for a head (Mamba-2's), and keeps no state of each step"
        )
    kept = replay.steps - 1
    heads = {name: call.nheads if PER_HEAD[name] else call.ngroups for name in "xB"}
    wanted = {
        "x": (call.slots, heads["x"], kept, call.headdim),
        "dt": (call.slots, call.nheads, kept),
        "B": (call.slots, heads["B"], kept, call.dstate),
        "count": (call.slots,),
    }
    dtypes = {"x": _FLOATS, "B": _FLOATS, "dt": {torch.float32}, "count": {torch.int32}}
    for name, shape in wanted.items():
        tensor = getattr(replay, name)
        if tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise ShapeError(
                f"replay.{name} has shape {list(tensor.shape)}; for this call it must be {list(shape)}, contiguous: "
                "Replay.allocate makes it"
            )
        if tensor.dtype not in dtypes[name]:
            raise DtypeError(f"replay.{name} is {tensor.dtype}; allowed: {_list(frozenset(dtypes[name]))}")
        if tensor.device != state.device:
            _device(state.device, state=state, **{f"replay.{name}": tensor})
