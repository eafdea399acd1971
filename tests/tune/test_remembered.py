"""What code needs is found out once for all shapes that share it, and kept for the next process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune import compile as compiling
from ssdgen.tune.compile import Compiled, Launch
from ssdgen.tune.errors import CompileError
from ssdgen.tune.passes import PASSES
from ssdgen.tune.remembered import Remembered, key_of
from ssdgen.tune.resources import Resources

A100, L40S, RTX4090 = (gpus.find(name) for name in ("a100", "l40s", "rtx4090"))
CONFIG = {
    "schedule": "single_pass",
    "chunk": 64,
    "prepared": True,
    "kernels": {"dt_cumsum": {}, "single_pass": {"block_p": 64, "num_warps": 4, "num_stages": 2}},
}


def walk(problem: Problem, **numbers: int) -> Launch:
    it = PASSES["forward"]
    kernels = {**CONFIG["kernels"], "single_pass": {**CONFIG["kernels"]["single_pass"], **numbers}}
    return it.plan({**CONFIG, "kernels": kernels}, it.draw(problem, "meta", 0, False), False).launches[-1]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were compiled; what they need is made up."""
    done: list[str] = []

    def made(launch: Launch, gpu: gpus.Gpu) -> Compiled:
        done.append(launch.kernel.__name__)
        if launch.num_warps == 16:
            raise CompileError("sixteen are too many")
        return Compiled(launch.kernel.__name__, "", Resources(100, 0, 120_000, launch.num_warps))

    monkeypatch.setattr(compiling, "made", made)
    return done


def test_shapes_share_what_their_code_needs(tmp_path: Path, compilations: list[str]) -> None:
    remembered = Remembered(tmp_path)
    first = Problem(8, 2048, 80, 64, 128, 1)
    for problem in (first, replace(first, batch=1, seqlen=16384), replace(first, nheads=24), replace(first, ngroups=8)):
        assert remembered(walk(problem), A100).resources.registers == 100
    assert len(compilations) == 1
    for other in (walk(replace(first, dstate=64)), walk(replace(first, dtype="float16")), walk(first, num_stages=3)):
        remembered(other, A100)
    assert len(compilations) == 4
    # another process, and another architecture
    Remembered(tmp_path)(walk(first), A100)
    assert len(compilations) == 4 and key_of(walk(first), A100) != key_of(walk(first), L40S)
    assert key_of(walk(first), RTX4090) == key_of(walk(first), L40S)


def test_what_does_not_compile_is_remembered_too(tmp_path: Path, compilations: list[str]) -> None:
    launch = walk(Problem(8, 2048, 80, 64, 128, 1), num_warps=16)
    for _ in range(2):
        with pytest.raises(CompileError, match="sixteen"):
            Remembered(tmp_path)(launch, A100)
    assert len(compilations) == 1


def test_whether_it_fits_is_a_matter_of_the_gpu(tmp_path: Path, compilations: list[str]) -> None:
    launch, remembered = walk(Problem(8, 2048, 80, 64, 128, 1)), Remembered(tmp_path)
    larger = replace(L40S, smem_per_cta=128_000, smem_per_sm=128_000)
    assert remembered(launch, larger).resources.shared == 120_000
    with pytest.raises(CompileError, match="120000 bytes of shared memory; l40s has"):
        remembered(launch, L40S)
    assert len(compilations) == 1


def test_a_broken_file_is_made_anew(tmp_path: Path, compilations: list[str]) -> None:
    launch = walk(Problem(8, 2048, 80, 64, 128, 1))
    (tmp_path / f"{key_of(launch, A100)}.json").write_text('{"registers": 1')
    assert Remembered(tmp_path)(launch, A100).resources.registers == 100
    (tmp_path / "a file").write_text("")
    # nor is a folder that cannot be written an error
    assert Remembered(tmp_path / "a file")(launch, A100).resources.registers == 100
