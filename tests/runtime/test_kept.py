"""What one process compiled the next one finds in Triton's cache, without Triton's hash of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton import knobs  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from ssdgen.mamba2_ops import kept, precompiled  # noqa: E402
from ssdgen.mamba2_ops.kernels import state_passing  # noqa: E402
from tests.runtime.test_precompiled import _Driver, _no_compiler, found, launch  # noqa: E402

pytestmark = pytest.mark.skipif(
    not hasattr(state_passing.state_passing, "device_caches"), reason="kernels are interpreted in this process"
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with an H200, no pack, and nothing in Triton's cache.  -> the cache"""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(driver, "_active", _Driver(90))
    monkeypatch.setattr(precompiled, "_holders", lambda: ())
    monkeypatch.setattr(precompiled.packs, "installed", lambda: ())
    _next_process(monkeypatch)
    yield tmp_path / "triton"
    precompiled._found.clear()
    precompiled._kept.clear()


def _next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in memory."""
    precompiled._found.clear()
    precompiled._kept.clear()
    monkeypatch.setattr(state_passing.state_passing, "device_caches", {0: ({}, "and more")})


def _compile(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """What Triton does at a launch, up to the launch."""
    it = launch(**options)
    source, chosen = precompiled.source_of(it.kernel, it.args, it.options, driver.active.get_current_target())
    made = triton.compile(source, target=driver.active.get_current_target(), options=chosen.__dict__)
    precompiled.keep(it.kernel, it.args, it.options, made)
    return made


def test_the_next_process_finds_what_this_one_compiled(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(launch()) is None
    made = _compile(monkeypatch)
    _next_process(monkeypatch)
    monkeypatch.setattr("triton.compiler.compile", _no_compiler)
    monkeypatch.setattr("triton.runtime.cache.triton_key", _no_compiler)
    again = found(launch())
    assert again.asm["cubin"] == made.asm["cubin"] and again.metadata == made.metadata and again.name == made.name
    assert found(launch(nheads=32)) is again
    assert precompiled.counts() == {"loaded": 0, "missed": 0}


def test_another_launch_is_not_found(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(monkeypatch)
    for other in (launch(torch.bfloat16), launch(nheads=17), launch(num_warps=8)):
        assert found(other) is None
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_active", _Driver(80))
        assert found(launch()) is None
    with monkeypatch.context() as patch:
        patch.setattr(precompiled, "_digest", lambda file: "of a kernel that somebody edited")
        assert found(launch()) is None
    assert found(launch()) is not None


def test_another_build_of_the_compiler_compiles(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Triton, though its major and minor version are the same, or of ptxas."""
    _compile(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(triton, "__version__", f"{triton.__version__}+local")
        assert found(launch()) is None
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_PTXAS_PATH", "/opt/ptxas")
        assert found(launch()) is None
    assert found(launch()) is not None


def test_what_triton_has_in_memory_is_left_to_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _compile(monkeypatch)
    monkeypatch.setattr(state_passing.state_passing, "device_caches", {0: ({"some form": made}, "and more")})
    assert found(launch()) is None


def test_a_cache_with_less_in_it_is_no_error(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _compile(monkeypatch)
    (cubin,) = (Path(path) for name, path in made.metadata_group.items() if name.endswith(".cubin"))
    cubin.unlink()
    _next_process(monkeypatch)
    assert found(launch()) is None
    # Triton's own list lies beside the files; ours is alone
    lists = machine.glob("*/__grp__state_passing.json")
    (group,) = (path for path in lists if len(list(path.parent.iterdir())) == 1)
    group.write_text("{")
    assert found(launch()) is None


def test_a_cache_that_cannot_be_written_is_tritons_to_complain_of(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(kept, "_manager", full)
    _compile(monkeypatch)
    assert found(launch()) is None


@pytest.mark.parametrize("variable", ["SSDGEN_NO_CUBINS", "TRITON_ALWAYS_COMPILE", "DISABLE_LLVM_OPT"])
def test_nothing_is_kept_where_the_user_looks_on(machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(variable, "1")
        _compile(patch)
    _next_process(monkeypatch)
    assert found(launch()) is None


def test_a_hook_of_the_compiler_has_it_compile(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(monkeypatch)
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **_: False)
    assert found(launch()) is None
