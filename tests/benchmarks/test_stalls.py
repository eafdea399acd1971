"""What is read of Nsight Compute's pages.  ncu_*.txt, ncu_*.csv: cut from those of two kernels on an H200."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import stalls

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def kernels() -> list[stalls.Kernel]:
    text = (HERE / "ncu_details.txt").read_text()
    lines = (HERE / "ncu_source.csv").read_text().splitlines()
    return stalls.joined(stalls.details(text), stalls.sources(lines))


def test_metrics_of_a_kernel() -> None:
    adjoints, gradients = kernels()
    assert (adjoints.name, gradients.name) == ("chunk_adjoints_1consumer", "chunk_gradients_2consumers")
    assert gradients.whole["us"] == 546.21
    assert gradients.whole["spilled"] == 3365888
    assert gradients.whole["L1 hit %"] == 36.0
    assert gradients.whole["shared KB"] == 174.13


def test_a_loop_is_without_warps_that_wait_for_others_to_end() -> None:
    _, gradients = kernels()
    most = max(gradients.instructions, key=lambda each: each.samples)
    assert most.operation == "NOP"
    assert {each.executed for each in gradients.loop} == {81920}


def test_waits_and_banks() -> None:
    adjoints, gradients = (kernel.summary(2) for kernel in kernels())
    (text, share, stall), (_, second, _) = adjoints["waits"]
    assert text == "@!P0  BRA 0x7fd3717d2e90"
    assert stall == "long_sb"
    assert share == pytest.approx(1160 / 3797)
    assert second <= share
    assert adjoints["banks"] == 0.0
    # two loads of the parked tile, half of whose wavefronts are in excess
    assert gradients["banks"] == pytest.approx(0.5)
    assert list(gradients["stalls"])[0] == "long_sb"


def test_operations_are_named_without_predicates() -> None:
    adjoints, _ = kernels()
    assert {each.operation for each in adjoints.loop} == {"BRA", "FENCE", "FMNMX", "WARPGROUP"}
    # the kernel's name, its metrics, the stalls and all of the rest in one piece of text
    said = stalls.table([(kernel.name, kernel.summary(3)) for kernel in kernels()])
    assert "chunk_gradients_2consumers" in said
    assert "in excess: 50%" in said


def test_pages_of_different_runs_do_not_go_together() -> None:
    adjoints, gradients = kernels()
    with pytest.raises(ValueError, match="profile again"):
        stalls.joined([adjoints], [gradients])


@pytest.mark.parametrize(
    ("given", "said"),
    [(("--shape", "3b"), "unknown shape '3b'"), (("--shape", "2.7b"), "is 4 shapes")],
    ids=["unknown", "several"],
)
def test_bad_arguments(given: tuple[str, str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/stalls.py", *given], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
