"""What the pages tell a reader to do works, and gives what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import pages


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    assert pages.run(pages.ROOT / "docs" / "tutorial.md", tmp_path) > 15
