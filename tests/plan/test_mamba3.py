"""What comes before Mamba-3's chunks, interpreted, is its graphs: both passes, odd sizes, nothing out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssdgen.plan import ir, mamba3
from ssdgen.plan.interpret import run
from ssdgen.plan.schedules.consumers import BESIDE
from ssdgen.spec import mamba3 as spec
from ssdgen.spec.evaluate import evaluate
from tests.spec.mamba3_cases import Arrays, draw

CHUNK, BLOCK_T, PAIRS, BLOCK_R = 8, 4, 3, 4
HEADS, HEADDIM, RATES = 2, 3, 2


def calls(name: str, arrays: Arrays, given: dict[str, Any], **flags: bool) -> dict[str, Any]:
    """The outputs of a kernel, NaN where it wrote nothing."""
    kernel, _ = mamba3.every()[name]
    batch, seqlen = arrays["x"].shape[:2]
    padded = -(-seqlen // CHUNK) * CHUNK
    sizes = {"batch": batch, "seqlen": seqlen, "nheads": HEADS, "ngroups": 1, "rates": RATES, "padded": padded}
    sizes |= {"nchunks": padded // CHUNK, "nparts": padded // BLOCK_T}
    constants = {"CHUNK": CHUNK, "BLOCK_T": BLOCK_T, "BLOCK_R": BLOCK_R, "HEADDIM": HEADDIM, "HEADS": 1}
    constants |= {"DSTATE": 2 * PAIRS, "BLOCK_P": 4, "BLOCK_N": 8, "BLOCK_C": 2}
    extents = {**sizes, **constants}
    outs = {
        tensor.name: np.full([eval(dim, {}, extents) for dim in tensor.dims], np.nan)
        for tensor in kernel.tensors
        if tensor.out
    }
    tensors = {**arrays, "angle_in": arrays.get("angle"), "D_head": arrays.get("D"), **given, **outs}
    run(kernel, tensors, sizes, constants, {"HAS_SEQ_IDX": False, **flags}, {})
    return outs


def of_graph(arrays: Arrays, b: int) -> dict[str, Any]:
    """Inputs of the graph of tokens: all heads are one group."""
    found: dict[str, Any] = {"D_head": arrays["D"]}
    found |= {name: arrays[name][b].T for name in ("adt", "step", "mix")}
    found["rate"] = padded_pairs(np.moveaxis(arrays["rate"][b], 1, 0))
    found["angle_in"] = padded_pairs(arrays["angle"][b])
    for name, k in ((name, k) for name in "BC" for k in (0, 1)):
        found[f"{name}_{k}"] = arrays[name][b, :, 0, k::2]
        found[f"{name}_{k}_bias"] = arrays[f"{name}_bias"][:, k::2]
    return found


def padded_pairs(array: Any) -> Any:
    return np.concatenate([array, np.zeros((*array.shape[:-1], PAIRS - RATES))], axis=-1)


def same(found: Any, wanted: Any, what: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10, err_msg=what)


@pytest.mark.parametrize("seqlen", (1, 8, 13, 37))
def test_both_passes(seqlen: int, seed: int):
    arrays = draw(seed, seqlen=seqlen, nheads=HEADS, ngroups=1, headdim=HEADDIM, dstate=2 * PAIRS, rates=RATES)
    random = np.random.default_rng(seed)
    steps = calls("mamba3_steps", arrays, {})
    angles = calls("mamba3_angles", arrays, steps, HAS_STATES=True)
    turned = calls("mamba3_turn", arrays, {**steps, **angles}, HAS_D=True)
    entering = calls("mamba3_entering", arrays, {})
    d = {name: random.normal(size=turned[name].shape) for name in ("B_turned", "C_turned", "own")}
    vectors = {name: random.normal(size=steps["dt"].shape) for name in ("d_dt", "d_log_decay", "d_own")}
    d_angle_out, d_state_in = random.normal(size=arrays["angle"].shape), random.normal(size=arrays["state"].shape)
    for vector in vectors.values():
        vector[..., seqlen:] = 0.0
    back = {f"d_{name}": value for name, value in d.items() if name != "own"} | vectors
    turn_back = calls("mamba3_turn_gradients", arrays, {**steps, **angles, **back})
    given = {**turn_back, "d_angle_out": d_angle_out}
    angles_back = calls("mamba3_angle_gradients", arrays, given, HAS_LEAVING=True)
    steps_back = calls("mamba3_step_gradients", arrays, {**vectors, **turn_back, **angles_back})
    enter_back = calls("mamba3_entering_gradients", arrays, {"d_state_in": d_state_in})

    biases, flags = {name: np.zeros_like(arrays[name]) for name in ("B_bias", "C_bias")}, {"HAS_D": True}
    for b in range(len(arrays["x"])):
        tokens = of_graph(arrays, b)
        made = evaluate(spec.tokens_graph(), tokens, flags, (*spec.TOKEN_OUTPUTS, "angle"))
        same(steps["dt"][b, :, :seqlen], made["dt"], "dt")
        same(steps["dA_cs"][b, :, : min(seqlen, CHUNK)], np.cumsum(made["log_decay"], 1)[:, :CHUNK], "dA_cs")
        same(angles["angle_before"][b, :, 1:], made["angle"][:, CHUNK - 1 : -1 : CHUNK, :RATES], "angle_before")
        same(angles["angle_out"][b], made["angle_out"][..., :RATES], "angle_out")
        same(turned["own"][b, :, :seqlen], made["own"], "own")
        first = {name: arrays[name][b] for name in ("state", "x_before", "B_before")}
        first |= {"step_first": tokens["step"][:, 0], "mix_first": tokens["mix"][:, 0]}
        same(entering["state_in"][b], evaluate(spec.entering_graph(), first, {}, ("state_in",))["state_in"], "state_in")

        adjoints = {name: vectors[name][b, :, :seqlen] for name in vectors}
        adjoints["d_angle_out"] = padded_pairs(d_angle_out[b])
        for name, k in ((name, k) for name in "BC" for k in (0, 1)):
            same(np.moveaxis(turned[f"{name}_turned"][b, ..., k::2], 1, 0), made[f"{name}_{k}_turned"], f"{name}_{k}")
            adjoints[f"d_{name}_{k}_turned"] = np.moveaxis(d[f"{name}_turned"][b, ..., k::2], 1, 0)
        wanted = evaluate(
            spec.tokens_adjoint(), {**tokens, **adjoints}, flags, [f"d_{name}" for name in spec.TOKEN_INPUTS]
        )
        same(vectors["d_own"][b].sum(-1), wanted["d_D_head"], "d_D")
        for name in ("adt", "step", "mix"):
            same(steps_back[f"d_{name}"][b], wanted[f"d_{name}"], f"d_{name}")
        same(np.moveaxis(steps_back["d_rate"][b], 1, 0), wanted["d_rate"][..., :RATES], "d_rate")
        same(angles_back["d_angle_in"][b], wanted["d_angle_in"][..., :RATES], "d_angle_in")
        for name, k in ((name, k) for name in "BC" for k in (0, 1)):
            same(turn_back[f"d_{name}"][b, :, 0, k::2], wanted[f"d_{name}_{k}"], f"d_{name}_{k}")
            biases[f"{name}_bias"][:, k::2] += wanted[f"d_{name}_{k}_bias"]
        names = [f"d_{name}" for name in spec.ENTERING_INPUTS if name != "state"]
        wanted = evaluate(spec.entering_adjoint(), {**first, "d_state_in": d_state_in[b]}, {}, names)
        for name, value in wanted.items():
            same(enter_back[name][b], value, name)
    for name, value in biases.items():
        same(turn_back[f"d_{name}"].sum((0, 1)), value, f"d_{name}")


@pytest.mark.parametrize("name", sorted(mamba3.every()))
def test_plans_are_well_formed(name: str):
    """Tensors are those that the statements use, flags those that they ask for."""
    kernel, graph = mamba3.every()[name]
    used = {stmt.tensor for stmt in ir.walk(kernel.body) if isinstance(stmt, (ir.Load, ir.Store))}
    assert used == {tensor.name for tensor in kernel.tensors}
    asked = {stmt.condition for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.When)}
    # what a kernel waits for is no statement of it
    assert set(kernel.flags) - {BESIDE} == {flag for flag in asked if flag.isupper()}
    assert all(equation in graph for equation in kernel.equations)


# ---- the chunks' kernels

PAIRS_OF_KERNELS = [
    ("single_pass", "single_pass_2terms_1consumer"),
    ("chunk_states", "chunk_states_1consumer"),
    ("chunk_adjoints", "chunk_adjoints_1consumer"),
    ("chunk_gradients", "chunk_gradients_by_head_2consumers"),
]


def of_chunks(name: str, seqlen: int, flag: bool, seed: int) -> dict[str, Any]:
    """The outputs of a kernel of the chunks for random operands; every head has a B and a C of its own."""
    batch, nheads, headdim, dstate, chunk = 2, 3, 5, 6, 8
    nchunks = -(-seqlen // chunk)
    random, (kernel, _) = np.random.default_rng(seed), mamba3.every()[name]
    sizes = {"batch": batch, "seqlen": seqlen, "nheads": nheads, "ngroups": nheads, "padded": nchunks * chunk}
    sizes |= {"nchunks": nchunks, "nsegments": 1, "segment_len": nchunks * chunk, "parts": 1, "run": 2}
    sizes |= {"nentering": 1, "nsummaries": 0}
    constants = {"CHUNK": chunk, "HEADDIM": headdim, "DSTATE": dstate, "BLOCK_P": 8, "BLOCK_N": 8}
    heads, tokens = (batch, nheads), (batch, seqlen, nheads)
    vectors = (*heads, nchunks, chunk)
    states = (batch, nchunks, nheads, headdim, dstate)
    there = np.arange(nchunks * chunk) < seqlen
    tensors = {name: random.normal(size=(*tokens, headdim)) for name in ("x", "z", "d_y")}
    tensors |= {name: random.normal(size=(*tokens, dstate)) for name in ("B", "C")}
    tensors |= {name: random.normal(size=states) for name in ("states", "d_states")}
    tensors |= {name: random.normal(size=(batch, 1, *states[2:])) for name in ("entering", "leaving")}
    decays = -np.cumsum(random.uniform(0, 0.3, vectors) * there.reshape(nchunks, chunk), -1).reshape(*heads, -1)
    tensors |= {"dA_cs": decays, "D": random.normal(size=(nheads, headdim))}
    tensors |= {name: random.normal(size=decays.shape) * there for name in ("dt", "own")}
    extents = {**sizes, **constants}
    outs = {
        tensor.name: np.full([eval(dim, {}, extents) for dim in tensor.dims], np.nan)
        for tensor in kernel.tensors
        if tensor.out
    }
    flags = dict.fromkeys(kernel.flags, flag) | {"HAS_SEQ_IDX": False, "HAS_SUMMARIES": False}
    run(kernel, {**tensors, "total": None, "summary": None, **outs}, sizes, constants, flags, {})
    return outs


@pytest.mark.parametrize("flag", (False, True), ids=("nothing more", "all options"))
@pytest.mark.parametrize("seqlen", (1, 8, 21))
@pytest.mark.parametrize(("plain", "by_warps"), PAIRS_OF_KERNELS)
def test_kernels_that_are_specialised_by_warps_do_what_plain_ones_do(
    plain: str, by_warps: str, seqlen: int, flag: bool, seed: int
):
    wanted, found = (of_chunks(name, seqlen, flag, seed) for name in (plain, by_warps))
    assert wanted.keys() == found.keys() and by_warps in mamba3.by_warps()
    for name, value in wanted.items():
        assert flag or name in ("y", "states", "d_states") or np.isnan(value).all()
        same(found[name].reshape(value.shape), value, name)
