"""`ssdgen` and `ssdgen show`: every stage can be printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from ssdgen import __version__
from ssdgen.commands import main

ROOT = Path(__file__).resolve().parents[2]


def shown(*args: str) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == 0, result.output
    return result.output


def refused(*args: str) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return " ".join(result.output.split())


def test_help_and_version() -> None:
    text = shown("--help")
    assert all(name in text for name in ("show", "emit", "tune", "predicts"))
    assert __version__ in shown("--version")
    assert all(name in shown("show", "--help") for name in ("spec", "plan", "kernel", "space", "roofline"))


def test_the_checkout_runs_it_too() -> None:
    done = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and __version__ in done.stdout


def test_spec_as_text_and_as_latex() -> None:
    text = shown("show", "spec", "--chunk", "64", "--with", "D", "--with", "z")
    assert "diagonal" in text and "chunk" not in text.split("matrix")[1].split("\n")[0]
    assert "align" in shown("show", "spec", "--latex")
    assert shown("show", "spec", "--family", "none") != shown("show", "spec")


def test_roofline() -> None:
    text = shown("show", "roofline", "--gpu", "h200", "--batch", "8", "--seqlen", "2048")
    assert "h200" in text and "4.27 TB/s" in text and "bytes" in text
    assert shown("show", "roofline", "--shape", "zamba2", "--dtype", "float32", "--chunk", "32") != text
    assert "unknown GPU" in refused("show", "roofline", "--gpu", "nothing")
    assert "not divisible" in refused("show", "roofline", "--ngroups", "7")


def test_backward() -> None:
    text = shown("show", "spec", "--backward", "--chunk", "64", "--with", "D")
    assert "d_C_CB[i, n] = sum over j of d_CB[i, j] B[j, n]" in text and "gradients" in text and "total" in text
    assert r"\overline{x}" in shown("show", "spec", "--backward", "--latex")
    assert "d_A" not in shown("show", "spec", "--backward", "--family", "none")
    floors = {flag: shown("show", "roofline", "--chunk", "64", *flag) for flag in ((), ("--backward",))}
    least = [float(text.split("GFLOP")[1].split()[1]) for text in floors.values()]
    assert 1.5 * least[0] < least[1]


def test_space_has_a_reason_for_every_bound() -> None:
    text = shown("show", "space", "--gpu", "rtx3090")
    assert all(word in text for word in ("single_pass", "segments", "split", "minimal", "num_warps"))
    assert shown("show", "space", "split") in text or "split" in shown("show", "space", "split")
    assert "single_pass" in refused("show", "space", "quadratic")


def test_space_of_a_part_is_that_of_the_layer_s_part() -> None:
    text = shown("show", "space", "norm_backward", "--shape", "nemotron-h")
    assert text.startswith("norm_backward\n") and "norm.programs" in text and "minimal:" in text
    # 640 channels are cut into two tiles, 1024 are not
    assert "norm.tiles: 1\n" in text and "norm.tiles: 1, 2" in shown("show", "space", "norm_forward", "--headdim", "8")
    assert "state_step.heads: 1, 2, 4, 8, 16" in shown("show", "space", "replay")


def test_plan_and_kernel_of_the_same_name() -> None:
    plan = shown("show", "plan", "single_pass")
    assert "contract" in plan and "load " in plan and "grid:" in plan
    source = shown("show", "kernel", "single_pass_2heads", "--with", "D")
    assert "@triton.jit" in source and "def single_pass_2heads(" in source
    assert shown("show", "kernel", "single_pass", "--family", "none") != shown("show", "kernel", "single_pass")
    for stage in ("plan", "kernel"):
        assert "single_pass" in refused("show", stage, "attention")


def test_kernels_of_the_backward_pass() -> None:
    assert "running sum of d_dA_cs_scaled[j, h] along j from its end" in shown("show", "plan", "dt_gradients")
    source = shown("show", "kernel", "reverse_walk", "--layout", "multi-head")
    assert "def reverse_walk(" in source and "d_x[h, j, p] =" in source
    assert "reverse_walk" in refused("show", "kernel", "attention")
