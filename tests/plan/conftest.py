"""What takes longest is made once: the same kernels are lowered for many tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest

from ssdgen.plan.schedules import groups, passing, prepare, reverse, scan, states, steps, walk


@pytest.fixture(autouse=True, scope="session")
def _lowered_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (groups, passing, prepare, reverse, scan, states, steps, walk):
            patch.setattr(module, "kernel", lru_cache(maxsize=None)(module.kernel))
        yield
