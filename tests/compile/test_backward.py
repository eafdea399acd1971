"""Every kernel of the backward pass compiles for every architecture, with no GPU; the smallest config fits 48 KB."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

import torch

from ssdgen import gpus
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan import catalogue
from ssdgen.tune.compile import compile_launch
from tests.parity.cases import Case, draw
from tests.parity.test_backward import EVERYTHING, arguments

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
CONFIG: dict[str, Any] = {"chunk": 32, "segment": 64, "state_dtype": "bfloat16", "kernels": {}}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches(config: dict[str, Any], case: Case) -> list[Any]:
    call = draw(case).on("meta")
    d_y = torch.empty(call.operands["x"].shape, dtype=call.operands["x"].dtype, device="meta")
    states = torch.empty(case.batch, case.nheads, case.headdim, case.dstate, device="meta")
    return launcher.launches(config, **arguments(call, d_y, states), needs=NEEDS).launches


@cache
def every() -> dict[str, Any]:
    """A launch of each kernel, with all options."""
    cases = [Case(1, 1024, 2, p, n, 1, "bfloat16", EVERYTHING) for p, n in SIZES]
    return {launch.kernel.__name__: launch for case in cases for launch in launches(CONFIG, case)}


def test_every_kernel_of_the_backward_pass_is_here() -> None:
    assert set(catalogue.BACKWARD) <= set(every())


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", sorted(catalogue.BACKWARD))
def test_compiles(name: str, gpu: str) -> None:
    target = gpus.find(gpu)
    compiled = compile_launch(every()[name], target)
    assert compiled.name == name
    assert compiled.resources.shared <= target.smem_per_cta
    assert compiled.resources.registers > 0


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
    config = default_backward(Problem(1, 4096, 8, 64, 128, 1, dtype), target.sms)
    for launch in launches(config, Case(1, 4096, 8, 64, 128, 1, dtype, ("D", "dt_bias", "dt_softplus"))):
        assert compile_launch(launch, target).resources.shared <= target.smem_per_cta
