"""Generated packages on disk, and the templates they are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssdgen.pack import templates, tree
from ssdgen.pack.store import StoreError

TEXTS = {"__init__.py": '"""a"""\n', "kernels/one.py": "x = 1\n", "manifest.json": "{}\n"}


def test_writes_all_once_and_then_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "ops"
    assert len(tree.write(TEXTS, folder)) == 3
    assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.*")} == TEXTS
    assert tree.write(TEXTS, folder) == []
    assert tree.write({**TEXTS, "kernels/one.py": "x = 2\n"}, folder) == [folder / "kernels" / "one.py"]


def test_does_not_touch_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("mine = 1\n")
    with pytest.raises(StoreError, match="other files"):
        tree.write(TEXTS, tmp_path)
    assert (tmp_path / "__init__.py").read_text() == "mine = 1\n"
    with pytest.raises(StoreError, match="is a file"):
        tree.write(TEXTS, tmp_path / "__init__.py")


def test_the_templates_are_found() -> None:
    texts = templates.read()
    assert any(name.startswith("kernels/") for name in texts) and all(texts.values())
    with pytest.raises(templates.TemplatesError, match="no_such_folder"):
        templates.data_folder("no_such_folder")
