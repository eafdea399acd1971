"""Paths of a call with gradients: its operators in eager mode, and launchers that note what they are given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from ssdgen.runtime import fallback, interface, paths, select  # noqa: E402


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call goes through the operators, as in what torch.compile makes."""
    monkeypatch.setattr(interface, "is_compiling", lambda: True)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, SimpleNamespace]]]:
    """Launchers of both passes that compute in PyTorch and note what they were given."""
    calls: list[tuple[str, SimpleNamespace]] = []

    def forward(config, *operands, **options):
        calls.append(("forward", SimpleNamespace(config=config, **options)))
        return fallback.forward(*operands, **options)

    def backward(config, *operands, **options):
        calls.append(("backward", SimpleNamespace(config=config, **options)))
        return fallback.backward(*operands, **options, cu_seqlens=None)

    def never(*given, **options):
        return None

    launchers = ModuleType("ssdgen.runtime.launchers")
    launchers.forward = SimpleNamespace(forward=forward, again=never, MINIMAL={})
    launchers.backward = SimpleNamespace(backward=backward, again=never, MINIMAL_BACKWARD={"minimal": True})
    defaults = ModuleType("ssdgen.runtime.backward_defaults")
    defaults.default_backward = lambda problem, sms, arch: {"chunk": 64}
    monkeypatch.setitem(sys.modules, defaults.__name__, defaults)
    monkeypatch.setitem(sys.modules, "ssdgen.runtime.launchers", launchers)
    monkeypatch.setitem(sys.modules, "ssdgen.runtime.launchers.forward", launchers.forward)
    monkeypatch.setitem(sys.modules, "ssdgen.runtime.launchers.backward", launchers.backward)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    monkeypatch.setattr(paths, "HAVE_TRITON", True)
    monkeypatch.setattr(select, "_backward_configs", {})
    paths.backward_launcher.cache_clear()
    yield calls
    paths.backward_launcher.cache_clear()


@pytest.fixture(params=["function", "operator"])
def path(request: pytest.FixtureRequest) -> str:
    """Both ways to gradients: the function of eager mode, and the operators."""
    request.getfixturevalue("kernels" if request.param == "function" else "operator")
    return request.param
