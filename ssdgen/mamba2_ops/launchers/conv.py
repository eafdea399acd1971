"""Launches of the convolution: a walk where channels lie side by side, tiles where positions do.  -> conv_paths"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import (
    conv_tile_2w,
    conv_tile_3w,
    conv_tile_4w,
    conv_tile_backward_2w,
    conv_tile_backward_3w,
    conv_tile_backward_4w,
    conv_update_2w,
    conv_update_3w,
    conv_update_4w,
    conv_walk_2w,
    conv_walk_3w,
    conv_walk_4w,
    conv_walk_backward_2w,
    conv_walk_backward_3w,
    conv_walk_backward_4w,
    sum_parts,
    sum_parts_early,
)
from ..launching import Plan, Recipes, Sizes, can_start_early, key_of

# width -> kernel
CONV_WALK = {
    2: conv_walk_2w,
    3: conv_walk_3w,
    4: conv_walk_4w,
}
CONV_WALK_BACKWARD = {
    2: conv_walk_backward_2w,
    3: conv_walk_backward_3w,
    4: conv_walk_backward_4w,
}
CONV_TILE = {
    2: conv_tile_2w,
    3: conv_tile_3w,
    4: conv_tile_4w,
}
CONV_TILE_BACKWARD = {
    2: conv_tile_backward_2w,
    3: conv_tile_backward_3w,
    4: conv_tile_backward_4w,
}
CONV_UPDATE = {
    2: conv_update_2w,
    3: conv_update_3w,
    4: conv_update_4w,
}
# dimensions of the tensors, as the kernels' stride parameters name them
WALK_DIMS = {
    "d_states": ("rows", "dim", "state_len"),
    "d_x": ("batch", "seqlen", "dim"),
    "d_y": ("batch", "seqlen", "dim"),
    "initial_states": ("rows", "dim", "state_len"),
    "weight": ("dim", "width"),
    "x": ("batch", "seqlen", "dim"),
    "y": ("batch", "seqlen", "dim"),
}
TILE_DIMS = {
    "d_states": ("rows", "dim", "state_len"),
    "d_x": ("batch", "dim", "seqlen"),
    "d_y": ("batch", "dim", "seqlen"),
    "initial_states": ("rows", "dim", "state_len"),
    "weight": ("dim", "width"),
    "x": ("batch", "dim", "seqlen"),
    "y": ("batch", "dim", "seqlen"),
}
UPDATE_DIMS = {
    "conv_state": ("slots", "dim", "state_len"),
    "weight": ("dim", "width"),
    "x": ("batch", "dim", "tokens"),
    "y": ("batch", "dim", "tokens"),
}
# parts of a gradient: few, and in the cache
SUM = {"num_warps": 4}

_recipes = Recipes()


def forward(
    config: dict[str, Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor | None]:
    """y and the states after the last token, if asked for.  On the current device; arguments already checked.

    config: {"schedule", "kernels": {kernel: numbers}}, numbers {"block_d", "num_warps"} and "part" of "conv_walk",
    "block_t" of "conv_tile"; never changed.  In the backward pass "sum_early" too: the sum of the parts is launched
    while they are made, on GPUs that can.
    x: [batch, dim, seqlen], with a stride of 1 along dim (a walk) or seqlen (tiles, without cu_seqlens).
    Returns: y [batch, dim, seqlen], dense in the order of x; states [rows, dim, width - 1].
    """
    walk = _walks(x)
    tensors = _tensors(x, weight, bias, initial_states, seq_idx, cu_seqlens)
    tensors = _run(config, tensors, walk, _plan_forward, (silu, final_states))
    return _turned(tensors["y"], walk), tensors.get("final_states")


def backward(
    config: dict[str, Any],
    d_y: Tensor,
    d_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    silu: bool,
    d_x: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by the names of the operands; arguments as in `forward`, d_y with a stride of 1 where x has it.

    d_x: memory for the gradient of x, as d_y; None: of its own.
    """
    walk = _walks(x)
    tensors = _tensors(x, weight, bias, initial_states, seq_idx, cu_seqlens)
    tensors |= {"d_y": _turned(d_y, walk), "d_states": d_states}
    if d_x is not None:
        tensors["d_x"] = _turned(d_x, walk)
    tensors = _run(config, tensors, walk, _plan_backward, (silu,))
    found = {"x": _turned(tensors["d_x"], walk), "weight": tensors["d_weight"]}
    if bias is not None:
        found["bias"] = tensors["d_bias"]
    if initial_states is not None:
        found["initial_states"] = tensors["d_initial_states"]
    return found


def update(
    config: dict[str, Any],
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """y of the new tokens of each row, [batch, dim, tokens]; the state is updated in place."""
    tensors: dict[str, Tensor | None] = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "conv_state": conv_state,
        "cache_seqlens": cache_seqlens,
        "conv_state_indices": conv_state_indices,
    }
    tensors = _run(config, tensors, True, _plan_update, (silu,))
    y = tensors["y"]
    assert y is not None
    return y


def _run(config: dict[str, Any], tensors: dict[str, Tensor | None], walk: bool, make, options: tuple) -> dict:
    """Launch, by a recipe if there is one; returns the tensors with the results among them."""
    x = tensors["x"]
    assert x is not None
    key = key_of(tensors, make.__name__, walk, id(config), x.device, *options)
    recipe = _recipes.get(key)
    if recipe is not None:
        recipe(tensors, x.device)
        return tensors
    plan = make(config, tensors, walk, *options)
    _recipes.run(key, plan, config)
    return plan.tensors


def launches(
    direction: str, config: dict[str, Any], tensors: dict[str, Tensor | None], walk: bool, *options: bool
) -> Plan:
    """The launches of a call, not yet made: "forward", "backward" or "update".  Tensors by name, maybe on "meta"."""
    make = {"forward": _plan_forward, "backward": _plan_backward, "update": _plan_update}[direction]
    return make(config, tensors, walk, *options)


def _plan_forward(config, tensors, walk: bool, silu: bool, final_states: bool) -> Plan:
    sizes = _sizes(tensors, walk, silu, STORE_FINAL=final_states)
    names, x = sizes.names, sizes.tensors["x"]
    sizes.allocate("y", tuple(x.shape), x.dtype)
    if final_states:
        sizes.allocate("final_states", (names["rows"], names["dim"], names["state_len"]), x.dtype)
    table, numbers = (CONV_WALK, "conv_walk") if walk else (CONV_TILE, "conv_tile")
    numbers = config["kernels"][numbers]
    sizes.launch(table[names["width"]], numbers, **_blocks(numbers, names, walk, 0))
    return sizes.plan()


def _plan_backward(config, tensors, walk: bool, silu: bool) -> Plan:
    initial = tensors["initial_states"]
    sizes = _sizes(
        tensors, walk, silu, HAS_D_STATES=tensors["d_states"] is not None, STORE_D_INITIAL=initial is not None
    )
    names, x = sizes.names, sizes.tensors["x"]
    early = names["state_len"] if initial is not None else 0
    table, numbers = (CONV_WALK_BACKWARD, "conv_walk") if walk else (CONV_TILE_BACKWARD, "conv_tile")
    numbers = config["kernels"][numbers]
    blocks = _blocks(numbers, names, walk, early)
    parts = blocks["nsegments"] if walk else blocks["ntiles"]
    if "d_x" not in tensors:
        sizes.allocate("d_x", tuple(x.shape), x.dtype)
    weight, bias = sizes.tensors["weight"], sizes.tensors["bias"]
    sizes.allocate("d_weight", tuple(weight.shape), weight.dtype)
    if bias is not None:
        sizes.allocate("d_bias", tuple(bias.shape), bias.dtype)
    sizes.scratch("parts", (names["rows"], parts, names["sums"], names["dim"]), torch.float32)
    if initial is not None:
        sizes.allocate("d_initial_states", tuple(initial.shape), initial.dtype)
    sizes.launch(table[names["width"]], numbers, **blocks)
    columns = names["width"] + (bias is not None)
    starts_early = bool(numbers.get("sum_early")) and can_start_early(x.device)
    module, own = (sum_parts_early, {**SUM, "early": True}) if starts_early else (sum_parts, SUM)
    sizes.launch(module, own, nparts=names["rows"] * parts, columns=columns, BLOCK_T=64, BLOCK_D=32)
    return sizes.plan()


def _plan_update(config, tensors, _: bool, silu: bool) -> Plan:
    x, conv_state, weight = tensors["x"], tensors["conv_state"], tensors["weight"]
    batch, dim, tokens = x.shape
    sizes = Sizes(
        tensors.copy(),
        UPDATE_DIMS,
        batch=batch,
        dim=dim,
        tokens=tokens,
        slots=conv_state.shape[0],
        state_len=conv_state.shape[2],
        HAS_BIAS=tensors["bias"] is not None,
        SILU=silu,
        HAS_RING=tensors["cache_seqlens"] is not None,
        HAS_INDICES=tensors["conv_state_indices"] is not None,
    )
    sizes.allocate("y", (batch, dim, tokens), x.dtype)
    numbers = config["kernels"]["conv_update"]
    sizes.launch(CONV_UPDATE[weight.shape[1]], numbers, BLOCK_D=numbers["block_d"])
    return sizes.plan()


def _walks(x: Tensor) -> bool:
    return x.stride(1) == 1


def _turned(tensor: Tensor | None, walk: bool) -> Tensor:
    """With the contiguous dimension last, or back."""
    assert tensor is not None
    return tensor.transpose(1, 2) if walk else tensor


def _tensors(x, weight, bias, initial_states, seq_idx, cu_seqlens) -> dict[str, Tensor | None]:
    return {
        "x": _turned(x, _walks(x)),
        "weight": weight,
        "bias": bias,
        "initial_states": initial_states,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
    }


def _sizes(tensors: dict[str, Tensor | None], walk: bool, silu: bool, **flags: bool) -> Sizes:
    x, weight, cu_seqlens = tensors["x"], tensors["weight"], tensors["cu_seqlens"]
    batch, seqlen, dim = x.shape if walk else (x.shape[0], x.shape[2], x.shape[1])
    width = weight.shape[1]
    return Sizes(
        tensors.copy(),
        WALK_DIMS if walk else TILE_DIMS,
        batch=batch,
        rows=batch if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        seqlen=seqlen,
        dim=dim,
        width=width,
        state_len=width - 1,
        sums=width + 1,
        HAS_BIAS=tensors["bias"] is not None,
        SILU=silu,
        HAS_SEQ_IDX=tensors["seq_idx"] is not None,
        HAS_CU_SEQLENS=cu_seqlens is not None,
        HAS_INITIAL=tensors["initial_states"] is not None,
        **flags,
    )


def _blocks(numbers: dict[str, Any], names: dict[str, Any], walk: bool, early: int) -> dict[str, int]:
    """Tile sizes, and how many programs go along a row.  early: tokens before the first that get a gradient too."""
    if not walk:
        tiles = -(-(names["seqlen"] + early) // numbers["block_t"])
        return {"BLOCK_D": numbers["block_d"], "BLOCK_T": numbers["block_t"], "ntiles": tiles}
    # of packed sequences, some may be far longer than the average: up to four times as many parts as that has
    average = -(-names["seqlen"] // names["rows"]) if names["HAS_CU_SEQLENS"] else names["seqlen"]
    parts = -(-average // numbers["part"])
    most = -(-names["seqlen"] // numbers["part"])
    return {"BLOCK_D": numbers["block_d"], "nsegments": min(most, 4 * parts) if names["HAS_CU_SEQLENS"] else parts}
