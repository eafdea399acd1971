"""Record files: merged, checked, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ssdgen.pack import records, schema, store
from ssdgen.pack.records import Identity, Record, RecordError
from ssdgen.pack.store import StoreError
from ssdgen.plan.problem import Problem
from ssdgen.runtime import records as lookup

PROBLEM = Problem(8, 2048, 80, 64, 128, 1)
CONFIG = {"schedule": "single_pass", "chunk": 64, "prepared": True, "kernels": {"single_pass": {"num_warps": 4}}}
KERNELS = {"single_pass": "aa", "dt_cumsum": "bb"}
MEASURED = Record(PROBLEM, CONFIG, "measured", 100.0, 1.0, 150.0, 2e-3, 5e-3, dict(KERNELS), "cc")
PREDICTED = replace(MEASURED, provenance="predicted", spread_us=None, error=None, error_limit=None)
BACKWARD = replace(MEASURED, direction="backward", config={**CONFIG, "schedule": "chunks"}, time_us=400.0)
IDENTITY = Identity("sm90", "h200", "NVIDIA H200", "570.1", "2.9", "3.6.0", {"max_sm": 1980.0})
FORETOLD = replace(IDENTITY, driver=None, torch=None, clocks_mhz={})
FILES = ["gpu.json", "ssd_forward.json"]


def save(root: Path, *new: Record, identity: Identity = IDENTITY, current: dict[str, str] | None = None):
    return store.save(root, identity, new, current or KERNELS)


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "sm90_h200").iterdir())


def test_what_is_written_is_read_again_and_by_the_look_up_too(tmp_path: Path) -> None:
    other = replace(MEASURED, problem=replace(PROBLEM, batch=1), time_us=12.345678)
    assert save(tmp_path, MEASURED, other) == [MEASURED, other]
    assert store.read(tmp_path / "sm90_h200") == (replace(other, time_us=12.35), MEASURED)  # by problem
    assert store.read_identity(tmp_path / "sm90_h200") == IDENTITY
    (gpu,) = lookup.read_root(tmp_path)
    assert gpu.name == "NVIDIA H200" and len(gpu.records) == 2 and gpu.records[1].measured
    assert files(tmp_path) == FILES
    text = (tmp_path / "sm90_h200" / "ssd_forward.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_the_same_again_changes_no_byte_and_touches_no_file(tmp_path: Path) -> None:
    save(tmp_path, MEASURED)
    before = [(tmp_path / "sm90_h200" / name).stat().st_mtime_ns for name in FILES]
    assert save(tmp_path, MEASURED) == []
    assert before == [(tmp_path / "sm90_h200" / name).stat().st_mtime_ns for name in FILES]


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (PREDICTED, replace(MEASURED, time_us=900.0), "new"),
        (MEASURED, replace(PREDICTED, time_us=1.0), "old"),
        (MEASURED, replace(MEASURED, time_us=99.0), "new"),
        (MEASURED, replace(MEASURED, time_us=101.0), "old"),
        (PREDICTED, replace(PREDICTED, time_us=300.0), "new"),
        # made for other kernels, or for one that is gone: whatever it took then
        (replace(MEASURED, fingerprint={"single_pass": "00"}), replace(MEASURED, time_us=101.0), "new"),
        (replace(MEASURED, fingerprint={"gone": "00"}), replace(MEASURED, time_us=101.0), "new"),
        (replace(MEASURED, fingerprint={"single_pass": "00"}), replace(PREDICTED, time_us=1.0), "old"),
    ],
)
def test_which_of_two_records_stays(tmp_path: Path, old: Record, new: Record, kept: str) -> None:
    save(tmp_path, old)
    assert save(tmp_path, new) == ([new] if kept == "new" else [])
    assert store.read(tmp_path / "sm90_h200") == (new if kept == "new" else old,)


def test_a_prediction_does_not_hide_what_the_others_were_measured_with(tmp_path: Path) -> None:
    save(tmp_path, MEASURED)
    save(tmp_path, replace(PREDICTED, problem=replace(PROBLEM, batch=2)), identity=FORETOLD)
    assert store.read_identity(tmp_path / "sm90_h200") == IDENTITY
    save(tmp_path / "b", PREDICTED, identity=FORETOLD)
    assert store.read_identity(tmp_path / "b" / "sm90_h200") == FORETOLD
    save(tmp_path / "b", MEASURED)
    assert store.read_identity(tmp_path / "b" / "sm90_h200") == IDENTITY


def test_each_pass_has_a_file_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, MEASURED)
    before = (tmp_path / "sm90_h200" / "ssd_forward.json").read_bytes()
    assert b"direction" not in before
    assert save(tmp_path, BACKWARD) == [BACKWARD]
    folder = tmp_path / "sm90_h200"
    assert (folder / "ssd_forward.json").read_bytes() == before
    assert store.read(folder) == (MEASURED,) and store.read(folder, "backward") == (BACKWARD,)
    data = json.loads((folder / "ssd_backward.json").read_text())
    assert data["kernel"] == "ssd_backward" and data["records"][0]["direction"] == "backward"
    # a faster record of one pass does not replace that of the other
    faster = replace(BACKWARD, time_us=50.0)
    assert save(tmp_path, faster, replace(MEASURED, time_us=101.0)) == [faster]
    assert store.read(folder) == (MEASURED,) and store.read(folder, "backward") == (faster,)
    (gpu,) = lookup.read_root(tmp_path)
    assert [(r.direction, r.time_us) for r in gpu.records] == [("forward", 100.0), ("backward", 50.0)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["records"][0].pop("direction"), "records[0] is of the forward pass"),
        (lambda data: data["records"][0].update(direction="sideways"), 'records[0].direction is "sideways"'),
        (lambda data: data.update(kernel="ssd_forward"), "kernel is 'ssd_forward'; it must be 'ssd_backward'"),
    ],
)
def test_a_wrong_pass_is_named_and_nothing_is_overwritten(tmp_path: Path, change, says: str) -> None:
    save(tmp_path, MEASURED, BACKWARD)
    path = tmp_path / "sm90_h200" / "ssd_backward.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    before = path.read_bytes()
    for new in (replace(MEASURED, time_us=1.0), replace(BACKWARD, time_us=1.0)):
        with pytest.raises(RecordError) as caught:
            save(tmp_path, new)
        assert says in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == before and store.read(tmp_path / "sm90_h200") == (MEASURED,)


@pytest.mark.parametrize("error", [6e-3, float("nan"), None])
def test_a_measured_record_must_be_right(error: float | None) -> None:
    with pytest.raises(RecordError, match="error"):
        replace(MEASURED, error=error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("\xff\xfe".encode("latin-1").decode("latin-1"), "not JSON"),
        ("[]", "must be object"),
        ('{"kernel": "ssd_forward", "records": []}', "no 'schema'"),
        ('{"kernel": "ssd_forward", "records": [], "schema": 2}', "must be one of 1"),
        ('{"kernel": "ssd_forward", "records": [], "schema": 1, "more": 1}', "'more', which is not known"),
    ],
)
def test_a_corrupt_file_is_named_and_nothing_is_overwritten(tmp_path: Path, text: str, says: str) -> None:
    save(tmp_path, MEASURED)
    path = tmp_path / "sm90_h200" / "ssd_forward.json"
    path.write_text(text, encoding="latin-1")
    before = {name: (tmp_path / "sm90_h200" / name).read_bytes() for name in FILES}
    with pytest.raises(RecordError) as caught:
        save(tmp_path, replace(MEASURED, time_us=1.0))
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert before == {name: (tmp_path / "sm90_h200" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_us": 0}, "records[0].time_us is 0"),
        ({"time_us": float("inf")}, "finite"),
        ({"time_us": True}, "must be number"),
        ({"provenance": "guessed"}, "records[0].provenance"),
        ({"problem": {"batch": 1}}, "records[0].problem has no 'dstate'"),
        ({"config": {"kernels": {}}}, "records[0].config has no 'schedule'"),
        ({"config": {"schedule": "x", "kernels": {"k": {"n": [1]}}}}, "records[0].config.kernels.k.n"),
        ({"problem": {**PROBLEM.to_json(), "ngroups": 3}}, "records[0]: nheads 80 is not divisible"),
        ({"error": 1.0}, "over the limit"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, change: dict, says: str) -> None:
    data = records.records_to_json([MEASURED])
    data["records"][0] |= change
    path = tmp_path / "ssd_forward.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError) as caught:
        store.read(tmp_path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_a_corrupt_identity_is_named(tmp_path: Path) -> None:
    save(tmp_path, MEASURED)
    (tmp_path / "sm90_h200" / "gpu.json").write_text('{"arch": "sm90"}')
    with pytest.raises(RecordError, match=r"gpu\.json: the file has no"):
        save(tmp_path, replace(MEASURED, time_us=1.0))


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "tempfile.mkstemp"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_leaves_the_old_file_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    save(tmp_path, MEASURED)
    before = {name: (tmp_path / "sm90_h200" / name).read_bytes() for name in FILES}

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"ssdgen.pack.store.{call}", fail)
    with pytest.raises(StoreError) as caught:
        save(tmp_path, replace(MEASURED, time_us=1.0))
    assert "cannot write" in str(caught.value) and os.strerror(number) in str(caught.value)
    assert "ssd_forward.json" in str(caught.value)
    assert files(tmp_path) == FILES
    assert before == {name: (tmp_path / "sm90_h200" / name).read_bytes() for name in FILES}


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    save(tmp_path, MEASURED)
    real = os.fdopen

    def fdopen(descriptor: int, *args: object, **options: object):
        # every write to it fails with "No space left on device", when the buffer is flushed
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
        return real(descriptor, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("ssdgen.pack.store.os.fdopen", fdopen)
    with pytest.raises(StoreError, match="No space left on device"):
        save(tmp_path, replace(MEASURED, time_us=1.0))
    assert files(tmp_path) == FILES and store.read(tmp_path / "sm90_h200") == (MEASURED,)


def test_ctrl_c_while_writing_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, MEASURED)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdgen.pack.store.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, replace(MEASURED, time_us=1.0))
    assert files(tmp_path) == FILES and store.read(tmp_path / "sm90_h200") == (MEASURED,)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_really_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        store.check_writable(tmp_path, "sm90_h200")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "tuned").write_text("")
    with pytest.raises(StoreError, match="tuned"):
        store.check_writable(tmp_path / "tuned", "sm90_h200")


def test_the_check_leaves_nothing_and_files_may_be_read_by_others(tmp_path: Path) -> None:
    store.check_writable(tmp_path, "sm90_h200")
    assert files(tmp_path) == []
    save(tmp_path, MEASURED)
    for name in FILES:
        assert stat.S_IMODE((tmp_path / "sm90_h200" / name).stat().st_mode) == 0o644


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert store.read(tmp_path) == () and store.read_identity(tmp_path) is None


def test_the_schema_file_is_the_schema() -> None:
    root = Path(__file__).resolve().parents[2]
    assert (root / "tuned" / "schema.json").read_text() == schema.document(), (
        "python -m ssdgen.pack.schema > tuned/schema.json"
    )


def test_the_records_that_ship_are_right() -> None:
    root = Path(__file__).resolve().parents[2] / "tuned"
    for folder in (path.parent for path in root.glob("*/gpu.json")):
        identity = store.read_identity(folder)
        assert identity and identity.folder == folder.name
        for direction in records.DIRECTIONS:
            if (path := store.records_path(folder, direction)).exists():
                stored = store.read(folder, direction)
                assert records.records_to_json(stored, direction) == json.loads(path.read_text())
