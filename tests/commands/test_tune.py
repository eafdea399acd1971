"""`ssdgen tune` as a user types it: what goes wrong is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ssdgen import gpus
from ssdgen.commands import main, tune
from ssdgen.pack import store
from ssdgen.pack.records import DECODE, DIRECTIONS, REPLAY
from ssdgen.tune import device
from ssdgen.tune.passes import PASSES
from ssdgen.tune.shapes import NAMED

SMALL = "1,64,2,16,16,1"


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["tune", *args])


def refused(*args: str) -> str:
    """The message of an error that is expected."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output and "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def own_journal(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials of a test are not among the user's own."""
    path = tmp_path_factory.mktemp("studies") / "journal"
    monkeypatch.setenv("SSDGEN_STORAGE", str(path))
    return path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name_here", lambda: None)


@pytest.fixture
def an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name_here", lambda: "NVIDIA H200")


def test_help_teaches() -> None:
    text = run("--help").output
    assert all(name in text for name in NAMED) and "Examples:" in text and "Ctrl-C" in text
    assert "--pass [forward|backward|decode|both|all]" in text and "ssd_PASS.json" in text


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    message = refused("--gpu", "h300")
    assert "unknown GPU 'h300'" in message and "mi300x" in message and "rtx-4090" in message


def test_without_a_gpu_one_must_be_named(no_gpu: None) -> None:
    message = refused("--shapes", SMALL)
    assert "no GPU here" in message and "--gpu" in message and "h200" in message


def test_a_gpu_that_is_not_the_one_here(an_h200: None) -> None:
    message = refused("--gpu", "a100", "--shapes", SMALL)
    assert "NVIDIA H200" in message and "(h200)" in message and "--predict" in message


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--shapes", "9b"), "unknown shape '9b'"),
        (("--shapes", "1,2048,80,64,128,7"), "not divisible by ngroups 7"),
        (("--shapes", "1,0,80,64,128,1"), "seqlen is 0"),
        (("--shapes", "1,2048"), "has 2 numbers"),
        (("--budget", "soon"), "give a time such as 90s"),
        (("--trials", "0"), "--trials"),
        (("--pass", "sideways"), "'sideways' is not one of 'forward', 'backward', 'decode', 'both', 'all'"),
        (("--timing", "guess"), "--timing"),
    ],
)
def test_what_cannot_be(no_gpu: None, args: tuple[str, ...], says: str) -> None:
    assert says in refused("--gpu", "h200", *args)


def test_a_corrupt_record_file_is_named_and_kept(no_gpu: None, tmp_path: Path) -> None:
    path = tmp_path / "sm90_h200" / "ssd_forward.json"
    path.parent.mkdir()
    path.write_text("{")
    message = refused("--gpu", "h200", "--shapes", SMALL, "--out", str(tmp_path), "--trials", "1")
    assert str(path) in message.replace(" ", "") or str(path) in message
    assert path.read_text() == "{" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written(no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("--gpu", "h200", "--shapes", SMALL, "--out", str(tmp_path / "file"), "--trials", "1")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--resume", "--worker"), "--resume and --worker are both given"),
        (("--resume", "--shapes", SMALL), "leave out --shapes"),
        (("--worker", "--pass", "forward", "--seed", "3"), "leave out --pass, --seed"),
        (("--resume",), "nothing to go on with"),
        (("--resume", "--storage", "postgresql://me:secret@127.0.0.1:9/db"), "cannot use the database db"),
    ],
)
def test_what_cannot_be_joined(no_gpu: None, tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    message = refused("--gpu", "h200", "--out", str(tmp_path), *args)
    assert says in message and "secret" not in message


def test_a_corrupt_journal_is_named(no_gpu: None, tmp_path: Path, own_journal: Path) -> None:
    own_journal.write_text('{"op_code": 0}\n{broken\n')
    message = refused("--gpu", "h200", "--shapes", SMALL, "--out", str(tmp_path))
    assert "is broken in line 2" in message


def test_what_triton_cannot_do_well_is_told(tmp_path: Path) -> None:
    said = [tune._announcement(gpus.find(name), None, True, tmp_path) for name in ("t4", "a100")]
    assert "tensor cores of sm75" in said[0] and "--dtype float16" in said[0] and "tensor cores" not in said[1]


@pytest.mark.slow
def test_a_prediction_from_end_to_end(no_gpu: None, tmp_path: Path) -> None:
    args = ("--gpu", "H200", "--shapes", SMALL, "--pass", "all", "--trials", "2", "--jobs", "1", "--out", str(tmp_path))
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert "Predicting for h200" in result.output and "predicted by compiling" in result.output
    for direction in DIRECTIONS:
        records = store.read(tmp_path / "sm90_h200", direction)
        # of a decode step one for each way to store a state
        assert len(records) == (3 if direction in (DECODE, REPLAY) else 1), direction
        for record in records:
            assert record.direction == direction and record.provenance == "predicted" and record.time_us > 0
            assert record.fingerprint and record.space == PASSES[direction].space.fingerprint()
    identity = json.loads((tmp_path / "sm90_h200" / "gpu.json").read_text())
    assert identity["name"] == "NVIDIA H200" and identity["driver"] is None
    # the same seed, the same answer, and what is not asked for stays
    files = [tmp_path / "sm90_h200" / f"ssd_{direction}.json" for direction in DIRECTIONS]
    before = [path.read_bytes() for path in files]
    assert run(*args[:4], "--pass", "norm", *args[6:]).exit_code == 0
    assert [path.read_bytes() for path in files] == before


@pytest.mark.gpu
def test_a_measurement_from_end_to_end(tmp_path: Path) -> None:
    result = run("--shapes", "1,300,4,64,64,2", "--pass", "all", "--trials", "4", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    for direction in DIRECTIONS:
        for record in store.read(folder, direction):
            assert record.provenance == "measured" and record.error is not None and record.error_limit is not None
            assert 0 < record.error <= record.error_limit and record.default_us
            assert record.time_us <= record.default_us * 1.05
