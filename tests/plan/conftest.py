"""What takes longest is made once: the same kernels are lowered for many tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest

from ssdgen.plan.schedules import groups, passing, prepare, reverse, scan, states, steps, walk

MODULES = (groups, passing, prepare, reverse, scan, states, steps, walk)
ONCE = {module: lru_cache(maxsize=None)(module.kernel) for module in MODULES}


@pytest.fixture(autouse=True, scope="module")
def _lowered_once() -> Iterator[None]:
    """While a module of these tests runs: the tests of emission, in the same process, break descriptions."""
    with pytest.MonkeyPatch.context() as patch:
        for module, kernel in ONCE.items():
            patch.setattr(module, "kernel", kernel)
        yield
