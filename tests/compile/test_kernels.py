"""Every kernel that ships compiles for every architecture, with no GPU; the minimal configs fit 48 KB everywhere.

Small tiles and one stage: what is asked is whether the compiler takes the code, not whether it is quick.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from ssdgen import gpus
from ssdgen.emit.package import FUNCTIONS
from ssdgen.mamba2_ops import kernels
from ssdgen.mamba2_ops.defaults import default_config
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.plan import catalogue, parts, space
from ssdgen.plan.problem import Problem
from ssdgen.plan.schedules import diagonal
from ssdgen.spec.layer import Layer
from ssdgen.tune import resources
from ssdgen.tune.compile import compile_launch, source_of
from tests.parity import configs
from tests.parity.cases import DTYPES, Case, draw

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]

# sm_80, sm_86, sm_90, sm_100, gfx942
GPUS = ("a100", "rtx3090", "h200", "b200", "mi300x")
SMALLEST_SHARED = 48 * 1024
SHIPPED = sorted(
    {path.stem for path in Path(kernels.__file__).parent.glob("*.py")}
    - {
        "__init__",
        *FUNCTIONS,
        *catalogue.BACKWARD,
        *catalogue.SPECIALISED,
        *catalogue.DECODE,
        *catalogue.TILED,
        *parts.kernels(),
        *catalogue.beside(Layer()),
    }
)

# every option that a kernel may have; with them all the code is at its longest
OPTIONS = ("D_headdim", "z", "dt_bias", "dt_softplus", "dt_limit", "initial_states", "seq_idx")
# two tiles of headdim, of dstate, of both; states by rows of headdim
SIZES_OF_TILES = ((80, 16), (16, 96), (80, 96), (64, 16), (64, 96))
CASES = [
    Case(1, 1024, 8, 32, 32, 1, "bfloat16", OPTIONS),
    *(Case(1, 1024, 1, p, n, 1, "bfloat16", OPTIONS) for p, n in SIZES_OF_TILES),
]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@cache
def launches() -> dict[str, Any]:
    """A launch of every kernel, on tensors without contents, each from a config of the search space."""
    found: dict[str, Any] = {}
    for schedule in space.SCHEDULES:
        for case in CASES:
            call = draw(case).on("meta")
            configured = configs.one_of_each(schedule, configs.problem(case)).values()
            for config, keeps in product(configured, (False, True)):
                for launch in configs.launches(config, call, keeps=keeps).launches:
                    found.setdefault(launch.kernel.__name__, launch)
    every = product((64, 200), (1, 2), (2, 1, space.APART), (False, True), (False, True), (False, True))
    for dstate, consumers, terms, ahead, aside, keeps in every:
        for launch in consumer_launches(dstate, consumers, 2, terms=terms, ahead=ahead, aside=aside, keeps=keeps):
            found.setdefault(launch.kernel.__name__, launch)
    return found


def consumer_launches(
    dstate: int,
    consumers: int,
    stages: int,
    options: tuple[str, ...] = OPTIONS,
    terms: int | str = 2,
    ahead: bool = False,
    aside: bool = False,
    keeps: bool = False,
) -> list[Any]:
    """Of the kernels that are specialised by warps: the single pass, and segments that are joined by their walks."""
    call = draw(Case(1, 1024, 8, 64, dstate, 1, "bfloat16", options)).on("meta")
    numbers = {"consumers": consumers, "num_stages": stages, "terms": terms, "ahead": ahead}
    config = {"chunk": 64, "prepared": True, "aside": aside, "kernels": dict.fromkeys(space.WALKS, numbers)}
    segments = {"schedule": "segments", "segment": 256, "state_dtype": "float32", "joined": True}
    found = [
        launch
        for how in ({"schedule": "single_pass", "kernels": {"single_pass": numbers}}, segments)
        for launch in configs.launches({**config, **how}, call, keeps=keeps).launches
        if "consumer" in launch.kernel.__name__ or launch.kernel.__name__ == diagonal.NAME
    ]
    found = sorted(found, key=lambda launch: launch.kernel.__name__ == diagonal.NAME)
    assert len(found) == (5 if terms == space.APART else 3)
    assert {launch.num_stages for launch in found[:3]} == {stages}
    return found


def test_every_kernel_of_the_catalogue_is_here() -> None:
    assert SHIPPED == sorted(kernel.name for kernel in catalogue.kernels(Layer())) == sorted(launches())


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", SHIPPED)
def test_compiles(name: str, gpu: str) -> None:
    target = gpus.find(gpu)
    if name.endswith("_tma") and gpu not in ("h200", "b200"):
        pytest.skip("tensor descriptors came with sm_90")
    if "consumer" in name and gpu != "h200":
        pytest.skip("the matrix units' own instructions in kernels specialised by warps are Hopper's alone")
    compiled = compile_launch(launches()[name], target)
    assert compiled.name == name
    assert compiled.resources.shared <= target.smem_per_cta
    assert compiled.resources.registers > 0


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("terms", [2, space.APART])
def test_two_programs_that_keep_states_fit_a_multiprocessor(terms: int | str, aside: bool) -> None:
    """At a model's sizes: what is kept goes to memory from registers, and hardly any are spilled for it."""
    gpu = gpus.find("h200")
    first, *_ = consumer_launches(128, 1, 2, ("D", "dt_bias", "dt_softplus"), terms, True, aside, keeps=True)
    needs = compile_launch(replace(first, maxnreg=128), gpu).resources
    assert first.kernel.__name__.endswith("_keeping")
    assert needs.spilled <= 24 and resources.ctas_per_sm(needs, gpu) == 2


def test_two_consumers_keep_everything_in_registers() -> None:
    """At a model's sizes and with its options, in the single pass and in segments, with three stages; z would spill."""
    for launch in consumer_launches(128, consumers=2, stages=3, options=("D_headdim", "dt_bias", "dt_softplus")):
        assert compile_launch(launch, gpus.find("h200")).resources.spilled == 0, launch.kernel.__name__


@pytest.mark.parametrize("skip", ["D", "D_headdim"])
@pytest.mark.parametrize("terms", [2, 1, space.APART])
@pytest.mark.parametrize("aside", [False, True])
def test_what_is_issued_ahead_is_under_way(aside: bool, terms: int | str, skip: str) -> None:
    """At a model's sizes nothing spills, and ptxas neither runs products one by one nor puts in waits of its own."""
    options = (skip, "dt_bias", "dt_softplus")
    launch = replace(consumer_launches(128, 1, 2, options, terms, True, aside)[0], maxnreg=128)
    assert launch.kernel.__name__.endswith("inline_1consumer_ahead" if aside else "1consumer_ahead")
    assert compile_launch(launch, gpus.find("h200")).resources.spilled == 0
    target = GPUTarget("cuda", 90, 32)
    source, chosen = source_of(launch, target)
    code = triton.compile(source, target=target, options=chosen.__dict__)
    with NamedTemporaryFile("w", suffix=".ptx") as text, NamedTemporaryFile(suffix=".cubin") as made:
        text.write(code.asm["ptx"])
        text.flush()
        command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", text.name, "-o", made.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "registers" in said and "wgmma" not in said, said


PACKED = Case(1, 1024, 2, 32, 32, 1, "bfloat16", ("D", "z", "dt_bias", "dt_softplus", "initial_states", "cu_seqlens"))


@pytest.mark.parametrize("gpu", GPUS)
def test_packed_sequences_compile(gpu: str) -> None:
    """The walk that finds its own bounds in cu_seqlens."""
    config = space.minimal("single_pass", configs.problem(PACKED))
    (launch,) = configs.launches(config, draw(PACKED).on("meta")).launches
    assert launch.kernel.__name__ == "single_pass_inline" and launch.args["HAS_CU_SEQLENS"]
    compile_launch(launch, gpus.find(gpu))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_compiles(dtype: str) -> None:
    """fp32 takes other instructions, fp16 another matrix operand; states may be in either."""
    case = Case(1, 1024, 2, 32, 32, 1, dtype, ("D", "z", "state_fp16"))
    for schedule in space.SCHEDULES:
        config = space.minimal(schedule, configs.problem(case))
        for launch in configs.launches(config, draw(case).on("meta")).launches:
            compile_launch(launch, gpus.find("h200"))


# headdim, dstate, dtype: of models, of two tiles, the largest ones
SIZES = [
    (64, 128, "bfloat16"),
    (128, 256, "bfloat16"),
    (80, 96, "bfloat16"),
    (64, 128, "float32"),
    (128, 256, "float32"),
    (64, 512, "float32"),
]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize(("headdim", "dstate", "dtype"), SIZES)
def test_a_minimal_config_fits_48_kb(headdim: int, dstate: int, dtype: str, schedule: str, gpu: str) -> None:
    """On every GPU, with every option: what is left when nothing else fits."""
    case = Case(1, 1024, 2, headdim, dstate, 1, dtype, OPTIONS)
    target = gpus.find(gpu)
    sizes = configs.problem(case)
    config = space.minimal(schedule, sizes)
    assert space.legal(config, sizes, target) is None
    for launch in configs.launches(config, draw(case).on("meta")).launches:
        assert compile_launch(launch, target).resources.shared <= SMALLEST_SHARED, launch.kernel.__name__


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_what_a_launcher_falls_back_to_fits_48_kb(packed: bool, gpu: str) -> None:
    """At the most that the kernels take, in the widest dtype."""
    options = PACKED.options if packed else OPTIONS
    case = Case(1, 1024, 2, 64, 512, 1, "float32", options)
    for launch in configs.launches(configs.launcher.MINIMAL, draw(case).on("meta")).launches:
        assert compile_launch(launch, gpus.find(gpu)).resources.shared <= SMALLEST_SHARED, launch.kernel.__name__


@pytest.mark.parametrize("gpu", GPUS)
def test_the_default_config_compiles(gpu: str) -> None:
    """Of a model's layer, as a search starts with it on this very GPU."""
    sizes = Problem(1, 1024, 8, 64, 128, 1)
    case = Case(1, 1024, 8, 64, 128, 1, "bfloat16", OPTIONS)
    target = gpus.find(gpu)
    config = default_config(CallProblem(**sizes.to_json()), target.sms)
    for launch in configs.launches(config, draw(case).on("meta")).launches:
        compile_launch(launch, target)
