"""Record files: what is right is read, what is broken is named and left as it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from ssdgen.runtime.errors import RecordError
from ssdgen.runtime.problem import Problem
from ssdgen.runtime.records import read_folder, read_root

IDENTITY = {"arch": "sm90", "gpu": "h200", "name": "NVIDIA H200", "schema": 1, "driver": "1", "triton": "3.7.1"}
RECORD = {
    "problem": {
        "batch": 8, "seqlen": 2048, "nheads": 80, "headdim": 64, "dstate": 128, "ngroups": 1, "dtype": "bfloat16",
    },
    "config": {"schedule": "single_pass", "chunk": 64, "kernels": {"single_pass": {"heads": 1, "num_warps": 4}}},
    "provenance": "measured",
    "time_us": 190.5,
    "spread_us": 1.0,
    "fingerprint": "abc",
}  # fmt: skip


def write(folder: Path, records: list | None = None, identity: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(identity or IDENTITY))
    if records is not None:
        text = json.dumps({"kernel": "ssd_forward", "schema": 1, "records": records})
        (folder / "ssd_forward.json").write_text(text)
    return folder


def test_a_record_is_read(tmp_path: Path) -> None:
    gpu = read_folder(write(tmp_path / "sm90_h200", [RECORD, RECORD | {"provenance": "predicted"}]))
    assert (gpu.name, gpu.arch, len(gpu.records)) == ("NVIDIA H200", "sm90", 2)
    first, second = gpu.records
    assert first.problem == Problem(8, 2048, 80, 64, 128, 1, "bfloat16")
    assert first.config == RECORD["config"] and first.fingerprint == "abc" and first.time_us == 190.5
    assert first.measured and not second.measured


def write_backward(folder: Path, *records: dict) -> Path:
    """Beside whatever else the folder has."""
    data = {"kernel": "ssd_backward", "schema": 1, "records": list(records)}
    (folder / "ssd_backward.json").write_text(json.dumps(data))
    return folder


def test_records_of_both_passes_are_read(tmp_path: Path) -> None:
    """A record that does not say which pass it is of is of the forward pass."""
    backward = RECORD | {"direction": "backward", "time_us": 400.0}
    gpu = read_folder(write_backward(write(tmp_path, [RECORD, RECORD | {"direction": "forward"}]), backward))
    assert [record.direction for record in gpu.records] == ["forward", "forward", "backward"]
    assert gpu.records[2].time_us == 400.0
    # one pass may be there without the other
    (tmp_path / "ssd_forward.json").unlink()
    assert [record.direction for record in read_folder(tmp_path).records] == ["backward"]


@pytest.mark.parametrize("direction", [None, "forward", "both"])
def test_a_record_in_the_file_of_the_other_pass_is_named(tmp_path: Path, direction: str | None) -> None:
    record = RECORD if direction is None else RECORD | {"direction": direction}
    with pytest.raises(RecordError, match=r"ssd_backward\.json: the direction of record 0 .* must be 'backward'"):
        read_folder(write_backward(write(tmp_path, [RECORD]), record))
    with pytest.raises(RecordError, match=r"ssd_forward\.json: the direction of record 1 is 'backward'"):
        read_folder(write(tmp_path, [RECORD, RECORD | {"direction": "backward"}]))


def test_a_root_is_read_folder_by_folder(tmp_path: Path) -> None:
    write(tmp_path / "sm90_h200", [RECORD])
    write(tmp_path / "sm80_a100", None, IDENTITY | {"arch": "sm80", "name": "A100"})
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert [(gpu.name, len(gpu.records)) for gpu in read_root(tmp_path)] == [("A100", 0), ("NVIDIA H200", 1)]
    assert [gpu.name for gpu in read_root(tmp_path / "sm90_h200")] == ["NVIDIA H200"]
    assert read_root(tmp_path / "absent") == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{} {}", "\udcff"])
@pytest.mark.parametrize("file", ["gpu.json", "ssd_forward.json", "ssd_backward.json"])
def test_a_broken_file_is_named_and_kept(tmp_path: Path, file: str, text: str) -> None:
    path = write(tmp_path / "sm90_h200", [RECORD]) / file
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(RecordError, match=f"sm90_h200/{file}"):
        read_root(tmp_path)
    assert path.read_bytes() == before


def test_another_schema_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [RECORD], IDENTITY | {"schema": 2})
    with pytest.raises(RecordError, match=r"gpu.json has schema 2; this version reads 1"):
        read_folder(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, None)
    (tmp_path / "gpu.json").unlink()
    with pytest.raises(RecordError, match=r"cannot read .*gpu.json"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("problem",), None, "'problem' of record 1"),
        (("problem", "dstate"), "128", "'dstate' of record 1 is '128'; it must be int"),
        (("problem", "batch"), True, "'batch' of record 1 is True"),
        (("problem", "seqlen"), 0, "size of 0"),
        (("problem", "dtype"), 16, "'dtype' of record 1"),
        (("config",), [], "'config' of record 1"),
        (("config", "schedule"), None, "'schedule' of record 1"),
        (("config", "kernels"), None, "'kernels' of record 1"),
        (("config", "kernels", "single_pass"), 3, "'single_pass' of record 1"),
        (("provenance",), "guessed", "'guessed'; it must be 'measured' or 'predicted'"),
        (("time_us",), -1.0, "time_us of record 1 is -1.0"),
        (("time_us",), float("nan"), "time_us of record 1 is nan"),
        (("time_us",), "fast", "'time_us' of record 1 is 'fast'; it must be int or float"),
    ],
)
def test_each_wrong_field_is_named(tmp_path: Path, place: tuple[str, ...], value, message: str) -> None:
    record = copy.deepcopy(RECORD)
    *outer, last = place
    target = record
    for key in outer:
        target = target[key]
    target[last] = value
    with pytest.raises(RecordError) as caught:
        read_folder(write(tmp_path, [RECORD, record]))
    assert message in str(caught.value) and "ssd_forward.json" in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    record = {key: value for key, value in RECORD.items() if key != "time_us"}
    with pytest.raises(RecordError, match="'time_us' of record 0 is missing"):
        read_folder(write(tmp_path, [record]))
    with pytest.raises(RecordError, match="record 0 is a list"):
        read_folder(write(tmp_path, [[]]))
