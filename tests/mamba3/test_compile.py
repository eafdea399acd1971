"""Every kernel of Mamba-3 compiles, with no GPU; what is new in it for other architectures too."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
import triton
from triton.backends.compiler import GPUTarget

from ssdgen import gpus
from ssdgen.plan import mamba3
from ssdgen.tune.compile import compile_launch, source_of
from tests.mamba3 import calls

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]
HEADS, HEADDIM, DSTATE = 2, 64, 128


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def layer() -> dict[str, torch.Tensor]:
    """The operands of a real layer, without contents."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    wide, tokens, heads = torch.float32, (1, 256, HEADS), (1, HEADS)
    return {
        **{name: empty(*tokens, HEADDIM) for name in ("x", "z")},
        **{name: empty(1, 256, 1, DSTATE) for name in ("B", "C")},
        **{name: empty(*tokens, dtype=wide) for name in ("adt", "step", "mix")},
        **{name: empty(HEADS, DSTATE, dtype=wide) for name in ("B_bias", "C_bias")},
        "rate": empty(*tokens, DSTATE // 4, dtype=wide),
        "D": empty(HEADS, dtype=wide),
        "angle": empty(*heads, DSTATE // 4, dtype=wide),
        "state": empty(*heads, HEADDIM, DSTATE, dtype=wide),
        "B_before": empty(*heads, DSTATE),
        "x_before": empty(*heads, HEADDIM),
    }


def launches() -> dict[str, Any]:
    """A launch of every kernel at a real layer's sizes, on tensors without contents."""
    tensors = layer()
    launch = importlib.import_module(f"{calls.package().__name__}.launch")
    found = [
        made
        for by_warps in (False, True)
        for backward in (False, True)
        for made in launch.launches(tensors, 64, backward, by_warps)
    ]
    alone = ("x", "z", "B", "C", "adt", "step", "mix", "rate")
    found += launch.token(
        {name: tensor[:, 0] if name in alone else tensor for name, tensor in tensors.items()}
    ).launches
    return {made.kernel.__name__: made for made in found}


@pytest.mark.parametrize("name", ("mamba3_turn", "mamba3_turn_gradients"))
def test_pairs_are_moved_16_bytes_at_a_time(name: str):
    source, options = source_of(launches()[name], GPUTarget("cuda", 90, 32))
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options.__dict__).asm["ptx"]
    # of 2 bytes nothing is moved alone, and nothing goes to memory of a thread's own
    assert not re.search(r"(ld|st)\.global[.\w:]*\.b16|(ld|st)\.local", code)
    operands = 2 if name == "mamba3_turn" else 4
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) >= operands
    assert len(re.findall(r"st\.global\.v4\.b32", code)) >= 2


def compiles(name: str, gpu: str) -> None:
    target = gpus.find(gpu)
    compiled = compile_launch(launches()[name], target)
    assert compiled.name == name
    assert compiled.resources.shared <= target.smem_per_cta


@pytest.mark.parametrize("name", mamba3.every())
def test_on_hopper(name: str):
    compiles(name, "h200")


# pairs, running sums in both directions, and what holds most
NEW = (
    "mamba3_steps",
    "mamba3_angles",
    "mamba3_turn",
    "mamba3_turn_gradients",
    "mamba3_angle_gradients",
    "mamba3_step_gradients",
    "single_pass",
)


@pytest.mark.parametrize("name", (NEW))
@pytest.mark.parametrize("gpu", ("a100", "mi300x"))
def test_elsewhere(gpu: str, name: str):
    compiles(name, gpu)


@pytest.mark.parametrize("states", [False, True])
def test_a_remembered_launch_finds_all_that_it_needs(states: bool):
    """Among the operands, or among what its recipe makes: no tensor of the first call is left in it."""
    launch = importlib.import_module(f"{calls.package().__name__}.launch")
    tensors: dict[str, Any] = layer()
    tensors |= {} if states else dict.fromkeys(launch.STATES)
    given = launch._operands(tensors)
    adjoints = launch._adjoints(tensors["x"], {"y": tensors["x"], "angle": tensors["angle"], "state": tensors["state"]})
    forward, chunks = launch._Call(given, 64).outputs(), launch._Call(given | adjoints, 64).chunk_gradients()
    made = {name: tensor for name, tensor in chunks.tensors.items() if name not in chunks.scratch}
    plans = [(given, forward), (given | adjoints, chunks), (made, launch._Call(made, 64).token_gradients())]
    for operands, plan in plans:
        there = {name for name, tensor in operands.items() if tensor is not None} | {*plan.buffers, *plan.scratch}
        used = {slot for each in plan.launches for slot in each.slots.values()}
        assert used and used <= there, used - there
        results = {name for name, tensor in plan.tensors.items() if tensor is not None}
        assert results <= there, results - there
