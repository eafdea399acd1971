"""Launches of a decode step.  config, operands -> launches -> y and the state, in place

step    the recurrence, over the tokens of a call
replay  y from the state and kept inputs; the state where no more can be kept
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..kernels import (
    replay_advance,
    replay_scores,
    replay_step,
    replay_step_1tile,
    replay_step_2n,
    replay_step_2tiles,
    replay_step_4tiles,
    replay_step_4tiles_2ahead,
    replay_step_8tiles_4ahead,
    replay_step_heads,
    state_step,
    state_step_1tile,
    state_step_1tile_units,
    state_step_2n,
    state_step_2tiles,
    state_step_2tiles_units,
    state_step_4tiles,
    state_step_4tiles_2ahead,
    state_step_4tiles_2ahead_units,
    state_step_4tiles_units,
    state_step_8tiles_4ahead,
    state_step_8tiles_4ahead_units,
    state_step_heads,
    state_step_untied,
    state_step_untied_2n,
)
from ..launching import TRITON_DTYPES, Plan, Recipes, Sizes, can_start_early, key_of
from ..storage import FLOAT8, LARGEST, format_on
from ..tiles import next_power_of_two, power_tiles

# dimensions of the operands, as the kernels' stride parameters name them
DIMS = {
    "A": ("nheads", "HEADDIM", "DSTATE"),
    "B": ("batch", "tokens", "ngroups", "DSTATE"),
    "C": ("batch", "tokens", "ngroups", "DSTATE"),
    "D": ("nheads", "HEADDIM"),
    "D_head": ("nheads",),
    "dt": ("batch", "tokens", "nheads", "HEADDIM"),
    "dt_bias": ("nheads", "HEADDIM"),
    "state": ("nslots", "nheads", "HEADDIM", "DSTATE"),
    "step_states": ("batch", "tokens", "nheads", "HEADDIM", "DSTATE"),
    "x": ("batch", "tokens", "nheads", "HEADDIM"),
    "y": ("batch", "tokens", "nheads", "HEADDIM"),
    "z": ("batch", "tokens", "nheads", "HEADDIM"),
}
# the same where a call has one token and no axis of it: there is no such stride then
DIMS_OF_ONE = {
    name: (*(dim for dim in dims if dim != "tokens"), "tokens") if "tokens" in dims and name != "step_states" else dims
    for name, dims in DIMS.items()
}

# one dt and A for a head, tiles of dstate
STATE_STEP = {
    (True, 1): state_step,
    (True, 2): state_step_2n,
    (False, 1): state_step_untied,
    (False, 2): state_step_untied_2n,
}

# tiles of dstate
REPLAY_STEP = {
    1: replay_step,
    2: replay_step_2n,
}

# whether inputs are kept: programs that go through heads, where dstate is one tile and a call has one token
OF_HEADS = {
    False: state_step_heads,
    True: replay_step_heads,
}

# whether inputs are kept, tiles of headdim of a program and those that are on their way at once (0: all of them), where
# a call has one token and dstate is one tile
TILED = {
    (False, 1, 0): state_step_1tile,
    (False, 2, 0): state_step_2tiles,
    (False, 4, 0): state_step_4tiles,
    (False, 4, 2): state_step_4tiles_2ahead,
    (False, 8, 4): state_step_8tiles_4ahead,
    (True, 1, 0): replay_step_1tile,
    (True, 2, 0): replay_step_2tiles,
    (True, 4, 0): replay_step_4tiles,
    (True, 4, 2): replay_step_4tiles_2ahead,
    (True, 8, 4): replay_step_8tiles_4ahead,
}
# the same for a scaled state that nothing is kept for
IN_UNITS = {
    (1, 0): state_step_1tile_units,
    (2, 0): state_step_2tiles_units,
    (4, 0): state_step_4tiles_units,
    (4, 2): state_step_4tiles_2ahead_units,
    (8, 4): state_step_8tiles_4ahead_units,
}
# of a program that makes scores
SCORE_WARPS = 4
# programs along the second and third axis of a grid
MOST_PROGRAMS = 65535

_recipes = Recipes()


def launches(config: dict[str, Any], tensors: dict[str, Tensor | None], **options: Any) -> Plan:
    """The launches of a step, not yet made.  Arguments as in `step`; tensors may be on "meta"."""
    return _plan(config, _as_bytes(tensors), **options)


def step(config: dict[str, Any], tensors: dict[str, Tensor | None], **options: Any) -> None:
    """Write y and advance the states.  On the current device; arguments already checked, batch at least 1.

    config: {"schedule", "kernels": {"state_step": {"block_p", "num_warps", "heads", "tiles", "ahead", "early",
    "maxnreg"}}}, the last five where they are not 1, 0, 0, False and 0; never changed.  heads: of a program, taken
    where they divide those of a group and a kernel is there; tiles: of block_p rows each, of one head, that a program
    has, taken where they divide headdim and a kernel is there; ahead: of these on their way at once, 0 for all; early:
    the launch overlaps with the kernel before, on GPUs that can.
    tensors: by name, None or left out where there is none: state [slots, nheads, headdim, dstate]; state_scale;
    state_batch_indices; seed; x, y, z [batch, heads, headdim] and B, C [batch, heads, dstate], or with tokens behind
    batch, all with a last stride of 1; dt [batch, nheads] or with headdim; A [nheads] or with headdim and dstate; D,
    dt_bias [nheads] or with headdim; step_states, step_scales [batch, tokens, ..]; kept_x, kept_dt, kept_B, count of a
    replay.
    options: tied (one dt and A for a head), tokens (None: no axis of them), dt_softplus, dt_limit, pad_slot_id,
    update_state.
    Errors: OptionError where the package has no kernel for the dstate.
    """
    tensors = _as_bytes(tensors)
    key = key_of(tensors, id(config), *options.values())
    recipe = _recipes.get(key)
    if recipe is not None:
        x = tensors["x"]
        assert x is not None
        recipe(tensors, x.device)
        return
    _recipes.run(key, _plan(config, tensors, **options), config)


def _as_bytes(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """8-bit floats as bytes, which every GPU can load."""
    state = tensors["state"]
    assert state is not None
    if state.dtype is not FLOAT8:
        return tensors
    found = {**tensors, "state": state.view(torch.uint8)}
    if (steps := tensors.get("step_states")) is not None:
        found["step_states"] = steps.view(torch.uint8)
    return found


def _plan(
    config: dict[str, Any],
    tensors: dict[str, Tensor | None],
    *,
    tied: bool,
    tokens: int | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    pad_slot_id: int,
    update_state: bool,
) -> Plan:
    state, x, B, C = (tensors[name] for name in ("state", "x", "B", "C"))
    assert state is not None and x is not None and B is not None and C is not None
    nslots, nheads, headdim, dstate = state.shape
    dtype = FLOAT8 if state.dtype is torch.uint8 else state.dtype
    tiles = power_tiles(dstate)
    replayed = tensors.get("kept_x")
    kept = 0 if replayed is None else replayed.shape[2]
    ngroups = min(x.shape[-2], B.shape[-2], C.shape[-2])
    sizes = Sizes(
        tensors,
        DIMS_OF_ONE if tokens is None else DIMS,
        batch=x.shape[0],
        nslots=nslots,
        nheads=nheads,
        ngroups=ngroups,
        group_heads=nheads // ngroups,
        pad_slot_id=pad_slot_id,
        dt_min=float(dt_limit[0]),
        dt_max=float(dt_limit[1]),
        stored_step=1.0 / LARGEST.get(dtype, 1.0),
        HEADDIM=headdim,
        DSTATE=dstate,
        TOKENS=tokens or 1,
        KEPT=kept,
        FORMAT=format_on(x.device, dtype),
        HAS_D=tensors.get("D") is not None,
        HAS_Z=tensors.get("z") is not None,
        HAS_DT_BIAS=tensors.get("dt_bias") is not None,
        DT_SOFTPLUS=dt_softplus,
        HAS_SLOTS=tensors.get("state_batch_indices") is not None,
        HAS_SCALE=dtype in LARGEST,
        RANDOM=tensors.get("seed") is not None,
        STORE_STATE=update_state,
        STORE_STEPS=tensors.get("step_states") is not None,
        DOT=TRITON_DTYPES[x.dtype],
        PRECISION="ieee",
    )
    numbers = config["kernels"].get("state_step", {})
    blocks = {"BLOCK_P": _divisor(headdim, numbers.get("block_p", headdim)), **_blocks(tiles)}
    table, shape = (STATE_STEP, (tied, len(tiles))) if not kept else (REPLAY_STEP, len(tiles))
    heads = numbers.get("heads", 1)
    one_token = tied and (tokens or 1) == 1 and tensors.get("step_states") is None
    early = bool(numbers.get("early")) and can_start_early(x.device)
    heads = heads if nheads // ngroups % heads == 0 else 1
    cut = numbers.get("tiles", 0), numbers.get("ahead", 0)
    tiled = IN_UNITS.get(cut) if sizes.names["HAS_SCALE"] and not kept else TILED.get((bool(kept), *cut))
    fits = one_token and len(tiles) == 1 and max(x.shape[0], ngroups) <= MOST_PROGRAMS
    if tiled is not None and fits and headdim % numbers["tiles"] == 0:
        block = _divisor(headdim // numbers["tiles"], numbers.get("block_p", headdim))
        _launch_tiles(sizes, tiled, numbers, early, BLOCK_P=block, BLOCK_N=tiles[0])
        return sizes.plan()
    numbers = {**numbers, "early": False}
    if one_token and len(tiles) == 1 and (heads > 1 or early):
        table, shape, blocks = OF_HEADS, bool(kept), {**blocks, "HEADS": heads, "EARLY": early}
        numbers["early"] = early
    if shape not in table:
        raise OptionError(f"this package has no decode kernel for dstate {dstate}: emit it for that, or for all sizes")
    if not kept:
        sizes.launch(table[shape], numbers, **blocks)
        return sizes.plan()
    slots = {f"new_{name}": f"kept_{name}" for name in ("x", "dt", "B")}
    sizes.launch(table[shape], numbers, slots, BLOCK_K=next_power_of_two(kept), **blocks)
    sizes.launch(replay_advance, {"num_warps": 1})
    return sizes.plan()


def _launch_tiles(sizes: Sizes, kernel: Any, numbers: dict[str, Any], early: bool, **blocks: int) -> None:
    """Launch a kernel whose programs have tiles; before it, where inputs are kept, what makes their scores.

    early: beside the kernel in front of it, for which it waits itself.
    """
    names, D = sizes.names, sizes.tensors.get("D")
    # expanded over headdim it is one number for a head, too
    by_head = D is not None and (D.dim() == 1 or D.stride(1) == 0)
    slots = {"D_head": "D"}
    flags = {"EARLY": early, "HAS_D": names["HAS_D"] and not by_head, "D_BY_HEAD": by_head}
    if not names["KEPT"]:
        sizes.launch(kernel, {**numbers, "early": early}, slots, **flags, **blocks)
        return
    # what is multiplied on a matrix unit has 16 rows at least
    columns = max(16, next_power_of_two(names["KEPT"]))
    batch, ngroups = names["batch"], names["ngroups"]
    sizes.scratch("held", (batch,), torch.int32)
    sizes.scratch("CB", (batch, ngroups), torch.float32)
    sizes.scratch("kept_CB", (batch, ngroups, columns), torch.float32)
    blocks["BLOCK_K"] = columns
    slots |= {f"new_{name}": f"kept_{name}" for name in ("x", "dt", "B")}
    sizes.launch(replay_scores, {"num_warps": SCORE_WARPS}, slots, EARLY=early, **blocks)
    sizes.launch(kernel, {**numbers, "early": early}, slots, **flags, **blocks)


def _divisor(headdim: int, block: int) -> int:
    """The largest power of two that divides headdim, and at most `block`: no row is then masked."""
    divisor = headdim & -headdim
    while divisor > block:
        divisor //= 2
    return divisor


def _blocks(tiles: tuple[int, ...]) -> dict[str, int]:
    return {"BLOCK_N": tiles[0]} if len(tiles) == 1 else {f"BLOCK_N_{k}": tile for k, tile in enumerate(tiles)}
