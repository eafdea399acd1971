"""Launches of the gated norms: rows of channels, whole.  -> norm_paths"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import (
    layer_norm,
    layer_norm_2d,
    layer_norm_backward,
    layer_norm_backward_3d,
    layer_norm_backward_5d,
    layer_norm_gate_first,
    layer_norm_gate_first_2d,
    layer_norm_gate_first_backward,
    layer_norm_gate_first_backward_3d,
    layer_norm_gate_first_backward_5d,
    rms_norm,
    rms_norm_2d,
    rms_norm_backward,
    rms_norm_backward_3d,
    rms_norm_backward_5d,
    rms_norm_gate_first,
    rms_norm_gate_first_2d,
    rms_norm_gate_first_backward,
    rms_norm_gate_first_backward_3d,
    rms_norm_gate_first_backward_5d,
    sum_parts,
    sum_parts_early,
)
from ..launching import Plan, Recipes, Sizes, can_start_early, key_of
from ..norm_defaults import LONGEST
from ..tiles import cut, equal_count, equal_tile

# is_rms_norm, gate first, tiles of the channels of a row
FORWARD = {
    (True, False, 1): rms_norm,
    (True, False, 2): rms_norm_2d,
    (True, True, 1): rms_norm_gate_first,
    (True, True, 2): rms_norm_gate_first_2d,
    (False, False, 1): layer_norm,
    (False, False, 2): layer_norm_2d,
    (False, True, 1): layer_norm_gate_first,
    (False, True, 2): layer_norm_gate_first_2d,
}
BACKWARD = {
    (True, False, 1): rms_norm_backward,
    (True, False, 3): rms_norm_backward_3d,
    (True, False, 5): rms_norm_backward_5d,
    (True, True, 1): rms_norm_gate_first_backward,
    (True, True, 3): rms_norm_gate_first_backward_3d,
    (True, True, 5): rms_norm_gate_first_backward_5d,
    (False, False, 1): layer_norm_backward,
    (False, False, 3): layer_norm_backward_3d,
    (False, False, 5): layer_norm_backward_5d,
    (False, True, 1): layer_norm_gate_first_backward,
    (False, True, 3): layer_norm_gate_first_backward_3d,
    (False, True, 5): layer_norm_gate_first_backward_5d,
}
# dimensions of the tensors, as the kernels' stride parameters name them
DIMS = {
    "d_x": ("rows", "dim"),
    "d_y": ("rows", "dim"),
    "d_z": ("rows", "dim"),
    "x": ("rows", "dim"),
    "y": ("rows", "dim"),
    "z": ("rows", "dim"),
}

# parts of a gradient: few, and in the cache
SUM = {"num_warps": 4}

_recipes = Recipes()


def forward(
    config: dict[str, Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """y, [rows, dim], in out_dtype or that of x.  On the current device; arguments already checked, x and z [rows, dim]
    with a last stride of 1.

    config: {"schedule", "kernels": {"norm": {"block_t", "tiles", "num_warps"}}}, never changed.  Of the backward pass
    "programs" and "sum_early" too: the sum of the parts is launched while they are made, on GPUs that can.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "z": z}
    y = _run(config, tensors, False, (eps, group_size, norm_before_gate, is_rms_norm, out_dtype))["y"]
    assert y is not None
    return y


def backward(
    config: dict[str, Any],
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
    d_z: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by the names of the operands; arguments as in `forward`, d_y as x.

    d_z: memory for the gradient of z, as x; None: of its own.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "z": z, "d_y": d_y}
    if d_z is not None:
        tensors["d_z"] = d_z
    found = _run(config, tensors, True, (eps, group_size, norm_before_gate, is_rms_norm))
    gradients = {"x": found["d_x"], "weight": found["d_weight"]}
    if z is not None:
        gradients["z"] = found["d_z"]
    if bias is not None:
        gradients["bias"] = found["d_bias"]
    return gradients


def _run(config: dict[str, Any], tensors: dict[str, Tensor | None], backward: bool, options: tuple) -> dict:
    """Launch, by a recipe if there is one; returns the tensors with the results among them."""
    x = tensors["x"]
    assert x is not None
    key = key_of(tensors, backward, id(config), x.device, *options)
    recipe = _recipes.get(key)
    if recipe is not None:
        recipe(tensors, x.device)
        return tensors
    plan = launches(config, tensors, backward, *options)
    _recipes.run(key, plan, config)
    return plan.tensors


def launches(
    config: dict[str, Any],
    tensors: dict[str, Tensor | None],
    backward: bool,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """The launches of a call, not yet made.  Tensors by name, maybe on "meta"."""
    x, z, weight, bias = (tensors[name] for name in ("x", "z", "weight", "bias"))
    rows, dim = x.shape
    numbers = config["kernels"]["norm"]
    # a program without rows would only leave zeros
    programs = min(numbers.get("programs", 0), -(-rows // numbers["block_t"]))
    sizes = Sizes(
        tensors.copy(),
        DIMS,
        rows=rows,
        dim=dim,
        group_size=group_size,
        ngroups=dim // group_size,
        nprograms=programs,
        size=float(group_size),
        eps=eps,
        HAS_Z=z is not None,
        HAS_BIAS=bias is not None,
    )
    if backward:
        sizes.allocate("d_x", (rows, dim), x.dtype)
        if z is not None and "d_z" not in tensors:
            sizes.allocate("d_z", (rows, dim), z.dtype)
        sizes.allocate("d_weight", (dim,), weight.dtype)
        if bias is not None:
            sizes.allocate("d_bias", (dim,), bias.dtype)
        sizes.scratch("parts", (programs, 2, dim), torch.float32)
    else:
        sizes.allocate("y", (rows, dim), out_dtype or x.dtype)
    tiles = cut(group_size, LONGEST)
    # of a record for rows of another length the number of tiles may be one that pads more than fewer do
    count = equal_count(group_size, numbers["tiles"]) if backward else min(numbers["tiles"], len(tiles))
    blocks = {"BLOCK_D": equal_tile(group_size, count)}
    if count == 2:
        blocks = {"BLOCK_D_0": tiles[0], "BLOCK_D_1": tiles[1]}
    table = BACKWARD if backward else FORWARD
    sizes.launch(table[is_rms_norm, not norm_before_gate, count], numbers, BLOCK_T=numbers["block_t"], **blocks)
    if backward:
        columns = 1 + (bias is not None)
        starts_early = bool(numbers.get("sum_early")) and can_start_early(x.device)
        module, own = (sum_parts_early, {**SUM, "early": True}) if starts_early else (sum_parts, SUM)
        sizes.launch(module, own, nparts=programs, sums=2, width=1, columns=columns, BLOCK_T=64, BLOCK_D=32)
    return sizes.plan()
