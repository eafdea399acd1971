"""Compiling for a GPU that is not there: the JIT's own code, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from ssdgen import gpus  # noqa: E402
from ssdgen.tune import compile as compiling  # noqa: E402
from ssdgen.tune import resources  # noqa: E402
from ssdgen.tune.errors import CompileError  # noqa: E402
from ssdgen.tune.resources import Resources, ResourcesError  # noqa: E402
from tests.tune import small_kernels  # noqa: E402


@dataclass(frozen=True)
class Launch:
    kernel: Any
    args: dict[str, Any]
    grid: tuple[int, ...] = (1, 1, 1)
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int = 0
    early: bool = False


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def small(P: int = 64, **options: Any) -> Launch:
    x = torch.empty(1024, P, dtype=torch.bfloat16, device="meta")
    args = {
        "x_ptr": x,
        "B_desc": TensorDescriptor.from_tensor(x, [64, P]),
        "y_ptr": x,
        "seqlen": 1000,
        "stride": P,
        "scale": 0.5,
        "z_ptr": None,
        "ROWS": 64,
        "P": P,
    }
    return Launch(small_kernels.single_pass_small, args, **options)


@pytest.mark.parametrize("name", ["a100", "rtx3090", "rtx4090", "h200", "b200", "mi300x"])
def test_compiles_for_every_architecture(name: str) -> None:
    made = compiling.compile_launch(small(), gpus.find(name))
    assert made.name == "single_pass_small"
    assert 16 < made.resources.registers <= 512 and made.resources.spilled < 64
    assert 0 < made.resources.shared <= gpus.find(name).smem_per_cta


def test_few_registers_spill() -> None:
    free, capped = (compiling.compile_launch(small(maxnreg=cap), gpus.find("a100")).resources for cap in (0, 64))
    assert free.registers > 64 and capped.registers <= 64 and capped.spilled > free.spilled


def test_too_much_shared_memory_is_told() -> None:
    gpu = replace(gpus.find("rtx3090"), smem_per_cta=4096)
    with pytest.raises(CompileError, match=r"single_pass_small needs \d+ bytes of shared memory; rtx3090 has 4096"):
        compiling.compile_launch(small(), gpu)


def test_a_kernel_that_does_not_compile_is_told() -> None:
    launch = Launch(small_kernels.broken, {"y_ptr": torch.empty(16, device="meta"), "ROWS": 16})
    with pytest.raises(CompileError, match="broken does not compile: .*no_such_name"):
        compiling.compile_launch(launch, gpus.find("h200"))


def test_the_code_is_the_one_that_a_launch_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class H200:
        """As much of a driver as the JIT asks before it compiles."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    launch = small(num_warps=8, num_stages=3, maxnreg=128)
    ours = compiling.compile_launch(launch, gpus.find("h200"))
    # not by set_active: there may be no other driver to go back to
    monkeypatch.setattr(driver, "_active", H200())
    options = compiling.launch_options(launch, "cuda")
    jitted = launch.kernel.run(grid=launch.grid, warmup=True, **launch.args, **options)
    launch.kernel.device_caches.clear()
    assert ours.key == jitted.hash


def test_reports_are_parsed() -> None:
    text = " Function k:\n  REG:168 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:768\n"
    assert resources.parse_cuobjdump(text) == (168, 24)
    with pytest.raises(ResourcesError, match="update Triton"):
        resources.parse_cuobjdump("?")
    text = "    .agpr_count:     128\n .sgpr_count: 3\n .vgpr_count:     256\n    .vgpr_spill_count: 5\n"
    assert resources.parse_amdgcn(text) == (256, 20)
    with pytest.raises(ResourcesError, match="vgpr_count"):
        resources.parse_amdgcn("")


@pytest.mark.parametrize(
    ("needs", "count"),
    [
        (Resources(255, 0, 0, 4), 2),  # 256 registers a thread once rounded
        (Resources(255, 0, 0, 8), 1),
        (Resources(32, 0, 100_000, 4), 2),
        (Resources(32, 0, 0, 16), 4),
        (Resources(16, 0, 0, 1), 32),
        (Resources(255, 0, 0, 16), 0),
    ],
)
def test_how_many_ctas_fit(needs: Resources, count: int) -> None:
    assert resources.ctas_per_sm(needs, gpus.find("h200")) == count
