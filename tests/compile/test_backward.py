"""Every kernel of the backward pass compiles for every architecture, with no GPU; the smallest config fits 48 KB."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest

pytest.importorskip("triton")

import torch

from ssdgen import gpus
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan import catalogue
from ssdgen.plan.schedules import sum_heads
from ssdgen.tune.compile import compile_launch
from tests.parity.cases import Case, draw
from tests.parity.test_backward import EVERYTHING, arguments
from tests.parity.test_backward_consumers import config as consumers_config
from tests.parity.test_backward_consumers import walked

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]

# sm_80, sm_86, sm_90, sm_100, gfx942
GPUS = ("a100", "rtx3090", "h200", "b200", "mi300x")
SMALLEST_SHARED = 48 * 1024
NEEDS = frozenset({"x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"})
# one tile of headdim and dstate, two of either, two of both
SIZES = ((32, 32), (80, 16), (16, 96), (80, 96))
# a segment of several chunks; small tiles and one stage: what is asked is whether the compiler takes the code
CONFIGS: tuple[dict[str, Any], ...] = tuple(
    {"schedule": schedule, "chunk": 32, "segment": 64, "state_dtype": "bfloat16", "kernels": {}}
    for schedule in ("walk", "chunks")
)
CONFIGS += ({**CONFIGS[0], "kernels": {name: {"share": 16} for name in ("reverse_walk", "group_gradients")}},)
# for kernels specialised by warps: one tile of dstate and two, and two walks for one head
SPECIALISED_SIZES = ((64, 128), (64, 200), (128, 128))
# the walk back runs without the gate
UNGATED = tuple(name for name in EVERYTHING if name != "z")
# bytes that a thread of a kernel may leave in memory at falcon-h1's sizes: Triton 3.7.1 reports 376, 192, 16 and 16
SPILLED_WIDE = {
    "reverse_walk_4n_blocks_2consumers": 448,
    "reverse_walk_4n_blocks_left_2consumers": 256,
    "group_gradients_2p_blocks_2consumers": 64,
    "group_gradients_2p_blocks_3consumers": 64,
}
# bytes that a thread may leave in memory by default where operands and sums are in registers: Triton 3.7.1 reports 296
# in bf16 and 920 in fp32; with the tiles of a Hopper it was 5 to 7 KB
SPILLED_IN_REGISTERS = {"bfloat16": 384, "float32": 1024}
# bytes that a thread of `chunk_gradients_2consumers` may leave in memory, without z: Triton 3.7.1 reports 304
SPILLED = 384


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches(config: dict[str, Any], case: Case, kept: bool = False) -> list[Any]:
    """kept: the forward pass has kept the states of the chunks."""
    call = draw(case).on("meta")
    d_y = torch.empty(call.operands["x"].shape, dtype=call.operands["x"].dtype, device="meta")
    states = torch.empty(case.batch, case.nheads, case.headdim, case.dstate, device="meta")
    given = arguments(call, d_y, states)
    if kept:
        chunks = -(-case.seqlen // config["chunk"])
        given["states"] = states[:, None].expand(-1, chunks, -1, -1, -1).bfloat16()
    return launcher.launches(config, **given, needs=NEEDS).launches


@cache
def every() -> dict[str, Any]:
    """A launch of each kernel, with all options."""
    cases = [Case(1, 1024, 2, p, n, 1, "bfloat16", EVERYTHING) for p, n in SIZES]
    ways = product(CONFIGS, cases, (True, False))
    return {launch.kernel.__name__: launch for way in ways for launch in launches(*way)}


@cache
def specialised(stages: int, *options: str) -> dict[str, Any]:
    """A launch of each kernel that is specialised by warps, with so many stages."""
    # of 8 heads every row of a wider projection is aligned, as descriptors want it
    cases = [Case(1, 1024, 8, p, n, 1, "bfloat16", options) for p, n in SPECIALISED_SIZES]
    # and every head as a group
    cases.append(replace(cases[0], ngroups=8))
    return {
        launch.kernel.__name__: launch
        for case in cases
        for consumers in (1, 2)
        for segment in (0, 256)
        for config in (
            consumers_config(consumers, stages, segment),
            consumers_config(consumers, stages, segment, roles=3),
            walked(stages),
            walked(stages, left=1),
        )
        for launch in launches(config, case)
        if "consumer" in launch.kernel.__name__
    }


def test_every_kernel_of_the_backward_pass_is_here() -> None:
    assert set(catalogue.BACKWARD) <= set(every())
    assert set(catalogue.SPECIALISED) <= {*specialised(2, *EVERYTHING), *specialised(2, *UNGATED)}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", sorted((*catalogue.BACKWARD, sum_heads.NAME)))
def test_compiles(name: str, gpu: str) -> None:
    target = gpus.find(gpu)
    compiled = compile_launch(every()[name], target)
    assert compiled.name == name
    assert compiled.resources.shared <= target.smem_per_cta
    assert compiled.resources.registers > 0


@pytest.mark.parametrize("name", sorted(catalogue.SPECIALISED))
def test_specialised_by_warps_compiles_for_hopper(name: str) -> None:
    """With all options and two stages, at a model's dstate."""
    launch, target = (specialised(2, *EVERYTHING) | specialised(2, *UNGATED))[name], gpus.find("h200")
    assert launch.num_stages == 2
    compiled = compile_launch(launch, target)
    assert compiled.name == name
    assert 0 < compiled.resources.shared <= target.smem_per_cta


@pytest.mark.parametrize(
    "name",
    ["chunk_states_1consumer", "chunk_adjoints_1consumer", "chunk_gradients_2consumers", "chunk_gradients_3consumers"],
)
def test_three_stages_fit_without_the_gate(name: str) -> None:
    launch, target = (
        specialised(3, "D_headdim", "dt_bias", "dt_softplus", "initial_states", "seq_idx")[name],
        gpus.find("h200"),
    )
    assert launch.num_stages == 3
    assert compile_launch(launch, target).resources.shared <= target.smem_per_cta


def test_the_gate_leaves_room_for_two_stages() -> None:
    """However many were asked for."""
    assert specialised(3, *EVERYTHING)["chunk_gradients_2consumers"].num_stages == 2


def test_the_gradients_of_a_chunk_spill_little() -> None:
    """At a model's sizes with its options; with z more is alive than there are registers."""
    for roles in (2, 3):
        launch = specialised(2, "D", "dt_bias", "dt_softplus")[f"chunk_gradients_{roles}consumers"]
        assert compile_launch(launch, gpus.find("h200")).resources.spilled <= SPILLED


def test_wide_heads_and_states_spill_little() -> None:
    target = gpus.find("h100")
    config = default_backward(Problem(4, 4096, 32, 128, 256, 2, "bfloat16"), target.sms, target.arch)
    case = Case(4, 4096, 32, 128, 256, 2, "bfloat16", ("D", "dt_bias", "dt_softplus"))
    found = {launch.kernel.__name__: launch for how in (config, walked(left=1)) for launch in launches(how, case)}
    for name, most in SPILLED_WIDE.items():
        assert compile_launch(found[name], target).resources.spilled <= most


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("headdim", "dstate", "dtype"), [(64, 128, "bfloat16"), (64, 128, "float32")])
def test_the_smallest_config_fits(headdim: int, dstate: int, dtype: str, gpu: str) -> None:
    case = Case(1, 1024, 2, headdim, dstate, 1, dtype, ("z", "initial_states"))
    for launch in launches({**launcher.MINIMAL_BACKWARD, "segment": 64}, case):
        compiled = compile_launch(launch, gpus.find(gpu))
        assert compiled.resources.shared <= SMALLEST_SHARED, launch.kernel.__name__


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("gpu", GPUS)
def test_the_default_fits(gpu: str, dtype: str) -> None:
    target = gpus.find(gpu)
    config = default_backward(Problem(1, 4096, 8, 64, 128, 1, dtype), target.sms, target.arch)
    for launch in launches(config, Case(1, 4096, 8, 64, 128, 1, dtype, ("D", "dt_bias", "dt_softplus"))):
        needs = compile_launch(launch, target).resources
        assert needs.shared <= target.smem_per_cta
        if gpu in ("a100", "rtx3090"):
            assert needs.spilled <= SPILLED_IN_REGISTERS[dtype], launch.kernel.__name__
