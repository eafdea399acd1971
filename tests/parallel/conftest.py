"""What all ranks found, in one start of four processes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel import halos, mistakes, models, processes, shards


@pytest.fixture(scope="session")
def found() -> dict[str, list[Any]]:
    """{case: what each of its ranks found}, a Raised where a case raised an exception."""
    return processes.start(4, {**shards.CASES, **halos.CASES, **models.CASES, **mistakes.CASES})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/parallel" in item.path.as_posix():
            # the fixture is made once in a worker
            item.add_marker(pytest.mark.xdist_group("parallel"))
