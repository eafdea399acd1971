"""Every kernel of the norms compiles, with no GPU; at a real layer's size nothing is spilled."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
import triton

from ssdgen import gpus
from ssdgen.mamba2_ops.launchers import norm as launcher
from ssdgen.mamba2_ops.norm_defaults import default_norm
from ssdgen.mamba2_ops.part_problem import of_norm
from ssdgen.tune import compile as compiling
from ssdgen.tune.compile import compile_launch

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]
GPUS = ("a100", "rtx3090", "h200", "b200", "mi300x")
ROWS = 16384


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@cache
def launch(backward: bool, rms: bool, before: bool, dim: int, group: int, rows: int = ROWS) -> Any:
    row, channel = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((rows, dim), (dim,)))
    of = "norm_backward" if backward else "norm_forward"
    config = default_norm(of, of_norm(rows, dim // group, group, torch.bfloat16), 132)
    tensors = {"x": row, "z": row, "weight": channel, "bias": None if rms else channel}
    tensors |= {"d_y": row} if backward else {}
    return launcher.launches(config, tensors, backward, 1e-5, group, before, rms).launches[0]


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("rms", (False, True))
@pytest.mark.parametrize("before", (False, True))
@pytest.mark.parametrize("group", (640, 512))
def test_every_kernel_compiles(group: int, before: bool, rms: bool, backward: bool) -> None:
    """In several tiles and in one."""
    found = compile_launch(launch(backward, rms, before, 2 * group, group), gpus.find("h200")).resources
    # a layer norm sums up the bias's gradient too, and a gate that comes last is in both sums
    assert found.spilled <= (128 if backward and before and not rms else 0)


@pytest.mark.parametrize(("group", "most"), [(5120, 6), (640, 0)])
def test_threads_exchange_only_the_sums_of_a_row(group: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of one size lie alike: no layout is turned into another, and a row that a warp has needs no barrier."""
    kept: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: kept.append(compile_it(*a, **k)) or kept[-1])
    compile_launch(launch(True, True, False, 5120, group), gpus.find("h200"))
    assert kept[0].asm["ptx"].count("bar.sync") <= most


@pytest.mark.parametrize("gpu", GPUS)
def test_the_gradients_of_a_real_layer(gpu: str) -> None:
    resources = compile_launch(launch(True, True, False, 5120, 5120), gpus.find(gpu)).resources
    # bytes of a thread; shared memory is for sums across warps, and for the parts at the end
    assert resources.spilled <= 64
    assert resources.shared <= 16384


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dim", [768, 4096, 32768])
def test_a_row_alone(dim: int, gpu: str) -> None:
    """By as many warps as have 16 bytes a thread, of which one has no more to do than it must."""
    resources = compile_launch(launch(False, True, False, dim, dim, rows=1), gpus.find(gpu)).resources
    assert resources.spilled == 0 and resources.num_warps == {768: 4}.get(dim, 16)
