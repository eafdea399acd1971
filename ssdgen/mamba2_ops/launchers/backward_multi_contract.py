"""Backward launches.  config, operands, adjoints of the results -> launches -> gradients

step sizes    and running sums, padded to whole chunks
states        that enter each chunk: a walk forwards through the chunks of each segment
then, in the schedule "walk"
  walk        backwards through the chunks of each segment: d_x, d_z, d_D and, per token, a part of d_dt
  groups      chunk by chunk, the heads of a group added up: d_B, d_C and another part of d_dt
or, in the schedule "chunks"
  adjoints    of the states that leave each chunk: a walk backwards
  gradients   chunk by chunk, the heads of a group added up: all of the above
steps         d_dt, d_A and d_dt_bias from those parts

With several segments, what enters each from the left and its adjoint from the right are made first.  All but the
step sizes may go in slices of rows and heads, one after the other: kernels then get parts of the tensors.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import memory
from ..backward_shapes import Shape, Shapes
from ..backward_slices import Slicing, keep, segment_of
from ..errors import OptionError
from ..kernel_shapes import block_of_states, dtype_of_states, heads_of_steps, numbers_of, precision
from ..kernels import (
    adjoint_passing,
    both_passing,
    chunk_states_2n_multi_contract,
    chunk_states_multi_contract,
    dt_cumsum,
    dt_cumsum_gated,
    dt_gradients,
    dt_gradients_blocks,
    dt_gradients_blocks_gated,
    dt_gradients_gated,
    group_gradients_2n_2p_multi_contract,
    group_gradients_2n_multi_contract,
    group_gradients_2p_multi_contract,
    group_gradients_multi_contract,
    reverse_walk_2n_2p_multi_contract,
    reverse_walk_2n_multi_contract,
    reverse_walk_2p_multi_contract,
    reverse_walk_multi_contract,
    segment_adjoint_2n_multi_contract,
    segment_adjoint_multi_contract,
    segment_state_2n_multi_contract,
    segment_state_multi_contract,
    sum_heads,
)
from ..launching import TRITON_DTYPES, Plan, Recipe, Recipes, Sizes, key_of
from ..repeats import Again
from ..slices import Cut, Slice, slices
from ..tiles import LARGEST, next_power_of_two

# dimensions of the operands, as the kernels' stride parameters name them
DIMS = {
    "A": ("batch", "seqlen", "nheads"),
    "B": ("batch", "seqlen", "ngroups", "DSTATE"),
    "C": ("batch", "seqlen", "nheads", "DSTATE"),
    "D": ("nheads", "HEADDIM"),
    "d_y": ("batch", "seqlen", "nheads", "HEADDIM"),
    "dt_raw": ("batch", "seqlen", "nheads"),
    "x": ("batch", "seqlen", "ngroups", "HEADDIM"),
    "z": ("batch", "seqlen", "nheads", "HEADDIM"),
}

SHAPES = Shapes(
    tables={
        "segment_state": {
            1: segment_state_multi_contract,
            2: segment_state_2n_multi_contract,
        },
        "chunk_states": {
            1: chunk_states_multi_contract,
            2: chunk_states_2n_multi_contract,
        },
        "segment_adjoint": {
            1: segment_adjoint_multi_contract,
            2: segment_adjoint_2n_multi_contract,
        },
        "reverse_walk": {
            (1, 1): reverse_walk_multi_contract,
            (2, 1): reverse_walk_2n_multi_contract,
            (1, 2): reverse_walk_2p_multi_contract,
            (2, 2): reverse_walk_2n_2p_multi_contract,
        },
        "group_gradients": {
            (1, 1): group_gradients_multi_contract,
            (2, 1): group_gradients_2n_multi_contract,
            (1, 2): group_gradients_2p_multi_contract,
            (2, 2): group_gradients_2n_2p_multi_contract,
        },
    },
    consumers={},
)

# runs in 48 KB of shared memory up to a headdim * dstate of 32768
MINIMAL_BACKWARD: dict[str, Any] = {
    "schedule": "walk",
    "chunk": 16,
    "state_dtype": "float32",
    "kernels": {
        "segment_state": {"block_p": 16},
        "chunk_states": {"block_p": 16},
        "segment_adjoint": {"block_p": 16},
        "reverse_walk": {"block_n": 16, "block_p": 16},
        "group_gradients": {"block_n": 16, "block_p": 16},
    },
}

# inputs whose gradients need what decays and step sizes get
OF_STEPS = frozenset({"dt", "A", "dt_bias"})

# where the rows, heads and groups of what kernels get lie
AXES = {
    "A": "b.h",
    "B": "b.g.",
    "C": "b.h.",
    "D": "h.",
    "d_y": "b.h.",
    "dt_raw": "b.h",
    "x": "b.g.",
    "z": "b.h.",
    "seq_idx": "b.",
    "dt_ready": "bh.",
    "dA_cs": "bh.",
    "initial_states": "bh..",
    "d_final_states": "bh..",
    "d_initial": "bh..",
    "summary": "b.h..",
    "d_summary": "b.h..",
    "states": "r....",
    "d_states": "r....",
    "d_x": "b.h.",
    "d_z": "b.h.",
    "d_B": "b.v.",
    "d_C": "b.v.",
    "d_D": "b.h.",
    "d_dA_cs_scores_rows": ".bh.",
    "d_dt_scores": ".bh.",
    "d_right_decay": ".bh.",
    "d_left_decay": ".bh.",
    "d_centre_decay": ".b.h",
}

SLICES = Slicing(SHAPES, AXES, by_groups=False)

# numbers of the kernels that add up parts
SUM = {"num_warps": 4, "num_stages": 1}

_recipes = Recipes()


def backward(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    d_y: Tensor,
    d_final_states: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs: frozenset[str],
    states: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients of sum(d_y * y) + sum(d_final_states * final_states) by the inputs in `needs`, by their names.

    config: {"schedule", "chunk", "segment", "state_dtype", "kernels": {kernel: numbers}}; never changed.  Without
    "segment" a program walks the whole sequence; "slices", 1 without: in which rows and heads are gone through, more
    than that under SSDGEN_MEMORY_LIMIT; "parts": programs that share out the heads of a group, in a slice, in "chunks".
    numbers: num_warps, num_stages, maxnreg; block_n and block_p, above which dstate and headdim are cut in two; share,
    the tile of headdim (reverse_walk) or dstate (group_gradients) that each program has, 0 for all of it; consumers,
    where warps can be specialised; left, of reverse_walk's, 1 where they multiply their state from registers.
    "beside": walks of adjoints whose warps are specialised start while those of the states before them run.  On the
    current device; arguments already checked, batch at least 1.
    x, z, d_y: [batch, seqlen, nheads, headdim]; dt: [batch, seqlen, nheads]; A, dt_bias: [nheads].
    B, C: [batch, seqlen, ngroups, dstate]; D: [nheads] or [nheads, headdim].
    A may have the shape of dt: the log-decay of every token, whatever its step size.
    initial_states, d_final_states: [batch, nheads, headdim, dstate]; seq_idx: [batch, seqlen].
    states: those that enter the chunks, as the forward pass has kept them, or None; made again where they are not those
    that this pass would make.
    needs: any of "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states", those that are there.
    Returns: each in the shape and dtype of its input, d_dt of the step size before its transform; the same bits from
    call to call.
    Errors: OptionError for a headdim or dstate over 512; Triton's OutOfResources if the config does not fit.
    """
    tensors = _tensors(x, dt, A, B, C, d_y, d_final_states, D, z, dt_bias, initial_states, seq_idx, states)
    needs = frozenset(name for name in needs if tensors[name] is not None)
    options = (dt_softplus, dt_limit, needs)
    limit = memory.limit()
    key = key_of(tensors, id(config), x.device, *options, limit, precision(x))
    recipe = _recipes.get(key)
    if recipe is not None:
        return _again(recipe, _left_as(tensors, needs), tensors, x.device)
    plan = _plan(config, tensors, *options, limit)
    _recipes.run(key, plan, config)
    return _results(plan.tensors, _left_as(tensors, needs))


def again(
    config: dict[str, Any],
    given: dict[str, Tensor | None],
    *,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs: frozenset[str],
) -> Again | None:
    """What makes a call of `backward` again; None before the first one, and where it copies an operand.

    given: the operands by name, d_y and d_final_states; needs: of operands that are there.
    """
    tensors = _tensors(**given)
    x = tensors["x"]
    key = key_of(tensors, id(config), x.device, dt_softplus, dt_limit, needs, memory.limit(), precision(x))
    recipe = _recipes.get(key)
    same = all(tensors[name] is operand for name, operand in given.items())
    return partial(_again, recipe, _left_as(tensors, needs)) if recipe is not None and same else None


def _again(
    recipe: Recipe, left: dict[str, str], tensors: dict[str, Tensor | None], device: torch.device
) -> dict[str, Tensor]:
    recipe(tensors, device)
    return _results(tensors, left)


def launches(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    d_y: Tensor,
    d_final_states: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs: frozenset[str],
    states: Tensor | None = None,
) -> Plan:
    """The launches of a call, not yet made.  Arguments as in `backward`; tensors may be on "meta"."""
    tensors = _tensors(x, dt, A, B, C, d_y, d_final_states, D, z, dt_bias, initial_states, seq_idx, states)
    return _plan(config, tensors, dt_softplus, dt_limit, frozenset(n for n in needs if tensors[n] is not None))


def _tensors(
    x, dt, A, B, C, d_y, d_final_states, D, z, dt_bias, initial_states, seq_idx, states=None
) -> dict[str, Tensor | None]:
    """The operands by name, as the kernels take them."""

    def whole(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.contiguous()

    d_y = d_y.to(x.dtype)
    return {
        "x": x,
        "dt": dt,
        "A": A,
        "B": B,
        "C": C,
        # the sum of y has an adjoint without strides
        "d_y": d_y if d_y.stride(-1) == 1 else d_y.contiguous(),
        "d_final_states": whole(d_final_states),
        "D": D,
        "z": z,
        "dt_bias": dt_bias,
        "initial_states": whole(initial_states),
        "seq_idx": whole(seq_idx),
        "states": states,
    }


def _plan(
    config: dict[str, Any],
    tensors: dict[str, Tensor | None],
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs: frozenset[str],
    limit: int = 0,
) -> Plan:
    """limit: bytes that may be kept, 0 for as many as it takes."""
    tensors = tensors.copy()
    x, B, C = tensors["x"], tensors["B"], tensors["C"]
    batch, seqlen, _, headdim = x.shape
    dstate, nheads = B.shape[3], tensors["dt"].shape[2]
    for name, extent in (("headdim", headdim), ("dstate", dstate)):
        if extent > 2 * LARGEST:
            raise OptionError(f"{name} is {extent}; the backward kernels take at most {2 * LARGEST}")
    chunk = config["chunk"]
    whole = -(-seqlen // chunk) * chunk
    length = min(whole, -(-(config.get("segment") or whole) // chunk) * chunk)
    sizes = Sizes(
        tensors,
        DIMS,
        batch=batch,
        seqlen=seqlen,
        nheads=nheads,
        ngroups=min(x.shape[2], B.shape[2], C.shape[2]),
        padded=whole,
        state_size=headdim * dstate,
        dt_min=float(dt_limit[0]),
        dt_max=float(dt_limit[1]),
        nchunks=whole // chunk,
        p_blocks=1,
        n_blocks=1,
        shares=1,
        fill=False,
        room=0,
        pieces=1,
        nsegments=-(-seqlen // length),
        segment_len=length,
        HEADDIM=headdim,
        DSTATE=dstate,
        CHUNK=chunk,
        DOT=TRITON_DTYPES[x.dtype],
        PRECISION=precision(x),
        HAS_D=tensors["D"] is not None,
        HAS_Z=tensors["z"] is not None,
        HAS_DT_BIAS=tensors["dt_bias"] is not None,
        HAS_SEQ_IDX=tensors["seq_idx"] is not None,
        BESIDE=False,
        DT_SOFTPLUS=dt_softplus,
        NEEDS_X="x" in needs,
        NEEDS_Z="z" in needs,
        NEEDS_D="D" in needs,
        NEEDS_B="B" in needs,
        NEEDS_C="C" in needs,
        NEEDS_A="A" in needs,
        NEEDS_DT=bool(needs & OF_STEPS),
        NEEDS_DT_BIAS="dt_bias" in needs,
    )
    names = sizes.names
    steps, by_chunks = names["NEEDS_DT"], config.get("schedule", "walk") == "chunks"
    # the adjoint of the state that enters, and nothing else
    only_states = needs <= {"initial_states"}
    # where a segment is a chunk, what enters and leaves it is there already
    kept = not (names["nsegments"] > 1 and length == chunk)
    cut = Cut(batch)
    if kept and not only_states:
        cut = SLICES.cut(sizes, config, limit, by_chunks)
        length = segment_of(sizes, config, cut)
        names |= {"segment_len": length, "nsegments": -(-seqlen // length)}
    parts = slices(cut, batch, nheads, names["ngroups"])
    names |= {"shares": parts[0].shares, "pieces": cut.pieces}
    # the forward pass may have kept them
    there = kept and not only_states and len(parts) == 1 and _are_those(tensors["states"], sizes, config)
    tensors["states"] = tensors["states"] if there else None
    vector = (batch, nheads, whole)
    sizes.scratch("dt_ready", vector, torch.float32)
    sizes.scratch("dA_cs", vector, torch.float32)
    module = dt_cumsum_gated if tensors["A"].dim() == 3 else dt_cumsum
    slots, heads = {"dt_raw": "dt", "dt": "dt_ready"}, heads_of_steps(sizes, config)
    sizes.launch(module, numbers_of(config, "dt_cumsum"), slots, BLOCK_H=heads)
    if "initial_states" in needs:
        initial = tensors["initial_states"]
        sizes.allocate("d_initial", tuple(initial.shape), initial.dtype)
    several = names["nsegments"] > 1
    entering, leaving = _pass_states(sizes, config, there) if several else ("initial_states", "d_final_states")
    if several and only_states:
        return sizes.plan()
    if by_chunks:
        _by_chunks(sizes, config, cut, parts, entering, leaving, kept, there, several, only_states)
    else:
        _by_walk(sizes, config, cut, parts, entering, leaving, kept, there, several, needs)
    if steps:
        _finish_steps(sizes, config)
    _add_chunks(sizes, needs)
    return sizes.plan()


def _by_chunks(
    sizes: Sizes,
    config: dict[str, Any],
    cut: Cut,
    parts: list[Slice],
    entering: str,
    leaving: str,
    kept: bool,
    there: bool,
    several: bool,
    only_states: bool,
) -> None:
    """The states and their adjoints, then everything else chunk by chunk."""
    made = [] if only_states else [SHAPES.gradients(sizes, config)]
    if kept:
        walks = ("chunk_adjoints",) if only_states else ("chunk_adjoints", "chunk_states")
        made += [SHAPES.states(sizes, config, walk) for walk in walks]
        for name in ("d_states",) if only_states or there else ("states", "d_states"):
            keep(sizes, config, name, cut, made)
    if not only_states:
        _results_by_chunks(sizes, config, cut)
    for part in parts:
        if kept:
            walked = not (only_states or there)
            if walked:
                _keep_states(sizes, config, part, entering)
            _keep_adjoints(sizes, config, part, leaving, several, walked and config.get("beside", False))
        if not only_states:
            names = ("states", "d_states") if kept else (entering, leaving)
            _gradients(sizes, config, cut, part, *names)


def _by_walk(
    sizes: Sizes,
    config: dict[str, Any],
    cut: Cut,
    parts: list[Slice],
    entering: str,
    leaving: str,
    kept: bool,
    there: bool,
    several: bool,
    needs: frozenset[str],
) -> None:
    """The states, then a walk back and what adds up the heads of a group."""
    steps, groups = sizes.names["NEEDS_DT"], bool(needs & {"B", "C"})
    stored = kept and (steps or groups)
    walks = bool(needs - {"B", "C", "initial_states"}) or kept
    back = SHAPES.walk(sizes, config, stored) if walks else None
    added = SHAPES.groups(sizes, config) if steps or groups else None
    states = kept and (steps or groups or "z" in needs)
    made = [each for each in (back if stored or states else None, added) if each]
    if states and not there:
        keep(sizes, config, "states", cut, [SHAPES.states(sizes, config, "chunk_states"), *made])
    adjoints = "d_states" if not several or kept else leaving
    if adjoints == "d_states" and (steps or groups):
        keep(sizes, config, "d_states", cut, made)
    if back:
        _results_of_walk(sizes, back[0])
    if added:
        _results_of_groups(sizes)
    for part in parts:
        if states and not there:
            _keep_states(sizes, config, part, entering)
        before = "states" if states else entering
        if back:
            beside = config.get("beside", False) and states and not there
            _walk_back(sizes, part, back, before, leaving, stored, several, beside)
        if added:
            _add_groups(sizes, part, added, before, adjoints)


def _are_those(states: Tensor | None, sizes: Sizes, config: dict[str, Any]) -> bool:
    """Whether states are those that this pass would make."""
    return (
        states is not None
        and tuple(states.shape) == _states(sizes, "nchunks")
        and states.dtype is dtype_of_states(config)
    )


def _pass_states(sizes: Sizes, config: dict[str, Any], there: bool) -> tuple[str, str]:
    """The states that enter the segments and the adjoints of those that leave them, by name.

    there: the states that enter the chunks are, and none of segments has to be passed on.
    """
    names, dtype = sizes.names, dtype_of_states(config)
    for name in ("summary", "d_summary"):
        sizes.scratch(name, _states(sizes, "nsegments"), dtype)
    sizes.scratch("total", (names["batch"], names["nsegments"], names["nheads"]), torch.float32)
    for walk, slots, beside in (
        ("segment_state", {"dt": "dt_ready"}, False),
        ("segment_adjoint", {"summary": "d_summary"}, config.get("beside", False)),
    ):
        module, numbers, blocks = SHAPES.states(sizes, config, walk)
        sizes.launch(module, numbers, slots, BESIDE=beside, **blocks)
    numbers = numbers_of(config, "both_passing")
    block = block_of_states(sizes, numbers)
    leaving, wanted = sizes.tensors["d_final_states"] is not None, "d_initial" in sizes.tensors
    if there:
        slots = {"summary": "d_summary", "initial_states": "d_final_states", "final_states": "d_initial"}
        sizes.launch(adjoint_passing, numbers, slots, BLOCK=block, HAS_ENTERING=leaving, STORE_FINAL=wanted)
    else:
        flags = {"HAS_ENTERING": sizes.tensors["initial_states"] is not None, "HAS_LEAVING": leaving}
        sizes.launch(both_passing, numbers, BLOCK=block, STORE_INITIAL=wanted, **flags)
    return "summary", "d_summary"


def _keep_states(sizes: Sizes, config: dict[str, Any], part: Slice, entering: str) -> None:
    """The state that enters each chunk, in `states`."""
    there = sizes.tensors[entering] is not None
    slots = {"entering": entering, "dt": "dt_ready"}
    SLICES.launch(sizes, part, SHAPES.states(sizes, config, "chunk_states"), slots, HAS_ENTERING=there)


def _keep_adjoints(
    sizes: Sizes, config: dict[str, Any], part: Slice, leaving: str, several: bool, beside: bool
) -> None:
    """The adjoint of the state that leaves each chunk, in `d_states`.  beside: the kernel before, a walk of states."""
    flags = {
        "BESIDE": beside,
        "HAS_LEAVING": sizes.tensors[leaving] is not None,
        "STORE_INITIAL": not several and "d_initial" in sizes.tensors,
    }
    SLICES.launch(sizes, part, SHAPES.states(sizes, config, "chunk_adjoints"), {"leaving": leaving}, **flags)


def _results_by_chunks(sizes: Sizes, config: dict[str, Any], cut: Cut) -> None:
    """Buffers for everything but the states' adjoints."""
    names, tensors = sizes.names, sizes.tensors
    _tokens(sizes)
    if names["NEEDS_D"]:
        sizes.scratch("d_D", (names["batch"], *(names[n] for n in ("nchunks", "nheads", "HEADDIM"))), torch.float32)
    _vectors(sizes, ["d_dA_cs_scores_rows", "d_dt_scores", "d_right_decay", "d_left_decay"], ["d_centre_decay"])
    rows = (names["batch"], names["seqlen"], names["nheads"], names["DSTATE"])
    if names["NEEDS_B"]:
        sizes.allocate("d_B", rows, torch.float32)
    if names["NEEDS_C"]:
        sizes.allocate("d_C", rows, tensors["C"].dtype)


def _gradients(sizes: Sizes, config: dict[str, Any], cut: Cut, part: Slice, entering: str, leaving: str) -> None:
    """Everything but the states' adjoints, chunk by chunk."""
    slots = {"states": entering, "d_states": leaving, "dt": "dt_ready"}
    shape = SHAPES.gradients(sizes, config)
    SLICES.launch(sizes, part, shape, slots)


def _tokens(sizes: Sizes) -> None:
    """Buffers for the gradients of x and z."""
    names, tensors = sizes.names, sizes.tensors
    tokens = (names["batch"], names["seqlen"], names["nheads"], names["HEADDIM"])
    if names["NEEDS_X"]:
        sizes.allocate("d_x", tokens, torch.float32)
    if names["NEEDS_Z"]:
        sizes.allocate("d_z", tokens, tensors["z"].dtype)


def _results_of_walk(sizes: Sizes, module: Any) -> None:
    """Buffers for what the walk back makes."""
    names = sizes.names
    _tokens(sizes)
    if names["NEEDS_D"]:
        # where registers are short each chunk leaves a part, else each segment
        count = "nchunks" if hasattr(module, "blocks") else "nsegments"
        sizes.scratch("d_D", (names["batch"], *(names[n] for n in (count, "nheads", "HEADDIM"))), torch.float32)
    _vectors(sizes, ["d_dA_cs_scores_rows", "d_dt_scores", "d_right_decay"], [], names["p_blocks"])


def _walk_back(
    sizes: Sizes,
    part: Slice,
    shape: Shape,
    entering: str,
    leaving: str,
    store: bool,
    several: bool,
    beside: bool,
) -> None:
    """beside: the kernel before, a walk of states, which those that are specialised by warps do not read."""
    tensors = sizes.tensors
    slots = {"states": entering, "leaving": leaving, "dt": "dt_ready"}
    flags = {
        "HAS_LEAVING": tensors[leaving] is not None,
        "STORE_ADJOINTS": store,
        "STORE_INITIAL": not several and "d_initial" in tensors,
        "BESIDE": beside,
    }
    SLICES.launch(sizes, part, shape, slots, **flags)


def _results_of_groups(sizes: Sizes) -> None:
    """Buffers for what heads that are added up make; slices that share out a group's have one of it each."""
    names, tensors = sizes.names, sizes.tensors
    shape = (names["batch"], names["seqlen"], names["nheads"] * names["shares"], names["DSTATE"])
    if names["NEEDS_B"]:
        dtype = torch.float32
        sizes.allocate("d_B", shape, dtype)
    if names["NEEDS_C"]:
        dtype = torch.float32 if names["shares"] > 1 else tensors["C"].dtype
        sizes.allocate("d_C", shape, dtype)
    _vectors(sizes, ["d_left_decay"], ["d_centre_decay"], names["n_blocks"])


def _add_groups(sizes: Sizes, part: Slice, shape: Shape, entering: str, adjoints: str) -> None:
    SLICES.launch(sizes, part, shape, {"states": entering, "d_states": adjoints, "dt": "dt_ready"})


def _finish_steps(sizes: Sizes, config: dict[str, Any]) -> None:
    names, dt = sizes.names, sizes.tensors["dt"]
    sizes.allocate("d_dt", tuple(dt.shape), dt.dtype)
    parts = (names["batch"], names["nchunks"], names["nheads"])
    whole = names["p_blocks"] == names["n_blocks"] == 1
    sizes.scratch("d_dt_bias", parts, torch.float32)
    if (given := sizes.tensors["A"]).dim() == 3:
        sizes.allocate("d_A", tuple(given.shape), given.dtype)
        module = dt_gradients_gated if whole else dt_gradients_blocks_gated
    else:
        sizes.scratch("d_A", parts, torch.float32)
        module = dt_gradients if whole else dt_gradients_blocks
    numbers = numbers_of(config, "dt_gradients")
    sizes.launch(module, numbers, {"dt_raw": "dt"}, BLOCK_H=heads_of_steps(sizes, config))


def _add_chunks(sizes: Sizes, needs: frozenset[str]) -> None:
    """The gradients of A, the bias and D, of which each chunk has left a part."""
    names, tensors = sizes.names, sizes.tensors
    left = _left_as(tensors, needs)
    summed = {name: left[name] for name in ("A", "dt_bias", "D") if name in left and left[name] != "d_A"}
    # one piece of memory for those that are alike: allocating costs the host as much as launching
    alike: dict[tuple[tuple[int, ...], torch.dtype], list[str]] = {}
    for name, slot in summed.items():
        alike.setdefault((tuple(tensors[name].shape), tensors[name].dtype), []).append(slot)
    for (shape, dtype), each in alike.items():
        sizes.allocate("+".join(each), (len(each), *shape) if len(each) > 1 else shape, dtype)
    if not alike:
        return
    nparts, nrows = names["batch"] * names["nchunks"], prod(tensors["d_D"].shape[:2]) if "D" in needs else 1
    block_p = next_power_of_two(names["HEADDIM"])
    # few programs, each of which waits for memory at every trip: so much at once that there are few trips
    sizes.launch(
        sum_heads,
        {"num_warps": 8},
        nparts=nparts,
        nrows=nrows,
        BLOCK_T=min(1024, next_power_of_two(nparts)),
        BLOCK_R=max(1, min(16384 // block_p, next_power_of_two(nrows))),
        BLOCK_P=block_p,
        NEEDS_A="A" in summed,
        D_BY_HEAD=left.get("D") == "d_D_sum",
        D_BY_CHANNEL=left.get("D") == "d_D_rows",
    )


def _left_as(tensors: dict[str, Tensor | None], needs: frozenset[str]) -> dict[str, str]:
    """Under which names the gradients of the inputs are found: those of a head's parameters are sums over chunks."""
    left = {name: f"d_{name}" for name in sorted(needs)}
    if "initial_states" in left:
        left["initial_states"] = "d_initial"
    if "A" in left and tensors["A"].dim() == 1:
        left["A"] = "d_A_sum"
    if "dt_bias" in left:
        left["dt_bias"] = "d_dt_bias_sum"
    if "D" in left:
        left["D"] = "d_D_sum" if tensors["D"].dim() == 1 else "d_D_rows"
    return left


def _results(tensors: dict[str, Tensor | None], left: dict[str, str]) -> dict[str, Tensor]:
    """The gradients of the inputs in their shapes and dtypes, from what the kernels left of them."""
    return {name: _shaped(name, tensors[slot], tensors[name]) for name, slot in left.items()}


def _shaped(name: str, made: Tensor, given: Tensor) -> Tensor:
    if name in ("x", "B", "C") and made.shape[2] != given.shape[2]:
        # heads that share an operand, or slices of them
        made = made.unflatten(2, (given.shape[2], -1)).sum(3)
    return made if made.dtype is given.dtype else made.to(given.dtype)


def _vectors(sizes: Sizes, vectors: list[str], numbers: list[str], parts: int = 1) -> None:
    """Buffers for what step sizes get, if they are to get anything: one number a token, one a chunk.

    parts: programs that leave a part of each.
    """
    names = sizes.names
    if names["NEEDS_DT"]:
        for name in vectors:
            sizes.scratch(name, (parts, names["batch"], names["nheads"], names["padded"]), torch.float32)
        for name in numbers:
            sizes.scratch(name, (parts, names["batch"], names["nchunks"], names["nheads"]), torch.float32)


def _states(sizes: Sizes, count: str) -> tuple[int, ...]:
    return tuple(sizes.names[name] for name in ("batch", count, "nheads", "HEADDIM", "DSTATE"))
