"""What every test shares: the golden-file flag, one seed per test, and who is skipped on this machine."""

from __future__ import annotations

import os
import random
import zlib

import pytest

# set before torch is imported: several workers on few cores must not each start a thread per core
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

BASE_SEED = int(os.environ.get("SSDGEN_TEST_SEED", "0"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")


def pytest_report_header() -> str:
    return f"ssdgen: SSDGEN_TEST_SEED={BASE_SEED} (set it to draw other random inputs)"


def _have_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_gpu = [item for item in items if "gpu" in item.keywords]
    # asked only when something needs it: importing torch takes longer than all tests of spec
    if needs_gpu and not _have_cuda():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    if os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            if "interpreter" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 from the start of the process"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when this run rewrites golden files (`make golden`)."""
    return request.config.getoption("--update-golden")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number of this test's own: the same in every run and in any order, another for another SSDGEN_TEST_SEED."""
    value = (zlib.crc32(request.node.nodeid.encode()) + BASE_SEED) % 2**31
    print(f"seed {value}")
    return value


@pytest.fixture(autouse=True)
def _give_memory_back(request: pytest.FixtureRequest):
    """Several processes share a GPU: none keeps memory of a test that is over."""
    yield
    if "gpu" in request.keywords and _have_cuda():
        import torch

        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _seed_global_generators(request: pytest.FixtureRequest) -> None:
    """Seed the generators that a test may use without asking: `random`, and NumPy's and torch's if they are loaded."""
    import sys

    value = (zlib.crc32(request.node.nodeid.encode()) + BASE_SEED) % 2**31
    random.seed(value)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(value)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(value)
