"""Installed packs: found without running anything of them, and refused if a file is not what the manifest says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ssdgen.pack import install, wheel
from ssdgen.runtime import ladder, packs, select
from ssdgen.runtime.errors import PackError, RecordError
from ssdgen.runtime.match import Gpu
from ssdgen.runtime.problem import Problem
from tests.pack import made

H200 = Gpu("NVIDIA H200", "sm90", 132)
PROBLEM = Problem(8, 2048, 80, 64, 128, 1, "bfloat16")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path, with the small pack installed in it, and no records elsewhere."""
    place = tmp_path / "site"
    install.unpack(wheel.read(made.put(tmp_path)), place)
    monkeypatch.syspath_prepend(str(place))
    for name in ("SSDGEN_TUNED", "SSDGEN_NO_TUNE", "SSDGEN_ASSERT_TUNED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ladder, "PACKAGE", tmp_path / "package")
    select.forget()
    yield place
    select.forget()


def test_an_installed_pack_is_found_and_used_and_nothing_of_it_runs(site: Path) -> None:
    """The sources of the small pack end the process when they are imported."""
    (pack,) = packs.installed()
    assert (pack.name, pack.root) == ("h200", site / made.FOLDER)
    choice = select.choose(PROBLEM, H200)
    assert choice.step == "the installed pack h200" and choice.exact and choice.config == made.CONFIG
    assert not [name for name in sys.modules if name.startswith("ssdgen_pack")]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("tuned/sm90_h200/ssd_forward.json", "{}", "is not what the manifest of h200 says"),
        ("tuned/sm90_h200/ssd_forward.json", None, "misses"),
        ("tuned/sm90_l40/gpu.json", "{}", "is not in the manifest"),
        ("pack.json", "{", "is not JSON"),
        ("pack.json", json.dumps({"kind": "ssdgen pack", "schema": 7}), "schema 7"),
        ("pack.json", None, "names no folder with a pack.json"),
    ],
)
def test_a_changed_pack_is_refused(site: Path, path: str, text: str | None, message: str) -> None:
    changed = site / made.FOLDER / path
    if text is None:
        changed.unlink()
    else:
        changed.parent.mkdir(exist_ok=True)
        changed.write_text(text)
    with pytest.raises(PackError, match=message) as caught:
        select.choose(PROBLEM, H200)
    assert "pip uninstall ssdgen-pack-h200" in str(caught.value)
    assert isinstance(caught.value, RecordError)


@pytest.mark.parametrize("value", ["ssdgen_pack_gone", "json", "os.path", "a.b:c", ""])
def test_an_entry_point_that_is_none_of_ours(value: str) -> None:
    with pytest.raises(PackError, match=r"names no folder with a pack\.json.*none of ssdgen's"):
        packs.root_of("foreign", value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": []}, "lists no files"),
        ({"files": {"../x": "0" * 64}}, "leaves the pack"),
        ({"files": {"x": "0"}}, "no SHA-256"),
        ({"files": {}, "code": {"0" * 64: {"kernel": "k"}}}, "needs kernel, arch"),
        ({"files": {}, "host": {"0" * 64: {"name": "../x.so", "file": "x"}}}, "is no name"),
        ({"files": {}, "host": {"key": {"name": "x.so", "file": "x"}}}, "is no SHA-256"),
    ],
)
def test_manifests_that_nothing_can_rely_on(changed: dict, message: str) -> None:
    problem = packs.problem_with({"kind": packs.KIND, "schema": packs.SCHEMA, **changed})
    assert problem is not None and message in problem


def test_a_manifest_without_end_is_not_read(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "LARGEST_MANIFEST", 10)
    with pytest.raises(PackError, match="larger than 10 bytes"):
        packs.installed()
