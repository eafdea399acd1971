"""The names of other packages: what they resolve to, beside a package that is installed, and back again."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssdgen.runtime import compat, conv, decode, interface, mamba2, norm, split


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No names are left behind, whatever a test did."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in compat.VERSIONS}
    finders = list(sys.meta_path)
    yield
    compat.uninstall()
    assert {name: m for name, m in sys.modules.items() if name.split(".")[0] in compat.VERSIONS} == before
    assert sys.meta_path == finders


WHERE = {
    ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"): interface.mamba_chunk_scan_combined,
    ("mamba_ssm.ops.triton.ssd_combined", "mamba_split_conv1d_scan_combined"): split.mamba_split_conv1d_scan_combined,
    ("mamba_ssm.ops.triton.selective_state_update", "selective_state_update"): decode.selective_state_update,
    ("mamba_ssm.ops.triton.layernorm_gated", "RMSNorm"): norm.RMSNorm,
    ("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn"): norm.rmsnorm_fn,
    ("mamba_ssm.ops.triton.layernorm_gated", "layernorm_fn"): norm.layernorm_fn,
    ("mamba_ssm.modules.mamba2", "Mamba2"): mamba2.Mamba2,
    ("mamba_ssm", "Mamba2"): mamba2.Mamba2,
    ("causal_conv1d", "causal_conv1d_fn"): conv.causal_conv1d_fn,
    ("causal_conv1d", "causal_conv1d_update"): conv.causal_conv1d_update,
    ("causal_conv1d.causal_conv1d_varlen", "causal_conv1d_varlen_states"): conv.causal_conv1d_varlen_states,
}


def test_the_names_are_ours_and_then_gone() -> None:
    with compat.install() as installed:
        assert compat.install() is installed
        for (module, name), ours in WHERE.items():
            assert getattr(importlib.import_module(module), name) is ours
        import mamba_ssm  # pyright: ignore[reportMissingImports]

        # as a path through attributes, as transformers looks for them, and as importlib does
        assert mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined is interface.mamba_chunk_scan_combined
        assert importlib.util.find_spec("mamba_ssm.ops").name == "mamba_ssm.ops"
        assert mamba_ssm.__version__ == compat.VERSIONS["mamba_ssm"]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    assert "mamba_ssm" not in sys.modules and "causal_conv1d" not in sys.modules
    compat.uninstall()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mamba_ssm of its own, whose __init__ fails as it does without its compiled part."""
    files = {
        "__init__.py": "raise ImportError('selective_scan_cuda')",
        "ops/__init__.py": "",
        "ops/triton/__init__.py": "",
        "ops/triton/ssd_combined.py": "raise ImportError('triton')",
        "ops/other.py": "found = True",
    }
    for name, text in files.items():
        path = tmp_path / "mamba_ssm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("mamba_ssm.ops.other", None)


def test_beside_a_package_that_is_installed(package: None) -> None:
    """Its other modules are found; what is ours is ours, and nothing of it runs."""
    with compat.install():
        assert importlib.import_module("mamba_ssm.ops.other").found
        found = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        assert found.mamba_chunk_scan_combined is interface.mamba_chunk_scan_combined
        sys.modules.pop("mamba_ssm.ops.other")
    with pytest.raises(ImportError, match="selective_scan_cuda"):
        importlib.import_module("mamba_ssm")


def test_a_package_that_is_loaded_gets_its_functions_back(package: None, tmp_path: Path) -> None:
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("__version__ = '2.2.2'")
    (tmp_path / "mamba_ssm" / "ops" / "triton" / "ssd_combined.py").write_text("mamba_chunk_scan_combined = 'theirs'")
    importlib.invalidate_caches()
    theirs = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    try:
        with compat.install():
            assert theirs.mamba_chunk_scan_combined is interface.mamba_chunk_scan_combined
            assert importlib.import_module("mamba_ssm.modules.mamba2").Mamba2 is mamba2.Mamba2
            assert sys.modules["mamba_ssm"].__version__ == "2.2.2"
        assert theirs.mamba_chunk_scan_combined == "theirs" and not hasattr(theirs, "mamba_split_conv1d_scan_combined")
        assert "mamba_ssm.modules" not in sys.modules and not hasattr(sys.modules["mamba_ssm"], "modules")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
