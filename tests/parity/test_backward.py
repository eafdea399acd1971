"""The emitted backward pass against float64: every gradient, option and length; interpreted here, compiled on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.spec import oracle_gradient
from ssdgen.tune.gate import poisoned_memory
from tests.parity import gradients, tolerances
from tests.parity.cases import DTYPES, Call, Case, draw, layer

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreter"),
    pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
]
WALK: dict[str, Any] = {"schedule": "walk", "chunk": 16, "state_dtype": "float32", "kernels": {}}
CHUNKS: dict[str, Any] = {**WALK, "schedule": "chunks"}
CONFIGS: dict[str, dict[str, Any]] = {
    "walk": WALK,
    "segments": {**WALK, "segment": 32},
    "split": {**WALK, "segment": 16},
    "chunks": CHUNKS,
    # two programs share out the heads of a group, where they can
    "chunks-segments": {**CHUNKS, "segment": 32, "parts": 2},
    "chunks-split": {**CHUNKS, "segment": 16},
}
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
on_devices = pytest.mark.parametrize("device", DEVICES)

SMALL = Case(batch=2, seqlen=37, nheads=2, headdim=16, dstate=16)
EVERYTHING = ("D_headdim", "z", "dt_bias", "dt_softplus", "dt_limit", "initial_states", "seq_idx", "strided")
OPTIONS = [
    (),
    ("D",),
    ("D_headdim",),
    ("z",),
    ("D", "z"),
    ("dt_bias", "dt_softplus"),
    ("dt_softplus", "dt_limit"),
    ("initial_states",),
    ("seq_idx",),
    ("initial_states", "seq_idx"),
    ("strided",),
    EVERYTHING,
]

# A gradient is a sum over more roundings than y is: those of the states and of their adjoints, of scores and of their
# adjoints, each as large as y's own.  Those of dt, A and dt_bias are besides differences of sums, and d_A and d_D sums
# over all tokens, whose terms may cancel: how far, `gradients.widened` says.
TIMES = {"x": 2, "B": 2, "C": 2, "z": 2, "D": 2, "initial_states": 2, "dt": 4, "A": 8, "dt_bias": 8}


def adjoints(case: Case, final: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    random = torch.Generator().manual_seed(11)
    d_y = torch.randn(case.batch, case.seqlen, case.nheads, case.headdim, generator=random)
    d_final = torch.randn(case.batch, case.nheads, case.headdim, case.dstate, generator=random)
    return d_y.to(getattr(torch, case.dtype)), d_final if final else None


@lru_cache(maxsize=64)
def exact(case: Case, final: bool) -> dict[str, np.ndarray]:
    """Gradients in float64, of the numbers that the kernels get."""
    return _backward(case, *_numbers(case, final))


@lru_cache(maxsize=16)
def moved(case: Case, final: bool, dtype: str) -> dict[str, float]:
    """How far the gradients move when the operands are rounded once more, to `dtype`."""
    inputs, *given = _numbers(case, final)
    return gradients.movement(lambda *rounded: _backward(case, *rounded), inputs, *given, dtype)


def _numbers(case: Case, final: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    call = draw(case)
    inputs = {name: _float64(value) for name, value in (call.operands | call.options).items() if name != "dt_softplus"}
    d_y, d_final = (_float64(value) for value in adjoints(case, final))
    return inputs, d_y, d_final


def _backward(case: Case, inputs: dict[str, Any], d_y: np.ndarray, d_final: np.ndarray | None) -> dict[str, np.ndarray]:
    return oracle_gradient.backward(layer(case), inputs, d_y, d_final, chunk=64)


def _float64(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.double() if value.is_floating_point() else value).numpy()


def arguments(call: Call, d_y: torch.Tensor, d_final: torch.Tensor | None) -> dict[str, Any]:
    options = dict.fromkeys(("D", "z", "dt_bias", "initial_states", "seq_idx"))
    given = {**options, "dt_limit": (0.0, math.inf), **call.options}
    return {**call.operands, **given, "d_y": d_y, "d_final_states": d_final}


def run(config: dict[str, Any], case: Case, device: str, final: bool = True, needs: frozenset[str] | None = None):
    call = draw(case).on(device)
    d_y, d_final = adjoints(case, final)
    given = arguments(call, d_y.to(device), None if d_final is None else d_final.to(device))
    needs = frozenset(name for name in NAMES if given.get(name) is not None) if needs is None else needs
    with poisoned_memory():
        return given, launcher.backward(config, **given, needs=needs)


def verify(config: dict[str, Any], case: Case, device: str, **options: Any) -> None:
    """Every gradient that is asked for, in memory that was full of NaN, against float64."""
    given, found = run(config, case, device, **options)
    final = options.get("final", True)
    wanted = exact(case, final)
    needs = options.get("needs")
    assert {f"d_{name}" for name in found} == {
        name for name in wanted if needs is None or name.removeprefix("d_") in needs
    }
    dtypes = (case.dtype, config.get("state_dtype", "float32"))
    base = tolerances.limit(*dtypes, tensor_cores=device == "cuda")
    widest = tolerances.widest(*dtypes, tensor_cores=device == "cuda")
    for name, gradient in found.items():
        assert gradient.dtype == given[name].dtype and gradient.shape == given[name].shape
        allowed = tolerances.Limit(base.relative * TIMES[name], base.largest * TIMES[name])
        if name in gradients.SUMS:
            moves = partial(moved, case, final, widest)
            allowed = gradients.widened(name, allowed, gradient, wanted[f"d_{name}"], moves)
        tolerances.check(f"d_{name}", gradient, wanted[f"d_{name}"], allowed)


@on_devices
@each_config
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_every_option(options: tuple[str, ...], config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, options=options), device)


@on_devices
@each_config
@pytest.mark.parametrize("seqlen", [1, 7, 16, 17, 65])
def test_every_length(seqlen: int, config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, batch=1, seqlen=seqlen, options=("D", "initial_states")), device)


@on_devices
@each_config
@pytest.mark.parametrize(("headdim", "dstate"), [(8, 2), (80, 16), (16, 96), (80, 96)])
def test_odd_sizes(headdim: int, dstate: int, config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, nheads=1, headdim=headdim, dstate=dstate, options=EVERYTHING), device)


@on_devices
@each_config
@pytest.mark.parametrize(("nheads", "ngroups"), [(3, 1), (4, 2), (3, 3)])
def test_groups(nheads: int, ngroups: int, config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, nheads=nheads, ngroups=ngroups, options=("z", "dt_softplus")), device)


@on_devices
@pytest.mark.parametrize(("parts", "each"), [(2, 3), (5, 2)])
def test_programs_share_out_the_heads_of_a_group(parts: int, each: int, device: str) -> None:
    """The largest count of at most `parts` that divides the heads of a group; what they leave is added up."""
    case = replace(SMALL, batch=1, nheads=6, options=("D", "initial_states"))
    config = {**CHUNKS, "parts": parts}
    given = arguments(draw(case).on("meta"), *(t.to("meta") for t in adjoints(case, True) if t is not None))
    *_, launch, added, _ = launcher.launches(config, **given, needs=frozenset({"B", "C", "dt"})).launches
    assert launch.kernel.__name__ == "chunk_gradients" and launch.grid == (6 // each, 3, 1)
    assert added.kernel.__name__ == "sum_parts" and added.args["nparts"] == 6 // each
    verify(config, case, device)


@on_devices
@pytest.mark.parametrize(
    "kernels", [("reverse_walk", "group_gradients"), ("reverse_walk",), ("group_gradients",)], ids=len
)
@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["plain", "everything"])
def test_programs_share_out_headdim_and_dstate(options: tuple[str, ...], kernels: tuple[str, ...], device: str) -> None:
    """In tiles of 16, of which the last overhangs."""
    config = {**WALK, "segment": 32, "kernels": {name: {"share": 16} for name in kernels}}
    verify(config, replace(SMALL, headdim=40, dstate=72, options=options), device)


@on_devices
@each_config
@pytest.mark.parametrize("needs", [{"x"}, {"B"}, {"C"}, {"dt"}, {"A", "dt_bias"}, {"D", "z"}, {"initial_states"}])
def test_only_what_is_asked_for(needs: set[str], config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, batch=1, options=EVERYTHING), device, needs=frozenset(needs))


@on_devices
@each_config
def test_without_final_states(config: dict[str, Any], device: str) -> None:
    verify(config, replace(SMALL, options=("initial_states",)), device, final=False)


@on_devices
@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("config", [WALK, CHUNKS], ids=["walk", "chunks"])
def test_longer_chunks(config: dict[str, Any], chunk: int, device: str) -> None:
    verify({**config, "chunk": chunk}, replace(SMALL, batch=1, seqlen=100, options=("D",)), device)


@on_devices
@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["plain", "everything"])
def test_the_smallest_config(options: tuple[str, ...], device: str) -> None:
    """What is wider than a tile of 16 is cut in two."""
    verify(launcher.MINIMAL_BACKWARD, replace(SMALL, batch=1, headdim=40, dstate=32, options=options), device)


@on_devices
@pytest.mark.parametrize("sms", [1, 132])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_default(dtype: str, sms: int, device: str) -> None:
    case = replace(SMALL, batch=1, seqlen=150, dtype=dtype, options=("D", "initial_states"))
    problem = Problem(case.batch, case.seqlen, case.nheads, case.headdim, case.dstate, case.ngroups, dtype)
    verify(default_backward(problem, sms), case, device)


@on_devices
def test_the_adjoint_of_a_sum(device: str) -> None:
    """It is one number, spread without strides."""
    call = draw(SMALL).on(device)
    d_y = torch.ones((), device=device).expand(2, 37, 2, 16)
    given = arguments(call, d_y, None)
    spread, plain = (
        launcher.backward(WALK, **{**given, "d_y": d_y}, needs=frozenset({"x"}))["x"] for d_y in (d_y, d_y.contiguous())
    )
    assert torch.equal(spread, plain)


def test_the_limit_of_a_sum_follows_how_far_its_terms_cancel() -> None:
    """Errors that rounding explains pass, others do not; where nothing cancels the limit is what it was."""
    case = replace(SMALL, batch=1, seqlen=150, dtype="float16", options=("D", "initial_states"))
    wanted, moves = exact(case, True)["d_A"], moved(case, True, "bfloat16")
    size, tight = float(np.linalg.norm(wanted)), tolerances.Limit(1e-4, 1e-4)
    rounding = moves["d_A"] / size
    # as much as the states alone are off, and less than a term that is missing
    assert 1e-3 < rounding < 2e-2

    def allowed(error: float) -> tolerances.Limit:
        found = torch.from_numpy(wanted * (1 + error))
        return gradients.widened("A", tight, found, wanted, lambda: moves)

    tolerances.check("d_A", torch.from_numpy(wanted * (1 + 2 * rounding)), wanted, allowed(2 * rounding))
    with pytest.raises(AssertionError, match="d_A"):
        tolerances.check("d_A", torch.from_numpy(wanted * (1 + 6 * rounding)), wanted, allowed(6 * rounding))
    assert allowed(0.0) is tight
    # rounding to more digits moves it less
    assert moved(case, True, "exact")["d_A"] < 1e-4 * moves["d_A"]


def test_only_kernels_that_are_needed_are_launched() -> None:
    meta = draw(replace(SMALL, options=("D", "z"))).on("meta")
    given = arguments(meta, *(t.to("meta") for t in adjoints(SMALL, True) if t is not None))

    def names(config: dict[str, Any], *needs: str) -> list[str]:
        plan = launcher.launches(config, **given, needs=frozenset(needs))
        return [launch.kernel.__name__ for launch in plan.launches]

    passed = ["segment_state", "segment_adjoint", "both_passing"]
    kept = ["chunk_states", "chunk_adjoints"]
    assert names(WALK, "x", "B", "C", "dt", "A") == [
        "dt_cumsum", "chunk_states", "reverse_walk", "group_gradients", "dt_gradients", "sum_heads",
    ]  # fmt: skip
    assert names({**WALK, "kernels": {"reverse_walk": {"share": 8}}}, "x", "dt") == names(WALK, "x", "dt")
    assert names(WALK, "x") == ["dt_cumsum", "reverse_walk"]
    assert names(WALK, "B") == ["dt_cumsum", "chunk_states", "reverse_walk", "group_gradients"]
    assert names(CONFIGS["split"], "B") == ["dt_cumsum", *passed, "group_gradients"]
    assert names(CONFIGS["segments"], "z") == ["dt_cumsum", *passed, "chunk_states", "reverse_walk"]
    assert names(CHUNKS, "x", "A") == ["dt_cumsum", *kept, "chunk_gradients", "dt_gradients", "sum_heads"]
    assert names(CHUNKS, "B") == ["dt_cumsum", *kept, "chunk_gradients"]
    assert names(CONFIGS["chunks-segments"], "D") == ["dt_cumsum", *passed, *kept, "chunk_gradients", "sum_heads"]
    assert names(CONFIGS["chunks-split"], "dt") == ["dt_cumsum", *passed, "chunk_gradients", "dt_gradients"]


MODEL = Case(2, 500, 8, 64, 128, 2, options=("D", "z", "dt_bias", "dt_softplus", "initial_states"))
MODEL_CONFIGS: dict[str, dict[str, Any]] = {
    "minimal": launcher.MINIMAL_BACKWARD,
    "walk": {"chunk": 64, "kernels": {}},
    "segments": {"chunk": 64, "segment": 128, "state_dtype": "bfloat16", "kernels": {}},
    "split": {"chunk": 32, "segment": 32, "kernels": {}},
    "blocks": {
        "chunk": 64,
        "state_dtype": "bfloat16",
        "kernels": {
            "reverse_walk": {"num_warps": 4, "share": 32},
            "group_gradients": {"num_warps": 8, "share": 64},
        },
    },
    "chunks": {"schedule": "chunks", "chunk": 64, "kernels": {"chunk_gradients": {"num_warps": 8}}},
    "chunks-segments": {
        "schedule": "chunks",
        "chunk": 64,
        "segment": 128,
        "parts": 2,
        "state_dtype": "bfloat16",
        "kernels": {"chunk_gradients": {"num_warps": 8}},
    },
    "eight warps": {
        "chunk": 64,
        "segment": 128,
        "kernels": {name: {"num_warps": 8, "num_stages": 2} for name in ("reverse_walk", "group_gradients")},
    },
}


@pytest.mark.gpu
@pytest.mark.parametrize("config", MODEL_CONFIGS.values(), ids=MODEL_CONFIGS)
@pytest.mark.parametrize(
    ("dtype", "options"),
    # what compiles longest: the model's own options in bf16 alone, and with sequences in every dtype
    [("bfloat16", MODEL.options), *product(DTYPES, [(), (*MODEL.options, "seq_idx", "strided")])],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_sizes_of_a_model(options: tuple[str, ...], config: dict[str, Any], dtype: str) -> None:
    if dtype == "float32" and config["chunk"] == 64:
        config = {**config, "chunk": 32, "kernels": {}}
    verify(config, replace(MODEL, dtype=dtype, options=options), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("config", ["segments", "chunks-segments"])
def test_the_same_bits_from_call_to_call(config: str) -> None:
    case = replace(MODEL, dtype="bfloat16")
    first, second = (run(MODEL_CONFIGS[config], case, "cuda")[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
