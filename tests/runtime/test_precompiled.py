"""Compiled kernels of a pack stand in for the compiler, if they are those of this very launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia import driver as nvidia  # noqa: E402
from triton.runtime import build as triton_build  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from ssdgen import gpus  # noqa: E402
from ssdgen.mamba2_ops import packs, precompiled  # noqa: E402
from ssdgen.mamba2_ops.errors import PackError  # noqa: E402
from ssdgen.mamba2_ops.kernels import state_passing  # noqa: E402
from ssdgen.mamba2_ops.launching import Launch  # noqa: E402
from ssdgen.pack import install, wheel  # noqa: E402
from ssdgen.tune import host, precompile  # noqa: E402
from tests.pack import made  # noqa: E402

H200 = gpus.find("h200")


def launch(dtype: torch.dtype = torch.float32, nheads: int = 16, **options: Any) -> Launch:
    tensor = torch.empty(1, 4, nheads, 64, dtype=dtype, device="meta")
    names = {"nheads": nheads, "nsegments": 4, "state_size": 64, "BLOCK": 64, "HAS_ENTERING": False}
    pointers = dict.fromkeys(("summary_ptr", "total_ptr"), tensor) | {"initial_states_ptr": None}
    args = {**pointers, "final_states_ptr": None, **names, "STORE_FINAL": False}
    return Launch(state_passing.state_passing, (1, 1, 1), args, **{"num_warps": 4, "num_stages": 1, **options})


class _Driver:
    """Triton's driver as far as a look-up asks it, for a GPU that is not here."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the one kernel, compiled here for an H200, and Triton's C modules if a compiler is here."""
    folder = tmp_path_factory.mktemp("packed")
    patch = pytest.MonkeyPatch()
    patch.setattr(precompile, "launches", lambda call, gpu: [launch()])
    patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    patch.setenv("TRITON_DISABLE_LINE_INFO", "0")
    compiler = precompile.Compiler(H200, launchers=host.have_compiler())
    code = compiler.compile(None, 0)  # type: ignore[arg-type]
    patch.undo()
    drivers = {precompiled.triton_version(): precompile.driver_module()} if host.have_compiler() else {}
    files = made.files(code=(code,), drivers=drivers)
    return made.put(folder, wheel.write(made.NAME, made.VERSION, made.TAG, files))


@pytest.fixture
def site(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pack, installed, on a machine that has an H200 and no compiler."""
    place = tmp_path / "site"
    install.unpack(wheel.read(packed), place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("triton.compiler.compile", _no_compiler)
    monkeypatch.setattr(driver, "_active", _Driver(90))
    precompiled.forget()
    yield place / made.FOLDER
    precompiled.forget()


def _no_compiler(*_: Any, **__: Any) -> None:
    raise AssertionError("the compiler was called")


def found(it: Launch) -> Any:
    return precompiled.find(it.kernel, it.args, it.options)


pytestmark = pytest.mark.skipif(
    not hasattr(state_passing.state_passing, "device_caches"), reason="kernels are interpreted in this process"
)


def test_a_launch_finds_its_kernel_without_a_compiler(site: Path) -> None:
    compiled = found(launch())
    ((key, entry),) = packs.installed()[0].manifest["code"].items()
    assert compiled.hash == key and compiled.name == "state_passing"
    assert compiled.asm["cubin"] == (site / entry["cubin"]).read_bytes() and compiled.metadata.num_warps == 4
    assert compiled.metadata.target == GPUTarget("cuda", 90, 32)
    assert found(launch()) is compiled and precompiled.counts() == {"loaded": 1, "missed": 0}


def test_sizes_that_are_specialised_alike_share_a_kernel(site: Path) -> None:
    assert found(launch(nheads=32)) is found(launch())


@pytest.mark.parametrize(
    "other", [launch(torch.bfloat16), launch(nheads=1), launch(nheads=17), launch(num_warps=8)], ids=lambda each: ""
)
def test_another_launch_is_compiled(site: Path, other: Launch) -> None:
    assert found(other) is None and precompiled.counts() == {"loaded": 0, "missed": 1}


def test_another_architecture_text_or_triton_is_compiled(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_active", _Driver(80))
        assert found(launch()) is None
    for digest in ("of a kernel that somebody edited", None):
        with monkeypatch.context() as patch:
            patch.setattr(precompiled, "_digest", lambda file, digest=digest: digest)
            assert found(launch()) is None
    assert found(launch()) is not None
    monkeypatch.setattr(triton, "__version__", "3.8.0")
    precompiled.forget()
    assert found(launch()) is None


def test_the_user_may_ask_for_the_compiler(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    assert found(launch()) is None
    monkeypatch.delenv("TRITON_ALWAYS_COMPILE")
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **_: False)
    assert found(launch()) is None
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", None)
    # would change the code: Triton's own key has it too
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    assert found(launch()) is None
    monkeypatch.delenv("DISABLE_LLVM_OPT")
    assert found(launch()) is not None
    monkeypatch.setenv("SSDGEN_NO_CUBINS", "1")
    precompiled.forget()
    assert found(launch()) is None


@pytest.mark.parametrize("kind", ["cubin", "metadata"])
def test_a_changed_kernel_is_refused(site: Path, kind: str) -> None:
    (entry,) = packs.installed()[0].manifest["code"].values()
    path = site / entry[kind]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(PackError, match="is not what the manifest of h200 says"):
        found(launch())


def test_the_files_name_no_path_of_the_machine_that_built_them(site: Path) -> None:
    home = str(Path(precompiled.__file__).parents[2]).encode()
    triton_home = str(Path(triton.__file__).parent).encode()
    for path in site.rglob("*"):
        if path.is_file():
            assert home not in path.read_bytes() and triton_home not in path.read_bytes(), path


@pytest.mark.skipif(not host.have_compiler(), reason="no C compiler here")
def test_triton_finds_its_c_modules_built(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton itself does before its first launch, with a loader that needs no GPU's library."""
    compiled = found(launch())
    monkeypatch.setattr(triton_build, "_build", _no_compiler)
    monkeypatch.setattr(triton_build, "_load_module_from_path", lambda name, path: (name, Path(path).read_bytes()[:4]))
    text = Path(nvidia.dirname, "driver.c").read_text()
    assert triton_build.compile_module_from_src(text, host.DRIVER) == (host.DRIVER, b"\x7fELF")
    if hasattr(nvidia, "make_launcher"):
        meta = compiled.metadata.tensordesc_meta
        text = nvidia.make_launcher(compiled.src.constants, compiled.src.signature, meta)
        assert triton_build.compile_module_from_src(text, host.LAUNCHER) == (host.LAUNCHER, b"\x7fELF")
