"""Forward launches of each schedule.  config, operands -> launches -> y, final states

single_pass  step sizes, then one program per head walks all chunks
segments     step sizes, the state each segment leaves, the scan over segments, then the walk from the true states
split        step sizes, the state each chunk leaves, the scan over chunks, then the output chunk by chunk
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..kernel_shapes import (
    block_of_states,
    can_specialise,
    constants_of,
    dtype_of_states,
    heads_of_steps,
    left_out,
    narrow,
    numbers_of,
    precision,
)
from ..kernels import (
    dt_cumsum,
    dt_cumsum_gated,
    mirror_walk_2n_multi_contract,
    mirror_walk_multi_contract,
    segment_state_2n_2p_multi_contract,
    segment_state_2n_multi_contract,
    segment_state_2p_multi_contract,
    segment_state_multi_contract,
    single_pass_2n_2p_inline_multi_contract,
    single_pass_2n_2p_multi_contract,
    single_pass_2n_inline_multi_contract,
    single_pass_2n_multi_contract,
    single_pass_2p_inline_multi_contract,
    single_pass_2p_multi_contract,
    single_pass_inline_multi_contract,
    single_pass_multi_contract,
    state_passing,
)
from ..launching import TRITON_DTYPES, Plan, Recipe, Recipes, Sizes, can_describe, key_of
from ..repeats import Again
from ..tiles import CONSUMER_ROWS, LARGEST, SMALLEST, consumer_tiles, cut, next_power_of_two

# dimensions of the operands, as the kernels' stride parameters name them
DIMS = {
    "A": ("batch", "seqlen", "nheads"),
    "B": ("batch", "seqlen", "ngroups", "DSTATE"),
    "C": ("batch", "seqlen", "nheads", "DSTATE"),
    "D": ("nheads", "HEADDIM"),
    "dt": ("batch", "seqlen", "nheads"),
    "dt_raw": ("batch", "seqlen", "nheads"),
    "x": ("batch", "seqlen", "ngroups", "HEADDIM"),
    "z": ("batch", "seqlen", "nheads", "HEADDIM"),
}

# heads per program, tiles of dstate, tiles of headdim, which of both the state's rows are, prepared, descriptors
SINGLE_PASS = {
    (1, 1, 1, "n", True, False): single_pass_multi_contract,
    (1, 2, 1, "n", True, False): single_pass_2n_multi_contract,
    (1, 1, 2, "n", True, False): single_pass_2p_multi_contract,
    (1, 2, 2, "n", True, False): single_pass_2n_2p_multi_contract,
}
SEGMENT_STATE = {
    (1, 1, 1, "n", True, False): segment_state_multi_contract,
    (1, 2, 1, "n", True, False): segment_state_2n_multi_contract,
    (1, 1, 2, "n", True, False): segment_state_2p_multi_contract,
    (1, 2, 2, "n", True, False): segment_state_2n_2p_multi_contract,
}
# kernels that are specialised by warps, for Hopper: consumers of a program, tiles of dstate, terms of the scores
# ("apart": one, without their diagonal), whether C B^T is issued ahead, whether step sizes are made aside
SINGLE_PASS_CONSUMERS = {}
SEGMENT_STATE_CONSUMERS = {}
# single passes of either kind that also store the state that enters each chunk
KEEPING = {}
# tiles of dstate, tiles of headdim
CHUNK_SCAN = {}
# of the same, the walks that make the sums of decays that are given for every token
GATED_INLINE = {
    (1, 1, 1, "n", False, False): single_pass_inline_multi_contract,
    (1, 2, 1, "n", False, False): single_pass_2n_inline_multi_contract,
    (1, 1, 2, "n", False, False): single_pass_2p_inline_multi_contract,
    (1, 2, 2, "n", False, False): single_pass_2n_2p_inline_multi_contract,
}

# tiles of dstate: what a two-sided mask has above the diagonal
MIRROR_WALK = {
    1: mirror_walk_multi_contract,
    2: mirror_walk_2n_multi_contract,
}

# runs in 48 KB of shared memory at any size
MINIMAL = {
    "schedule": "single_pass",
    "chunk": 16,
    "kernels": {"dt_cumsum": {}, "single_pass": {"block_p": 16, "num_warps": 2, "num_stages": 1}},
    "prepared": True,
}

_recipes = Recipes()


def launches(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    final_states: bool,
    state_dtype: torch.dtype | None,
    keeps: bool = False,
) -> Plan:
    """The launches of a call, not yet made.  Arguments as in `forward`; tensors may be on "meta"."""
    tensors = _tensors(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    return _plan(config, tensors, dt_softplus, dt_limit, final_states, state_dtype or torch.float32, keeps)


def forward(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    final_states: bool,
    state_dtype: torch.dtype | None,
    keeps: bool = False,
) -> tuple[Tensor | None, ...]:
    """y, and the final states if `final_states`.  On the current device; arguments already checked, batch at least 1.

    config: {"schedule", "chunk", "segment", "state_dtype", "prepared", "kernels": {kernel: numbers}}; never changed.
    x: [batch, seqlen, nheads, headdim]; dt: [batch, seqlen, nheads]; A, dt_bias: [nheads].
    B, C: [batch, seqlen, ngroups, dstate]; D: [nheads] or [nheads, headdim]; z: as x.
    A may have the shape of dt: the log-decay of every token, whatever its step size.
    initial_states: [rows, nheads, headdim, dstate]; seq_idx: [batch, seqlen]; cu_seqlens: [sequences + 1].
    All but dt have a last stride of 1.
    keeps: with a third result, the states that enter the chunks, for the backward pass.
    Returns: y [batch, seqlen, nheads, headdim]; final states [batch or sequences, nheads, headdim, dstate]; states
    [batch, chunks, nheads, headdim, dstate], or None where no kernel keeps them.
    Errors: OptionError for a dstate over 512; Triton's OutOfResources if the config does not fit.
    """
    tensors = _tensors(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    state_dtype = state_dtype or torch.float32
    options = (dt_softplus, dt_limit, final_states, state_dtype, keeps)
    key = key_of(tensors, id(config), x.device, *options, precision(x))
    recipe = _recipes.get(key)
    if recipe is not None:
        return _again(recipe, keeps, tensors, x.device)
    plan = _plan(config, tensors, *options)
    _recipes.run(key, plan, config)
    return _results(plan.tensors, keeps)


def again(
    config: dict[str, Any],
    given: dict[str, Tensor | None],
    *,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    final_states: bool,
    state_dtype: torch.dtype | None,
    keeps: bool = False,
) -> Again | None:
    """What makes a call of `forward` again; None before the first one, and where it copies an operand.

    given: the operands by name, without cu_seqlens.
    """
    tensors = _tensors(**given, cu_seqlens=None)
    x = tensors["x"]
    options = (dt_softplus, dt_limit, final_states, state_dtype or torch.float32, keeps)
    recipe = _recipes.get(key_of(tensors, id(config), x.device, *options, precision(x)))
    same = all(tensors[name] is operand for name, operand in given.items())
    return partial(_again, recipe, keeps) if recipe is not None and same else None


def _again(
    recipe: Recipe, keeps: bool, tensors: dict[str, Tensor | None], device: torch.device
) -> tuple[Tensor | None, ...]:
    recipe(tensors, device)
    return _results(tensors, keeps)


def _results(tensors: dict[str, Tensor | None], keeps: bool) -> tuple[Tensor | None, ...]:
    """y, the final states and, of a call that keeps them, the states that enter the chunks."""
    found = tensors["y"], tensors.get("final_states")
    return (*found, tensors.get("states")) if keeps else found


def states(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The final states without y, and how much of the initial ones is left: the first half of `segments` alone.

    Arguments and errors as in `forward`.
    Returns: states [batch, nheads, headdim, dstate], log2 of the decay over all positions [batch, nheads], both fp32.
    """
    kernels = config["kernels"]
    own = {"segment_state": kernels.get("single_pass", {}), **kernels}
    tensors = _tensors(x, dt, A, B, None, None, None, dt_bias, initial_states, seq_idx, None)
    options = (dt_softplus, dt_limit, True, torch.float32)
    key = key_of(tensors, id(config), x.device, *options, precision(x))
    recipe = _recipes.get(key)
    if recipe is not None:
        recipe(tensors, x.device)
    else:
        plan = _plan({**config, "prepared": True, "kernels": own}, tensors, *options)
        _recipes.run(key, plan, config)
        tensors = plan.tensors
    return tensors["final_states"], tensors["total"].sum(1)


def mirror(
    config: dict[str, Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    below: Tensor,
    seq_idx: Tensor | None,
) -> Tensor:
    """y of a two-sided mask: `below`, that of the mask up to the diagonal, and what is above it.

    One program per head, and tile of headdim, walks the whole sequence back.  below: [batch, seqlen, nheads, headdim],
    contiguous; dt, A: weights and log-decays, [batch, seqlen, nheads]; the others, and errors, as in `forward`.
    """
    tensors = {**_tensors(x, dt, A, B, C, None, None, None, None, seq_idx, None), "below": below}
    key = key_of(tensors, id(config), x.device, "mirror", precision(x))
    recipe = _recipes.get(key)
    if recipe is not None:
        recipe(tensors, x.device)
        return tensors["y"]
    plan = _mirror_plan(config, tensors)
    _recipes.run(key, plan, config)
    return plan.y


def _mirror_plan(config: dict[str, Any], tensors: dict[str, Tensor | None]) -> Plan:
    tensors = tensors.copy()
    x, B, C, below = tensors["x"], tensors["B"], tensors["C"], tensors["below"]
    (batch, seqlen, nheads, headdim), dstate, chunk = below.shape, B.shape[3], min(config["chunk"], 64)
    n_tiles = cut(dstate)
    if len(n_tiles) not in MIRROR_WALK:
        raise OptionError(left_out({"HEADDIM": headdim, "DSTATE": dstate}))
    padded = -(-seqlen // chunk) * chunk
    sizes = Sizes(
        tensors,
        DIMS,
        batch=batch,
        seqlen=seqlen,
        nheads=nheads,
        ngroups=min(x.shape[2], B.shape[2], C.shape[2]),
        padded=padded,
        dt_min=float("-inf"),
        dt_max=float("inf"),
        nsegments=1,
        segment_len=padded,
        HEADDIM=headdim,
        DSTATE=dstate,
        CHUNK=chunk,
        DOT=TRITON_DTYPES[x.dtype],
        PRECISION=precision(x),
        HAS_DT_BIAS=False,
        DT_SOFTPLUS=False,
        HAS_SEQ_IDX=tensors["seq_idx"] is not None,
    )
    sizes.allocate("y", tuple(below.shape), below.dtype)
    _prepare(sizes, config)
    block = max(SMALLEST, min(64, next_power_of_two(headdim)))
    numbers = {"num_warps": 4, "num_stages": 2 if x.element_size() == 2 and dstate <= 128 else 1}
    if block < 64 or chunk < 64:
        numbers = narrow(numbers, x)
    blocks = {**constants_of("BLOCK_N", n_tiles), "BLOCK_P": block}
    sizes.launch(MIRROR_WALK[len(n_tiles)], numbers, {"dt": "dt_ready"}, **blocks)
    return sizes.plan()


def _tensors(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens) -> dict[str, Tensor | None]:
    """The operands by name, as the kernels take them."""
    if initial_states is not None:
        sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if initial_states.shape[0] != sequences:
            # given for the first sequence only: the others start from zero
            given, initial_states = initial_states, initial_states.new_zeros(sequences, *initial_states.shape[1:])
            initial_states[:1] = given
        initial_states = initial_states.contiguous()
    return {
        "x": x,
        "dt": dt,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "dt_bias": dt_bias,
        "initial_states": initial_states,
        "seq_idx": None if seq_idx is None else seq_idx.contiguous(),
        "cu_seqlens": cu_seqlens,
    }


def _plan(
    config: dict[str, Any],
    tensors: dict[str, Tensor | None],
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    final_states: bool,
    state_dtype: torch.dtype,
    keeps: bool = False,
) -> Plan:
    tensors = tensors.copy()
    x, B, C, cu_seqlens = tensors["x"], tensors["B"], tensors["C"], tensors["cu_seqlens"]
    batch, seqlen = x.shape[:2]
    headdim, dstate = x.shape[3], B.shape[3]
    if dstate > 2 * LARGEST:
        raise OptionError(
            f"dstate is {dstate}; the kernels keep at most {2 * LARGEST} states: call it in float64 or on CPU"
        )
    nheads, ngroups = tensors["dt"].shape[2], min(t.shape[2] for t in (x, B, C) if t is not None)
    # packed sequences start anywhere, so their chunks and running sums are the walk's own
    keeps = keeps and bool(KEEPING) and cu_seqlens is None and config["schedule"] != "split"
    prepared = (config.get("prepared", True) or keeps) and cu_seqlens is None
    chunk = config["chunk"] if cu_seqlens is None else min(config["chunk"], 64)
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    sizes = Sizes(
        tensors,
        DIMS,
        batch=batch,
        seqlen=seqlen,
        nheads=nheads,
        ngroups=ngroups,
        sequences=sequences,
        padded=-(-seqlen // chunk) * chunk,
        state_size=headdim * dstate,
        dt_min=float(dt_limit[0]),
        dt_max=float(dt_limit[1]),
        nsegments=1,
        nentering=1,
        nsummaries=0,
        segment_len=seqlen,
        HEADDIM=headdim,
        DSTATE=dstate,
        CHUNK=chunk,
        DOT=TRITON_DTYPES[x.dtype],
        PRECISION=precision(x),
        HAS_D=tensors["D"] is not None,
        HAS_Z=tensors["z"] is not None,
        HAS_DT_BIAS=tensors["dt_bias"] is not None,
        HAS_SEQ_IDX=tensors["seq_idx"] is not None,
        HAS_CU_SEQLENS=cu_seqlens is not None,
        DT_SOFTPLUS=dt_softplus,
        HAS_ENTERING=tensors["initial_states"] is not None,
        STORE_FINAL=final_states,
        HAS_SUMMARIES=False,
        KEEPS=False,
    )
    if C is not None:
        sizes.allocate("y", (batch, seqlen, nheads, headdim), x.dtype)
    if final_states:
        sizes.allocate("final_states", (sequences, nheads, headdim, dstate), state_dtype)

    if keeps and _keeping(sizes, config):
        sizes.names |= {"KEEPS": True, "nchunks": sizes.names["padded"] // chunk}
        shape = (batch, sizes.names["nchunks"], nheads, headdim, dstate)
        # fp16 states could overflow
        sizes.allocate("states", shape, torch.bfloat16 if x.element_size() == 2 else torch.float32)
    if prepared and not _aside(sizes, config):
        _prepare(sizes, config)
    length = chunk if config["schedule"] == "split" else config.get("segment", seqlen)
    if C is None:
        # states alone
        _sum_segments(sizes, config, length, torch.float32, False)
        _pass_states(sizes, config)
    elif config["schedule"] == "single_pass" or not prepared or length >= seqlen:
        _walk(sizes, config, "single_pass", prepared, {"entering": "initial_states"})
    else:
        dtype = dtype_of_states(config)
        joined = config.get("joined", False) and _consumers(sizes, config, "single_pass") > 0
        _sum_segments(sizes, config, length, dtype, joined)
        if joined:
            _walk(sizes, config, "single_pass", prepared, {"entering": "initial_states"}, HAS_SUMMARIES=True)
            return sizes.plan()
        _pass_states(sizes, config)
        if config["schedule"] == "split":
            _scan(sizes, config)
        else:
            # the state that enters is always there now, and the last one is stored already
            _walk(sizes, config, "single_pass", prepared, {"entering": "summary"}, HAS_ENTERING=True, STORE_FINAL=False)
    return sizes.plan()


def _prepare(sizes: Sizes, config: dict[str, Any]) -> None:
    """Step sizes and running sums, padded to whole chunks."""
    names = sizes.names
    shape = (names["batch"], names["nheads"], names["padded"])
    sizes.scratch("dt_ready", shape, torch.float32)
    sizes.scratch("dA_cs", shape, torch.float32)
    module = dt_cumsum_gated if sizes.tensors["A"].dim() == 3 else dt_cumsum
    slots, heads = {"dt_raw": "dt", "dt": "dt_ready"}, heads_of_steps(sizes, config)
    sizes.launch(module, numbers_of(config, "dt_cumsum"), slots, BLOCK_H=heads)


def _sum_segments(sizes: Sizes, config: dict[str, Any], length: int, dtype: torch.dtype, joined: bool) -> None:
    """What each segment of `length` tokens adds to the state, in `summary`; if joined, all but the last."""
    names = sizes.names
    segments = -(-names["seqlen"] // length)
    summaries = segments - 1 if joined else segments
    names.update(nsegments=summaries, nsummaries=summaries, segment_len=length)
    states = (names["nheads"], names["HEADDIM"], names["DSTATE"])
    sizes.scratch("summary", (names["batch"], summaries, *states), dtype)
    # where states alone are made, the totals are results too
    allocate = sizes.allocate if sizes.tensors["C"] is None else sizes.scratch
    allocate("total", (names["batch"], summaries, names["nheads"]), torch.float32)
    _walk(sizes, config, "segment_state", True, {})
    names.update(nsegments=segments)


def _pass_states(sizes: Sizes, config: dict[str, Any]) -> None:
    """The state that enters each segment, in place of its summary, and the final states."""
    names = sizes.names
    names.update(nentering=names["nsegments"])
    numbers = numbers_of(config, "state_passing")
    sizes.launch(state_passing, numbers, BLOCK=block_of_states(sizes, numbers))


def _walk(
    sizes: Sizes, config: dict[str, Any], kernel: str, prepared: bool, slots: dict[str, str], **flags: bool
) -> None:
    """A walk over chunks: the single pass, or the segments' states."""
    names, table = sizes.names, SINGLE_PASS if kernel == "single_pass" else SEGMENT_STATE
    numbers = numbers_of(config, kernel)
    if _consumers(sizes, config, kernel):
        block, _ = consumer_tiles(names["DSTATE"])
        aside = _aside(sizes, config)
        module = _specialised(sizes, config, kernel, aside)
        numbers = {"num_stages": numbers.get("num_stages", 2), "maxnreg": numbers.get("maxnreg", 0)}
        slots = slots if aside else {**slots, "dt": "dt_ready"}
        sizes.launch(module, numbers, slots, BLOCK_N=block, BLOCK_P=CONSUMER_ROWS, **flags)
        return
    if numbers.get("consumers"):
        # what fits anywhere, where warps cannot be specialised
        numbers = {"num_stages": 1}
    if not prepared and sizes.tensors["A"].dim() == 3:
        table = GATED_INLINE
    n_tiles = cut(names["DSTATE"])
    p_tiles = _p_tiles(names["HEADDIM"], numbers)
    heads = numbers.get("heads", 1)
    # heads of one program share B and C
    while heads > 1 and (names["nheads"] // names["ngroups"]) % heads:
        heads //= 2
    major = numbers.get("state_major", "n")
    described = numbers.get("descriptors", False) and all(
        can_describe(sizes.tensors[name]) for name in _described(kernel)
    )
    tiles = (len(n_tiles), len(p_tiles))
    if kernel == "single_pass" and names["KEEPS"]:
        table, heads, major, described = KEEPING, 1, "n", False
    # shapes from the best to one that always exists
    wanted = (
        (heads, *tiles, major, prepared, described),
        (heads, *tiles, "n", prepared, described),
        (1, *tiles, "n", prepared, described),
        (1, *tiles, "n", prepared, False),
    )
    module = next((table[shape] for shape in wanted if shape in table), None)
    if module is None:
        raise OptionError(left_out(names))
    if kernel == "single_pass" and min(p_tiles) < 64:
        numbers = narrow(numbers, sizes.tensors["x"])
    sizes.launch(
        module,
        numbers,
        {**slots, "dt": "dt_ready" if prepared else "dt"},
        **constants_of("BLOCK_N", n_tiles),
        **constants_of("BLOCK_P", p_tiles),
        **flags,
    )


def _keeping(sizes: Sizes, config: dict[str, Any]) -> bool:
    """Whether there is a kernel for the single pass of a call that keeps states."""
    if _consumers(sizes, config, "single_pass"):
        # of two tiles of dstate there is none: it would be slower than to make the states again
        return _specialised(sizes, config, "single_pass", False, keeps=True) is not None
    numbers = numbers_of(config, "single_pass")
    p_tiles = _p_tiles(sizes.names["HEADDIM"], {} if numbers.get("consumers") else numbers)
    return (1, len(cut(sizes.names["DSTATE"])), len(p_tiles), "n", True, False) in KEEPING


def _consumers(sizes: Sizes, config: dict[str, Any], kernel: str) -> int:
    """How many consumers a program of a walk has; 0 where its warps cannot be specialised: that is Hopper's alone."""
    wanted = numbers_of(config, kernel).get("consumers", 0)
    possible = (
        wanted
        and not sizes.names["HAS_CU_SEQLENS"]
        and config.get("prepared", True)
        and can_specialise(sizes, _described(kernel))
        and _specialised(sizes, config, kernel, False)
    )
    return wanted if possible else 0


def _specialised(sizes: Sizes, config: dict[str, Any], kernel: str, aside: bool, keeps: bool | None = None) -> Any:
    """The kernel of a walk whose warps are specialised, None where there is none.

    aside: it makes its step sizes.  keeps: it keeps the states of chunks; None: where the call does.
    """
    numbers, outputs = numbers_of(config, kernel), kernel == "single_pass"
    table, terms = SEGMENT_STATE_CONSUMERS, 1
    if outputs:
        table, terms = SINGLE_PASS_CONSUMERS, numbers.get("terms", 2)
        if sizes.names["KEEPS"] if keeps is None else keeps:
            # none that keeps states has its scores in one term
            table, terms = KEEPING, 2 if terms == 1 else terms
    shape = (numbers.get("consumers", 0), consumer_tiles(sizes.names["DSTATE"])[1], terms)
    # what is issued ahead waits for a second stage
    ahead = outputs and numbers.get("ahead", False) and numbers.get("num_stages", 2) > 1
    found = table.get((*shape, ahead, aside))
    return found if found or aside else table.get((*shape, False, False))


def _aside(sizes: Sizes, config: dict[str, Any]) -> bool:
    """Whether every walk makes its step sizes in a warp of its own, so that none are prepared."""
    if not config.get("aside") or sizes.tensors["A"].dim() == 3:
        return False
    walks = [kernel for kernel in ("single_pass", "segment_state") if kernel in config["kernels"]]
    walks += ["segment_state"] if sizes.tensors["C"] is None else []
    return all(_consumers(sizes, config, kernel) and _specialised(sizes, config, kernel, True) for kernel in walks)


def _scan(sizes: Sizes, config: dict[str, Any]) -> None:
    """The output of every chunk from the state that enters it."""
    names, numbers = sizes.names, numbers_of(config, "chunk_scan")
    n_tiles = cut(names["DSTATE"])
    p_tiles = _p_tiles(names["HEADDIM"], numbers)
    tiles = (len(n_tiles), len(p_tiles))
    if tiles not in CHUNK_SCAN:
        raise OptionError(left_out(names))
    rows, columns = (min(names["CHUNK"], numbers.get(block, 64)) for block in ("block_m", "block_k"))
    sizes.launch(
        CHUNK_SCAN[tiles],
        numbers,
        {"entering": "summary", "dt": "dt_ready"},
        BLOCK_M=rows,
        BLOCK_K=columns,
        **constants_of("BLOCK_N", n_tiles),
        **constants_of("BLOCK_P", p_tiles),
    )


def _described(kernel: str) -> tuple[str, ...]:
    """What a walk reads or writes by descriptors."""
    return ("x", "B") if kernel == "segment_state" else ("x", "B", "C", "y")


def _p_tiles(headdim: int, numbers: dict[str, Any]) -> tuple[int, ...]:
    """Tiles of headdim: one of block_p, which programs share out, or those that cover all of it."""
    block = numbers.get("block_p") or headdim
    if block < headdim or headdim > 2 * LARGEST:
        return (max(SMALLEST, min(block, LARGEST)),)
    return cut(headdim)
