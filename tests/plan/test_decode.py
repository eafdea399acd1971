"""The plans of a decode step, interpreted in float64, are the oracle: every shape, family, layout and option."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from ssdgen.plan import catalogue, interpret
from ssdgen.plan.broken import Race
from ssdgen.plan.schedules import decode, replay, step_tiles
from ssdgen.plan.tiles import power_tiles
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_INPUT
from ssdgen.spec.masks import FAMILIES, SSD
from ssdgen.spec.oracle import oracle

BATCH, HEADS, GROUPS, P = 3, 4, 2, 8
SLOTS = np.array([4, -1, 0])
NSLOTS = 6
KINDS = [(family, MULTI_INPUT) for family in FAMILIES.values()]
KINDS += [(SSD, layout) for layout in LAYOUTS.values() if layout is not MULTI_INPUT]
OPTIONS = {"HAS_D": True, "HAS_Z": True, "HAS_DT_BIAS": True, "DT_SOFTPLUS": True, "RANDOM": False, "EARLY": True}
OPTIONS["D_BY_HEAD"] = False
# D is one number for a head
OF_HEADS = {"HAS_D": False, "D_BY_HEAD": True}


def drawn(layer: Layer, tokens: int, dstate: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    heads = {name: HEADS if layer.layout.per_head(name) else GROUPS for name in "xBC"}
    if not any(count == GROUPS for count in heads.values()):
        heads = dict.fromkeys(heads, HEADS)
    return {
        "x": rng.normal(size=(BATCH, tokens, heads["x"], P)),
        "dt": rng.normal(size=(BATCH, tokens, HEADS)),
        "A": -rng.uniform(0.1, 1, HEADS),
        "B": rng.normal(size=(BATCH, tokens, heads["B"], dstate)),
        "C": rng.normal(size=(BATCH, tokens, heads["C"], dstate)),
        "D": rng.normal(size=(HEADS, P)),
        "z": rng.normal(size=(BATCH, tokens, HEADS, P)),
        "dt_bias": rng.normal(size=HEADS),
        "initial_states": rng.normal(size=(BATCH, HEADS, P, dstate)),
    }


def names(args: dict[str, Any], tokens: int, **constants: int) -> tuple[dict, dict, dict]:
    """Sizes, constants and reals of a launch."""
    dstate = args["B"].shape[-1]
    tiles = power_tiles(dstate)
    blocks = {"BLOCK_N": tiles[0]} if len(tiles) == 1 else {f"BLOCK_N_{k}": tile for k, tile in enumerate(tiles)}
    ngroups = min(args[name].shape[2] for name in "xBC")
    sizes = {"batch": BATCH, "tokens": tokens, "nslots": NSLOTS, "nheads": HEADS, "ngroups": ngroups, "pad_slot_id": 3}
    sizes["group_heads"] = HEADS // ngroups
    known = {"HEADDIM": P, "DSTATE": dstate, "TOKENS": tokens, "FORMAT": 0, "BLOCK_P": 4, **blocks, **constants}
    known["HEADS"] = HEADS // ngroups
    return sizes, known, {"dt_min": 0.05, "dt_max": 0.6, "stored_step": 1 / 127}


def run_step(
    layer: Layer, args: dict[str, Any], shape: decode.Step | step_tiles.Tiles, **flags: bool
) -> dict[str, Any]:
    """All outputs of a step whose rows have slots 4, none and 0; what is not written is NaN."""
    tokens, dstate = args["x"].shape[1], args["B"].shape[-1]
    state = np.full((NSLOTS, HEADS, P, dstate), np.nan)
    state[SLOTS[SLOTS >= 0]] = args["initial_states"][SLOTS >= 0]
    scale = np.full((NSLOTS, HEADS, P), 0.25)
    tensors = {
        **args,
        "D_head": args["D"][:, 0],
        "state": state / 0.25 if flags.get("HAS_SCALE") else state,
        "state_scale": scale,
        "state_batch_indices": SLOTS,
        "seed": np.array([3]),
        "y": np.full((BATCH, tokens, HEADS, P), np.nan),
        "step_states": np.full((BATCH, tokens, HEADS, P, dstate), np.nan),
        "step_scales": np.full((BATCH, tokens, HEADS, P), np.nan),
    }
    if isinstance(shape, decode.Step) and not shape.tied:
        tensors["dt"] = np.repeat(args["dt"][..., None], P, axis=-1)
        tensors["dt_bias"] = np.repeat(args["dt_bias"][:, None], P, axis=-1)
        tensors["A"] = np.broadcast_to(args["A"][:, None, None], (HEADS, P, dstate)).copy()
    tiled = isinstance(shape, step_tiles.Tiles)
    sizes, constants, reals = names(args, tokens, **({"BLOCK_P": P // shape.p_tiles} if tiled else {}))
    chosen = {**OPTIONS, "HAS_SLOTS": True, "HAS_SCALE": False, "STORE_STATE": True, "STORE_STEPS": True, **flags}
    kernel = step_tiles.kernel(layer, shape) if tiled else decode.kernel(layer, shape)
    interpret.run(kernel, tensors, sizes, constants, chosen, reals)
    return tensors


def check_step(layer: Layer, tokens: int, dstate: int, shape: decode.Step, **flags: bool) -> None:
    args = drawn(layer, tokens, dstate)
    exact = oracle(Layer(layer.family, layer.layout, dt_softplus=True), **args, dt_limit=(0.05, 0.6))
    found = run_step(layer, args, shape, **flags)
    rows = SLOTS >= 0
    np.testing.assert_allclose(found["y"][rows], exact.y[rows], rtol=1e-9)
    assert not found["y"][~rows].any()
    state, steps = found["state"], found["step_states"]
    if flags.get("HAS_SCALE"):
        assert np.allclose(np.abs(state[SLOTS[rows]]).max(-1), 127)
        state, steps = state * found["state_scale"][..., None], steps * found["step_scales"][..., None]
    np.testing.assert_allclose(state[SLOTS[rows]], exact.final_states[rows], rtol=1e-9)
    np.testing.assert_allclose(steps[rows][:, -1], exact.final_states[rows], rtol=1e-9)
    assert np.isnan(steps[~rows]).all()
    assert np.isnan(np.delete(state, SLOTS[rows], axis=0)).all(), "another slot was touched"


@pytest.mark.parametrize(("family", "layout"), KINDS, ids=lambda value: value.name)
def test_a_step_is_the_oracle(family, layout) -> None:
    check_step(Layer(family=family, layout=layout), 2, 8, decode.Step())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dstate", [1, 4, 6, 5])
def test_every_shape(dstate: int, tied: bool, scaled: bool) -> None:
    check_step(Layer(), 1, dstate, decode.Step(len(power_tiles(dstate)), tied), HAS_SCALE=scaled)


def test_a_step_without_anything() -> None:
    layer, args = Layer(), drawn(Layer(), 1, 4)
    args |= {"initial_states": args["initial_states"]}
    found = run_step(layer, args, decode.Step(), **dict.fromkeys(OPTIONS, False), STORE_STEPS=False, STORE_STATE=False)
    plain = {name: value for name, value in args.items() if name not in ("D", "z", "dt_bias")}
    exact = oracle(layer, **plain, dt_limit=(0.05, 0.6))
    np.testing.assert_allclose(found["y"][SLOTS >= 0], exact.y[SLOTS >= 0], rtol=1e-9)
    np.testing.assert_array_equal(found["state"][4], args["initial_states"][0])


@pytest.mark.parametrize(
    ("family", "layout", "scaled"), [*((*kind, False) for kind in KINDS), (SSD, MULTI_INPUT, True)], ids=str
)
def test_heads_after_heads_are_the_oracle(family, layout, scaled: bool) -> None:
    """All heads of a group in one program."""
    layer = Layer(family=family, layout=layout)
    args = drawn(layer, 1, 8)
    exact = oracle(Layer(family, layout, dt_softplus=True), **args, dt_limit=(0.05, 0.6))
    found = run_step(layer, args, decode.Step(heads=True), HAS_SCALE=scaled, STORE_STEPS=False)
    rows = SLOTS >= 0
    np.testing.assert_allclose(found["y"][rows], exact.y[rows], rtol=1e-9)
    assert not found["y"][~rows].any()
    state = found["state"] * (found["state_scale"][..., None] if scaled else 1)
    np.testing.assert_allclose(state[SLOTS[rows]], exact.final_states[rows], rtol=1e-9)
    assert np.isnan(np.delete(state, SLOTS[rows], axis=0)).all(), "another slot was touched"


@pytest.mark.parametrize("shape", [shape for shape in step_tiles.shapes() if not shape.replay], ids=lambda s: s.name)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("by_head", [False, True])
def test_tiles_of_a_program_are_the_oracle(family, shape: step_tiles.Tiles, by_head: bool) -> None:
    """One factor for the scale of a row and its decay, and a grid that says which head is whose."""
    layer, args, scaled = Layer(family=family), drawn(Layer(family=family), 1, 8), shape.units
    args["D"] = args["D"][:, :1].repeat(P, axis=1) if by_head else args["D"]
    exact = oracle(Layer(family, MULTI_INPUT, dt_softplus=True), **args, dt_limit=(0.05, 0.6))
    found = run_step(layer, args, shape, HAS_SCALE=scaled, **(OF_HEADS if by_head else {}))
    rows = SLOTS >= 0
    np.testing.assert_allclose(found["y"][rows], exact.y[rows], rtol=1e-9)
    assert not found["y"][~rows].any()
    state = found["state"] * (found["state_scale"][..., None] if scaled else 1)
    np.testing.assert_allclose(state[SLOTS[rows]], exact.final_states[rows], rtol=1e-9)
    assert np.isnan(np.delete(state, SLOTS[rows], axis=0)).all(), "another slot was touched"


def test_tiles_of_a_program_share_what_a_group_does() -> None:
    for layout in (layout for layout in LAYOUTS.values() if layout is not MULTI_INPUT):
        for make in (lambda layer: step_tiles.kernel(layer, step_tiles.Tiles(2)), step_tiles.scores):
            with pytest.raises(ValueError, match="share"):
                make(Layer(layout=layout))
        assert len(catalogue.decoding(Layer(layout=layout))) == len(catalogue.DECODE)


def test_heads_that_have_nothing_of_their_own() -> None:
    with pytest.raises(ValueError, match="one number for each"):
        decode.kernel(Layer(), decode.Step(tied=False, heads=True))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [shape for shape in step_tiles.shapes() if shape.replay], ids=lambda s: s.name)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_replay_in_tiles_is_the_oracle(family, shape: step_tiles.Tiles, scaled: bool) -> None:
    """The scores are made and the tokens are counted by a kernel of their own, before."""
    check_replay(Layer(family=family), 8, shape, HAS_SCALE=scaled)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize(("family", "layout"), KINDS, ids=lambda value: value.name)
def test_a_replay_is_the_oracle(family, layout, heads: bool) -> None:
    """Five steps of which three inputs are kept: the state is written at the fourth, and y is right at each."""
    check_replay(Layer(family=family, layout=layout), 8, replay.Replay(heads=heads))


@pytest.mark.parametrize(("dstate", "heads"), [(1, False), (5, False), (4, True)])
def test_a_replay_of_every_shape(dstate: int, heads: bool) -> None:
    check_replay(Layer(), dstate, replay.Replay(len(power_tiles(dstate)), heads), HAS_SCALE=True)


def check_replay(layer: Layer, dstate: int, shape: replay.Replay | step_tiles.Tiles, **flags: bool) -> None:
    tokens, kept = 5, 3
    args = drawn(layer, tokens, dstate)
    exact = oracle(Layer(layer.family, layer.layout, dt_softplus=True), **args, dt_limit=(0.05, 0.6))
    state = np.full((NSLOTS, HEADS, P, dstate), np.nan)
    state[SLOTS[SLOTS >= 0]] = args["initial_states"][SLOTS >= 0] / (0.25 if flags.get("HAS_SCALE") else 1)
    memory = {
        "state": state,
        "state_scale": np.full((NSLOTS, HEADS, P), 0.25),
        "state_batch_indices": SLOTS,
        "seed": np.array([3]),
        "count": np.zeros(NSLOTS, int),
        # garbage, not NaN: a masked load never sees it, and what is read by mistake shows
        "kept_x": np.full((NSLOTS, args["x"].shape[2], kept, P), 1e9),
        "kept_dt": np.full((NSLOTS, HEADS, kept), 1e9),
        "kept_B": np.full((NSLOTS, args["B"].shape[2], kept, dstate), 1e9),
        **{name: args[name] for name in ("A", "D", "dt_bias")},
        "D_head": args["D"][:, 0],
    }
    memory |= {f"new_{name}": memory[f"kept_{name}"] for name in ("x", "dt", "B")}
    tiled = isinstance(shape, step_tiles.Tiles)
    sizes, constants, reals = names(args, 1, KEPT=kept, BLOCK_K=4, **({"BLOCK_P": P // shape.p_tiles} if tiled else {}))
    chosen = {**OPTIONS, "HAS_SLOTS": True, "HAS_SCALE": False, **flags}
    kernel = step_tiles.kernel(layer, shape) if tiled else replay.kernel(layer, shape)
    before = state.copy()
    for t in range(tokens):
        y = np.full((BATCH, 1, HEADS, P), np.nan)
        token = {name: args[name][:, t : t + 1] for name in ("x", "dt", "B", "C", "z")}
        if tiled:
            groups = sizes["ngroups"]
            made = {"held": (BATCH,), "CB": (BATCH, groups), "kept_CB": (BATCH, groups, 4)}
            memory |= {name: np.full(extents, -(10**6)) * 1.0 for name, extents in made.items()}
            memory["held"] = memory["held"].astype(int)
            interpret.run(step_tiles.scores(layer), {**memory, **token}, sizes, constants, chosen, {})
        interpret.run(kernel, {**memory, **token, "y": y}, sizes, constants, chosen, reals)
        np.testing.assert_allclose(y[SLOTS >= 0, 0], exact.y[SLOTS >= 0, t], rtol=1e-8)
        assert np.array_equal(state, before, equal_nan=True) == (t < kept)
        if not tiled:
            interpret.run(replay.advance(layer), memory, sizes, constants, chosen, {})
        assert memory["count"].tolist() == [(t + 1) % 4, 0, 0, 0, (t + 1) % 4, 0]
    scale = memory["state_scale"][..., None] if flags.get("HAS_SCALE") else 1
    prefix = {name: args[name][:, : kept + 1] for name in ("x", "dt", "B", "C", "z")}
    exact = oracle(Layer(layer.family, layer.layout, dt_softplus=True), **{**args, **prefix}, dt_limit=(0.05, 0.6))
    np.testing.assert_allclose((state * scale)[[4, 0]], exact.final_states[[0, 2]], rtol=1e-8)


def test_a_slot_named_twice_is_a_race_and_one_past_the_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, args = Layer(), drawn(Layer(), 1, 4)
    monkeypatch.setattr(sys.modules[__name__], "SLOTS", np.array([2, 2, 0]))
    with pytest.raises(Race):
        run_step(layer, args, decode.Step())
    # past the end, and what stands for padding
    slots = np.array([NSLOTS, 3, 0])
    sizes, constants, reals = names(args, 1)
    flags = {**OPTIONS, "HAS_SLOTS": True, "HAS_SCALE": False, "STORE_STATE": True, "STORE_STEPS": False}
    state = np.ones((NSLOTS, HEADS, P, 4))
    tensors = {**args, "state": state, "state_batch_indices": slots, "y": np.full((BATCH, 1, HEADS, P), np.nan)}
    interpret.run(decode.kernel(layer), tensors, sizes, constants, flags, reals)
    assert not tensors["y"][:2].any() and (state[1:] == 1).all() and not (state[0] == 1).all()


def test_the_catalogue_has_every_shape() -> None:
    assert {kernel.name for kernel in catalogue.decoding(Layer())} == {*catalogue.DECODE, *catalogue.TILED}
    assert len(catalogue.DECODE) == 9 and len(catalogue.TILED) == 16
