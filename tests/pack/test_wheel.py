"""A pack's file: the same bytes every time, and refused in one line if it is anything else than a pack."""

from __future__ import annotations

import io
import json
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ssdgen.pack import wheel
from ssdgen.pack.wheel import PackFileError, PackNameError
from tests.pack import made

Change = Callable[[dict[str, bytes]], bytes]


def refused(folder: Path, data: bytes) -> str:
    path = made.put(folder, data)
    with pytest.raises(PackFileError) as caught:
        wheel.read(path)
    message = str(caught.value)
    assert str(path) in message and "build or fetch it again" in message
    return message


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    first, second = (wheel.write(made.NAME, made.VERSION, made.TAG, made.files()) for _ in range(2))
    assert first == second
    opened = wheel.read(made.put(tmp_path))
    assert opened.files == {path: data for path, data in made.files().items() if path != "pack.json"}
    assert opened.manifest["provenance"] == {"commit": "0" * 40, "dirty": False}
    assert opened.manifest["validation"][0]["error"] == 0.001 and opened.manifest["gpus"] == ["h200"]


def test_what_is_installed_is_what_the_format_asks_for() -> None:
    """RECORD has a digest of every member but itself, and the search path gets one line that runs nothing."""
    members = made.members()
    listed = [line.split(",")[0] for line in members[f"{made.INFO}/RECORD"].decode().splitlines()]
    assert sorted(listed) == sorted(members)
    assert members[f"{made.FOLDER}.pth"] == b"ssdgen_pack_h200/sources\n"
    assert f"{made.FOLDER}/__init__.py" not in members


def renamed(old: str, new: str) -> Change:
    def change(members: dict[str, bytes]) -> bytes:
        return made.archive({(new if name == old else name): data for name, data in members.items()})

    return change


def with_more(name: str, data: bytes = b"x") -> Change:
    return lambda members: made.archive({**members, name: data})


CUBIN = f"{made.FOLDER}/code/sm90/single_pass_{made.KEY[:16]}.cubin"
BAD: dict[str, tuple[Change, str]] = {
    "a byte of a kernel": (lambda m: made.archive({**m, CUBIN: b"cubim"}), "is not what the manifest says"),
    "a kernel is gone": (renamed(CUBIN, CUBIN + "x"), "in the manifest and not in the pack"),
    "one file more": (with_more(f"{made.FOLDER}/more.py"), "in the pack and not in the manifest"),
    "a package beside it": (with_more("torch/__init__.py"), "does not belong in a pack"),
    "a line that runs": (
        lambda m: made.archive({**m, f"{made.FOLDER}.pth": b"import os\n"}),
        "missing or not as ssdgen writes it",
    ),
    "a script": (with_more(f"{made.INFO}/entry_points.txt", b"[console_scripts]\nx = y:z\n"), "entry_points.txt"),
    "outwards": (with_more(f"{made.FOLDER}/../../up.py"), "leaves the pack"),
    "absolute": (with_more("/etc/passwd"), "leaves the pack"),
    "a drive": (with_more("C:/x"), "leaves the pack"),
    "backslashes": (with_more(f"{made.FOLDER}\\..\\x"), "leaves the pack"),
    "a link": (lambda m: made.archive(m, mode={CUBIN: stat.S_IFLNK}), "is a link"),
    "other letters": (with_more(CUBIN.upper()), "is in it twice"),
    "no manifest": (renamed(f"{made.FOLDER}/pack.json", f"{made.FOLDER}/pick.json"), "has 0 files pack.json"),
    "another kind": (
        lambda m: made.archive({**m, f"{made.FOLDER}/pack.json": b'{"kind": "other"}'}),
        "no manifest of an ssdgen pack",
    ),
    "a later schema": (
        lambda m: made.archive(
            {**m, f"{made.FOLDER}/pack.json": json.dumps({"kind": "ssdgen pack", "schema": 2}).encode()}
        ),
        "schema 2 and this version reads 1",
    ),
    "not JSON": (lambda m: made.archive({**m, f"{made.FOLDER}/pack.json": b"{"}), "Expecting"),
    "cut short": (lambda m: made.archive(m)[:-40], "not a zip file"),
    "no zip": (lambda m: b"#!/bin/sh\n", "not a zip file"),
    "an empty file": (lambda m: b"", "not a zip file"),
}


@pytest.mark.parametrize("what", BAD)
def test_anything_else_is_refused(what: str, tmp_path: Path) -> None:
    change, expected = BAD[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert expected in refused(tmp_path, change(made.members()))


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = made.archive(made.members(), twice=CUBIN)
    assert "is in it twice" in refused(tmp_path, data)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "LARGEST_TOTAL", 100_000)
    assert "would unpack to more than 100000" in refused(tmp_path, with_more("x", bytes(200_000))(made.members()))
    monkeypatch.setattr(wheel, "LARGEST_FILE", 50_000)
    assert "'x' would unpack to more" in refused(tmp_path, with_more("x", bytes(60_000))(made.members()))
    monkeypatch.setattr(wheel, "MOST_FILES", 3)
    assert "a pack has at most 3" in refused(tmp_path, with_more("x")(made.members()))


def test_a_member_that_is_longer_than_it_says_is_refused(tmp_path: Path) -> None:
    """The sizes that the file announces are changed, in both places where it does."""
    data = bytearray(made.archive({"x": bytes(1000)}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.getinfo("x").file_size == 1000
    for at in [i for i in range(len(data)) if data[i : i + 4] == (1000).to_bytes(4, "little")]:
        data[at : at + 4] = (10).to_bytes(4, "little")
    assert "Bad CRC-32" in refused(tmp_path, bytes(data)) or "as long as it says" in refused(tmp_path, bytes(data))


def test_a_changed_pack_that_lists_its_changes_still_holds_no_more_than_a_pack(tmp_path: Path) -> None:
    """Whoever rewrites the manifest can change what is in the pack's folder, and nothing beside it."""
    assert wheel.read(made.put(tmp_path, made.signed(made.members()))).name == "h200"
    members = made.members() | {"sitecustomize.py": b"import os"}
    assert "'sitecustomize.py' does not belong" in refused(tmp_path, made.signed(members))
    members = made.members() | {f"{made.FOLDER}.pth": b"import os; os.abort()\n"}
    assert "not as ssdgen writes it" in refused(tmp_path, made.signed(members))


def test_the_file_says_which_pack_it_is(tmp_path: Path) -> None:
    other = made.put(tmp_path).rename(tmp_path / "ssdgen_pack_h200-9.9-py3-none-any.whl")
    with pytest.raises(PackFileError, match=r"its file name should be 'ssdgen_pack_h200-0\.1\.0-py3-none-any\.whl'"):
        wheel.read(other)
    with pytest.raises(PackFileError, match=r"cannot read .*gone\.whl"):
        wheel.read(tmp_path / "gone.whl")


@pytest.mark.parametrize("name", ["", "H200", "../x", "a-b", "a__b", "1a", "a b"])
def test_names_that_a_pack_cannot_have(name: str) -> None:
    with pytest.raises(PackNameError, match="small letters"):
        wheel.folder_of(name)
