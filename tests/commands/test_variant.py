"""`--variant`: another recurrence can be shown and emitted; it has none of a layer's options."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from ssdgen.commands import main


def answer(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return " ".join(result.output.split())


def test_its_equations() -> None:
    text = answer("show", "spec", "--variant", "mamba3")
    assert "beta_next[h, t] = beta[h, t + 1]" in text and "where i > j, else 0" in text
    assert "inputs: trapezoidal" in text
    back = answer("show", "spec", "--variant", "mamba3", "--backward")
    assert "d_own[h, i] = sum over p of d_D_terms[h, i, p]" in back and "d_mix[h, t] =" in back


def test_its_kernels() -> None:
    assert "def mamba3_turn(" in answer("show", "kernel", "mamba3_turn", "--variant", "mamba3")
    text = answer("show", "kernel", "dt_cumsum", "--variant", "mamba3", code=2)
    assert "mamba3 has no kernel 'dt_cumsum'; there are chunk_adjoints" in text


def test_its_package(tmp_path: Path) -> None:
    answer("emit", "--variant", "mamba3", "--out", str(tmp_path / "ops"))
    assert {"interface.py", "launch.py", "reference.py"} <= {path.name for path in (tmp_path / "ops").iterdir()}


def test_options_of_a_layer_are_refused(tmp_path: Path) -> None:
    for options in (("--family", "none"), ("--layout", "multi-head"), ("--with", "z"), ("--chunk", "64")):
        text = answer("emit", "--variant", "mamba3", "--out", str(tmp_path / "ops"), *options, code=2)
        assert f"--variant mamba3 has no {options[0]}; leave it out" in text
