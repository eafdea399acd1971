"""`ssdgen doctor`: what is here, what a call would run with, and for all that is wrong what to type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from ssdgen.commands import main
from ssdgen.mamba2_ops import ladder, packs, select
from ssdgen.pack import install, wheel
from tests.pack import made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SSDGEN_TUNED", "SSDGEN_NO_TUNE", "SSDGEN_ASSERT_TUNED", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    select.forget()
    yield
    select.forget()


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *args])


def asked(*args: str) -> dict:
    result = run("--json", *args)
    assert result.exit_code in (0, 1) and not isinstance(result.exception, ValueError), result.output
    return json.loads(result.output)


def findings(found: dict) -> dict[str, str]:
    return {finding["what"]: finding["mend"] for finding in found["findings"]}


def test_a_shape_with_a_record_says_which(tmp_path: Path) -> None:
    result = run("--gpu", "h200", "--shape", "2.7b")
    said = " ".join(result.output.split())
    assert result.exit_code == 0, result.output
    assert "The forward pass of 2.7b would run" in said and "config from the bundled records" in said
    assert "record measured" in said and "for 8,2048,80,64,128,1" in said and "not made yet" in said


def test_what_nobody_tuned_names_the_command() -> None:
    found = asked("--gpu", "t4", "--shape", "1,64,2,16,16,1")
    mends = findings(found)
    (forward,) = [use for use in found["uses"] if use["pass"] == "forward"]
    assert forward["from"] == "the built-in default" and "record" not in forward
    assert mends["nobody tuned the forward pass for this shape and GPU"] == (
        "ssdgen tune --shapes 1,64,2,16,16,1 --dtype bfloat16 --pass forward --gpu t4"
    )


def test_a_record_of_another_gpu_is_no_record_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a package next to which there are records of an H100 alone
    shutil.copytree(ROOT / "tuned" / "sm90_h100", tmp_path / "tuned" / "sm90_h100")
    monkeypatch.setattr(ladder, "bundled_root", lambda package: tmp_path / "tuned")
    found = asked("--gpu", "h200")
    assert any("was made on another GPU: a record of NVIDIA H100" in what for what in findings(found))
    assert not found["uses"][0]["this_gpu"]


def test_a_pack_and_its_kernels_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install.unpack(wheel.read(made.put(tmp_path)), tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    select.forget()
    found = asked("--gpu", "h200")
    assert found["packs"][0]["name"] == "h200" and found["packs"][0]["records"] == 1
    assert found["uses"][0]["from"] == "the installed pack h200" and found["uses"][0]["stale"]
    # the pack's only kernel is of no launch
    assert set(found["uses"][0]["kernels"].values()) == {"compiled at first use"}
    (tmp_path / "site" / made.FOLDER / "tuned" / "sm90_h200" / "gpu.json").write_text("{}")
    select.forget()
    packs.installed.cache_clear()
    result = run("--gpu", "h200")
    assert result.exit_code == 1 and "pip uninstall ssdgen-pack-h200" in result.output


def test_folders_that_cannot_be_used_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = run("--gpu", "h100")
    assert result.exit_code == 1 and "cannot be written" in result.output and "TRITON_CACHE_DIR" in result.output


def test_the_environment_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    assert findings(asked("--gpu", "h100"))["SSDGEN_NO_TUNE=1: records are not looked at"] == "unset SSDGEN_NO_TUNE"
    monkeypatch.delenv("SSDGEN_NO_TUNE")
    monkeypatch.setenv("SSDGEN_TUNED", str(tmp_path / "typo"))
    result = run("--gpu", "h100")
    assert result.exit_code == 1 and "SSDGEN_TUNED is" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--gpu", "h300"], "h300"), (["--shape", "all"], "give one"), (["--shape", "1,2"], "2 numbers")],
)
def test_mistakes_are_one_line(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output
