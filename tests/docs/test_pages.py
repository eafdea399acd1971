"""What the pages tell a reader to do works, and gives what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import pages

DOCS = pages.ROOT / "docs"
# how many blocks and commands of a page run at least: a fence of another language would leave one out in silence
RUN = {
    "tutorial.md": 18,
    "add_a_mask_family.md": 8,
    "add_a_schedule.md": 4,
    "install.md": 8,
    "index.md": 1,
    "tune_for_my_gpu.md": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert pages.run(DOCS / name, tmp_path) >= RUN[name]
