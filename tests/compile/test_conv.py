"""Every kernel of the convolution compiles, with no GPU; loads and stores of a real layer are 16 bytes wide."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
import triton

from ssdgen import gpus
from ssdgen.mamba2_ops.conv_defaults import default_conv
from ssdgen.mamba2_ops.launchers import conv as launcher
from ssdgen.mamba2_ops.part_problem import of_conv
from ssdgen.tune import compile as compiling
from ssdgen.tune.compile import compile_launch

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]
# sm_80, sm_86, sm_90, sm_100, gfx942
GPUS = ("a100", "rtx3090", "h200", "b200", "mi300x")
DIM, SEQLEN = 5376, 2048


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@cache
def launches(direction: str, width: int, walk: bool, options: bool, early: bool = False) -> Any:
    """The launches of a call with a layer's sizes, without options or with all of them."""
    row = (8, SEQLEN, DIM) if walk else (8, DIM, SEQLEN)
    states = meta(8, DIM, width - 1) if options else None
    tensors: dict[str, Any] = {"weight": meta(DIM, width), "bias": meta(DIM)}
    of = direction if walk else f"tile_{direction}"
    config = default_conv(f"conv_{of}", of_conv(8, SEQLEN, DIM, width, torch.bfloat16), 132)
    if early:
        ((kernel, numbers),) = config["kernels"].items()
        config = {**config, "kernels": {kernel: {**numbers, "sum_early": True}}}
    if direction == "update":
        tensors |= {"x": meta(8, DIM, 1), "conv_state": meta(8, DIM, 4), "cache_seqlens": None}
        tensors["conv_state_indices"] = meta(8, dtype=torch.int32) if options else None
        return launcher.launches(direction, config, tensors, True, True).launches
    # channels are a slice of a projection
    x = meta(8, SEQLEN, 10576)[..., 5120 : 5120 + DIM] if walk else meta(*row)
    tensors |= {"x": x, "initial_states": states, "cu_seqlens": None}
    tensors["seq_idx"] = meta(8, SEQLEN, dtype=torch.int32) if options else None
    backward = direction == "backward"
    if backward:
        tensors |= {"d_y": meta(*row), "d_states": states}
    flags = (True,) if backward else (True, options)
    return launcher.launches(direction, config, tensors, walk, *flags).launches


KERNELS = [
    *(
        (direction, width, walk)
        for direction in ("forward", "backward")
        for width in (2, 3, 4)
        for walk in (True, False)
    ),
    *(("update", width, True) for width in (2, 3, 4)),
]


@pytest.mark.parametrize(("direction", "width", "walk"), KERNELS)
def test_every_kernel_compiles(direction: str, width: int, walk: bool) -> None:
    """Of the widest, with all options."""
    for launch in launches(direction, width, walk, width == 4):
        assert compile_launch(launch, gpus.find("h200")).resources.spilled == 0


@pytest.mark.parametrize("walk", [True, False])
def test_a_sum_that_starts_early_waits_before_it_reads(walk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch says so to the driver, what leaves the parts does not; without the axis the sum is the plain one."""
    kept: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: kept.append(compile_it(*a, **k)) or kept[-1])
    parts, summed = launches("backward", 4, walk, False, early=True)
    assert not parts.early and "launch_pdl" not in parts.options
    assert summed.early and summed.options["launch_pdl"] and summed.kernel.__name__ == "sum_parts_early"
    assert compile_launch(summed, gpus.find("h200")).resources.spilled == 0
    ptx = kept[0].asm["ptx"]
    assert kept[0].metadata.launch_pdl and 0 < ptx.index("griddepcontrol.wait") < ptx.index("ld.global")
    plain = launches("backward", 4, walk, False)[1]
    assert not plain.early and plain.kernel.__name__ == "sum_parts" and list(plain.args) == list(summed.args)


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu != "h200"])
@pytest.mark.parametrize(("direction", "width"), [("forward", 4), ("backward", 3)])
def test_compiles(direction: str, width: int, gpu: str) -> None:
    assert compile_launch(launches(direction, width, True, False)[0], gpus.find(gpu)).resources.registers > 0


@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_loads_of_a_real_layer_are_wide(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the walk's loop, eight or four channels of a thread at once; nothing is spilled."""
    kept: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: kept.append(compile_it(*a, **k)) or kept[-1])
    found = compile_launch(launches(direction, 4, True, False)[0], gpus.find("h200"))
    assert found.resources.spilled == 0
    ptx = kept[0].asm["ptx"]
    words = "v4" if direction == "forward" else "v2"
    assert len(re.findall(rf"ld\.global\.{words}\.b32", ptx)) >= 4
    assert len(re.findall(rf"st\.global\.{words}\.b32", ptx)) >= 4
