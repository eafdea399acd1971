"""The split layer's gradient, which keeps as little as possible.  split -> operators of the scan, convolution, norm

Kept are the operands and, where something follows that reads it, the scan's y; the states of its chunks where
`memory.keeps_states` says so.  The convolution and the norm are computed again: each is one pass over what it reads,
and cheaper than what it would keep.  Where that is dropped anyway (`memory.is_checkpointed`) the convolution is kept
too.  Kernels write the gradients of zxbcdt's parts where they belong: to join them afterwards would take as long as
the convolution's gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from . import autograd, conv_paths, memory, norm_paths
from .split_forward import Operands, Split, compose, convolve, gate, join, step_sizes, without_padding

# operands of the convolution, and all those that the scan's y depends on
_CONVOLUTION = ("conv1d_weight", "conv1d_bias", "initial_conv_states")
_BEFORE_NORM = ("zxbcdt", *_CONVOLUTION, "dt_bias", "A", "D", "initial_states")


class Recompute(torch.autograd.Function):
    """`compose`, differentiable.  Arguments: the call, then its operands.  Returns: out, states, conv_states."""

    @staticmethod
    def forward(ctx, call: Split, *tensors):  # type: ignore[override]
        given = Operands(*tensors)
        states = None
        if call.process_group is None and any(ctx.needs_input_grad) and memory.keeps_states():
            with autograd.handing_over() as handed:
                found = compose(call, given)
            (states,) = handed or (None,)
        else:
            found = compose(call, given)
        ctx.call = call
        follows = given.rmsnorm_weight is not None or given.outproj_weight is not None
        convolved = found.convolved if memory.is_checkpointed() else None
        ctx.save_for_backward(*tensors, found.y if follows else None, states, convolved)
        # a result that nobody used has no gradient, instead of one full of zeros
        ctx.set_materialize_grads(False)
        return found.out, found.states, found.conv_states

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[override]
        *tensors, y, states, convolved = ctx.saved_tensors
        given = Operands(*tensors)
        needs = dict(zip(Operands._fields, ctx.needs_input_grad[1:], strict=True))
        if torch.is_grad_enabled():
            # with create_graph the gradient may be differentiated in its turn: by what records every step
            return (None, *_by_steps(ctx.call, given, gradients, needs))
        device = given.zxbcdt.device.type
        # rarely on in a backward pass, and slow to turn off
        off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with off:
            found = _backward(ctx.call, given, y, states, convolved, *gradients, needs)
        return (None, *(found.get(name) if needed else None for name, needed in needs.items()))


def _by_steps(call: Split, given: Operands, gradients: Sequence, needs: dict[str, bool]) -> list[Tensor | None]:
    found = compose(call, given)
    pairs = [
        (out, d_out)
        for out, d_out in zip((found.out, found.states, found.conv_states), gradients, strict=True)
        if d_out is not None and out.requires_grad
    ]
    wanted = [tensor for tensor, needed in zip(given, needs.values(), strict=True) if needed]
    outputs, d_outputs = zip(*pairs, strict=True)
    each = iter(torch.autograd.grad(outputs, wanted, d_outputs, create_graph=True, allow_unused=True))
    return [next(each) if needed else None for needed in needs.values()]


def _backward(
    call: Split,
    given: Operands,
    y: Tensor | None,
    states: Tensor | None,
    convolved: Tensor | None,
    d_out: Tensor | None,
    d_states: Tensor | None,
    d_conv_states: Tensor | None,
    needs: dict[str, bool],
) -> dict[str, Tensor | None]:
    """{operand: gradient}.  Where they were kept: states, that enter the scan's chunks; convolved, what it read."""
    zx0, z, xBC, dt = call.parts(given.zxbcdt)
    whole = torch.empty(given.zxbcdt.shape, dtype=z.dtype, device=z.device) if needs["zxbcdt"] else None
    places = call.parts(whole) if whole is not None else (None,) * 4
    found: dict[str, Tensor | None] = {}
    d_y = d_z = d_zx0 = None
    if d_out is not None:
        d_y, d_z, d_zx0 = _after_scan(call, given, y, z, zx0, d_out, needs, found, places[1])
    if not any(needs[name] for name in _BEFORE_NORM):
        return found

    in_place = whole is not None and given.attention_mask is None and call.process_group is None
    in_place = in_place and xBC.numel() > 0 and conv_paths.runs_kernels(xBC)
    leaves: dict[str, Tensor | None] = {}
    conv_states = None
    if not in_place:
        leaves, convolved, conv_states = _convolved_again(call, given, xBC)
    elif convolved is None:
        convolved, _ = convolve(call, xBC, given)

    d_parts = d_dt = d_xBC = None
    if d_y is not None or d_states is not None:
        d_parts, d_dt, scan_d_z = _scan(call, given, convolved.detach(), z, dt, d_y, d_states, needs, found, states)
        d_z = d_z if scan_d_z is None else scan_d_z
    if d_parts is not None and in_place:
        d_xBC = places[2]
        found.update(_convolution(call, given, xBC, d_parts, d_conv_states, d_xBC))
    elif d_parts is not None or d_conv_states is not None:
        if in_place:
            leaves, convolved, conv_states = _convolved_again(call, given, xBC)
        d_convolved = None if d_parts is None else torch.cat(d_parts, dim=-1)
        pairs = [(out, d) for out, d in ((convolved, d_convolved), (conv_states, d_conv_states)) if d is not None]
        wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None and needs.get(name, True)}
        outputs, d_outputs = zip(*pairs, strict=True)
        each = torch.autograd.grad(outputs, list(wanted.values()), d_outputs, allow_unused=True)
        found.update(zip(wanted, each, strict=True))
        d_xBC = found.pop("xBC")
    if whole is not None:
        for place, gradient in zip(places, (d_zx0, d_z, d_xBC, d_dt), strict=True):
            _put(place, gradient)
        found["zxbcdt"] = whole
    return found


def _convolved_again(call: Split, given: Operands, xBC: Tensor) -> tuple[dict, Tensor, Tensor | None]:
    """What the convolution reads, as leaves by name, and what it makes of them, differentiable."""
    tensors = {"xBC": xBC, **{name: getattr(given, name) for name in _CONVOLUTION}}
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in tensors.items()}
    with torch.enable_grad():
        convolved, states = convolve(
            call, leaves["xBC"], given._replace(**{name: leaves[name] for name in _CONVOLUTION})
        )
    return leaves, convolved, states


def _put(place: Tensor, gradient: Tensor | None) -> None:
    """A gradient to its place, where it may be already; None: zeros."""
    if gradient is None:
        place.zero_()
    elif gradient.data_ptr() != place.data_ptr():
        place.copy_(gradient)


def _convolution(
    call: Split, given: Operands, xBC: Tensor, d_parts: Sequence[Tensor], d_states: Tensor | None, d_xBC: Tensor
) -> dict[str, Tensor]:
    """Gradients of the convolution's operands, by kernels, that of xBC in `d_xBC`.

    d_parts: of what it made, [batch, seqlen, channels] each, side by side: channels know nothing of each other, so each
    part is a convolution of its own, and nobody joins them.
    """
    made: list[dict[str, Tensor]] = []
    first = 0
    for d_part in d_parts:
        own = slice(first, first + d_part.shape[-1])
        weight, bias = (t if t is None else t[own] for t in (given.conv1d_weight, given.conv1d_bias))
        initial, d_ends = (t if t is None else t[:, own] for t in (given.initial_conv_states, d_states))
        made.append(
            conv_paths.backward(
                d_part.mT, d_ends, xBC[..., own].mT, weight, bias, initial, given.seq_idx, given.cu_seqlens,
                call.activation, d_xBC[..., own].mT,
            )
        )  # fmt: skip
        first = own.stop
    names = {"weight": "conv1d_weight", "bias": "conv1d_bias", "initial_states": "initial_conv_states"}
    return {
        whole: torch.cat([each[name] for each in made], dim=int(name == "initial_states"))
        for name, whole in names.items()
        if name in made[0]
    }


def _after_scan(call, given, y, z, zx0, d_out, needs, found, place):
    """Gradients of y, z and zx0; those of the norm and the output projection go into `found`.

    place: where the gradient of z belongs, or None; it may be there already.
    """
    plain = given.rmsnorm_weight is None and not call.d_nonssm
    group_size = call.d_ssm // call.ngroups
    in_place = not (plain or call.d_nonssm or place is None) and norm_paths.runs_kernels(y, group_size)
    if in_place and given.outproj_weight is None:
        return _norm(call, given, y, z, d_out, group_size, found, place)
    operands = {"y": y, "z": z, "zx0": zx0, "rmsnorm_weight": given.rmsnorm_weight}
    if not in_place:
        operands = {name: None if t is None else t.detach().requires_grad_() for name, t in operands.items()}
    with torch.set_grad_enabled(not in_place):
        h = operands["y"] if plain else join(call, *operands.values())
    if given.outproj_weight is not None:
        rows = d_out.flatten(0, 1)
        if needs["outproj_weight"]:
            found["outproj_weight"] = rows.mT @ h.detach().flatten(0, 1)
        if needs["outproj_bias"]:
            found["outproj_bias"] = rows.sum(0)
        d_out = d_out @ given.outproj_weight
    if plain:
        return d_out, None, None
    if in_place:
        return _norm(call, given, y, z, d_out, group_size, found, place)
    wanted = {name: leaf for name, leaf in operands.items() if leaf is not None and needs.get(name, True)}
    each = torch.autograd.grad(h, list(wanted.values()), d_out, allow_unused=True)
    gradients = dict(zip(wanted, each, strict=True))
    found["rmsnorm_weight"] = gradients.get("rmsnorm_weight")
    return gradients["y"], gradients["z"], gradients["zx0"]


def _norm(call, given, y, z, d_out, group_size, found, place):
    """`_after_scan` of the norm alone, by kernels, with the gradient of z in `place`."""
    options = (call.eps, group_size, call.norm_before_gate, True)
    gradients = norm_paths.backward(d_out, y, given.rmsnorm_weight, None, z, *options, place)
    found["rmsnorm_weight"] = gradients["weight"]
    return gradients["x"], place, None


def _scan(call, given, convolved, z, dt, d_y, d_states, needs, found, states):
    """Gradients of what the convolution made, in parts, of dt and of the scan's gate; the others' go into `found`."""
    x, B, C = call.heads(convolved)
    wanted = {
        "x": True,
        "dt": True,
        "A": needs["A"],
        "B": True,
        "C": True,
        "D": needs["D"],
        "z": given.rmsnorm_weight is None,
        "dt_bias": needs["dt_bias"],
        "initial_states": needs["initial_states"],
    }
    low, high = call.dt_limit
    gradients = autograd.gradients(
        None if d_y is None else d_y.unflatten(-1, (call.nheads, call.headdim)),
        d_states,
        [
            x,
            step_sizes(dt, given),
            given.A,
            B,
            C,
            given.D,
            gate(call, given, z),
            given.dt_bias,
            given.initial_states,
            given.seq_idx,
            given.cu_seqlens,
        ],
        (True, float(low), float(high)),
        frozenset(name for name, needed in wanted.items() if needed),
        states=states,
    )
    found.update((name, gradients.get(name)) for name in ("A", "D", "dt_bias", "initial_states"))
    # B and C are few channels, and go together
    d_parts = (gradients["x"].flatten(-2), torch.cat([gradients[name].flatten(-2) for name in ("B", "C")], dim=-1))
    d_dt = without_padding(gradients["dt"], given)
    d_z = gradients["z"].flatten(-2) if "z" in gradients else None
    return d_parts, d_dt, d_z
