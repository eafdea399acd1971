"""A pack from the command line into a fresh environment, where it alone gives `import mamba2_ops` and its records."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pack")]

USE = """
import sys
import mamba2_ops
from mamba2_ops.match import Gpu
from mamba2_ops.problem import Problem
from mamba2_ops.select import choose
print(mamba2_ops.__file__)
choice = choose(Problem(8, 2048, 80, 64, 128, 1, "bfloat16"), Gpu("NVIDIA H100 80GB HBM3", "sm90", 132))
print(choice.step, choice.exact)
print("ssdgen" in sys.modules)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh environment, which borrows every package but ssdgen from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("pack")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(home: Path, *command: str | Path, checkout: bool = False, fails: bool = False) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSDGEN_", "TRITON_"))}
    clean |= {"XDG_CACHE_HOME": str(home / "cache")} | ({"PYTHONPATH": str(ROOT)} if checkout else {})
    python = home / "env" / "bin" / "python"
    done = subprocess.run([python, *command], cwd=home, env=clean, capture_output=True, text=True, timeout=240)
    assert (done.returncode == 2) if fails else (done.returncode == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_build_verify_install_use(home: Path) -> None:
    cli = ROOT / "cli.py"
    for out in ("one", "two"):
        run(home, cli, "pack", "build", "--gpu", "h100", "--no-cubins", "--out", out, checkout=True)
    (wheel,), (again,) = ((home / out).glob("*.whl") for out in ("one", "two"))
    assert wheel.read_bytes() == again.read_bytes() and wheel.name == again.name
    assert "are what the manifest says" in run(home, cli, "pack", "verify", wheel, checkout=True)

    broken = again.read_bytes()
    with zipfile.ZipFile(again, "a") as archive:
        archive.writestr("sitecustomize.py", "raise SystemExit('run')")
    assert "'sitecustomize.py' does not belong" in run(home, cli, "pack", "install", again, checkout=True, fails=True)
    again.write_bytes(broken[:-100])
    assert "not a zip file" in run(home, cli, "pack", "install", again, checkout=True, fails=True)
    run(home, cli, "pack", "install", wheel, checkout=True)
    listed = run(home, cli, "pack", "list", checkout=True)
    assert listed.startswith("h100 0.1.0") and "no compiled kernels" in listed
    run(home, cli, "pack", "verify", "h100", "--no-numbers", checkout=True)
    path, step, has_ssdgen = run(home, "-c", USE).splitlines()
    assert path.endswith("ssdgen_pack_h100/sources/mamba2_ops/__init__.py") and str(home) in path
    assert step == "the installed pack h100 True" and has_ssdgen == "False"

    (record,) = (home / "env" / "lib").glob("python*/site-packages/ssdgen_pack_h100/tuned/*/ssd_forward.json")
    record.write_text(record.read_text().replace("predicted", "predicted "))
    said = run(home, cli, "pack", "verify", "h100", "--no-numbers", checkout=True, fails=True)
    assert "is not what the manifest of h100 says" in said and "Traceback" not in said


def test_compiled_kernels_are_the_same_in_every_process(tmp_path: Path) -> None:
    """With other hashes of strings, and nothing in Triton's cache."""
    script = "\n".join(
        (
            "import hashlib",
            "from tests.runtime.test_precompiled import H200, launch",
            "from ssdgen.tune import host, precompile",
            "precompile.launches = lambda call, gpu: [launch()]",
            "code = precompile.Compiler(H200, host.have_compiler()).compile(None, 0)",
            "parts = (code.cubin, code.metadata, code.launcher.data if code.launcher else b'', code.key.encode())",
            "print(*(hashlib.sha256(part).hexdigest() for part in parts))",
        )
    )
    said = []
    for seed in ("1", "2"):
        path = os.pathsep.join((str(ROOT), str(ROOT / "ssdgen" / "_alias")))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path / seed), "TRITON_INTERPRET": "0"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


GPU_USE = """
import hashlib, sys, torch
from mamba2_ops import mamba_chunk_scan_combined
from mamba2_ops.launching import precompiled
torch.manual_seed(0)
b, L, H, P, N = 2, 256, 4, 64, 64
leaf = lambda *s, **k: torch.randn(*s, device="cuda", **k).requires_grad_()
x, B, C = (leaf(b, L, h, d, dtype=torch.bfloat16) for h, d in ((H, P), (1, N), (1, N)))
dt = leaf(b, L, H, dtype=torch.bfloat16)
A = (-torch.rand(H, device="cuda") - 1).requires_grad_()
D, bias = leaf(H), leaf(H)
y = mamba_chunk_scan_combined(x, dt, A, B, C, 64, D=D, dt_bias=bias, dt_softplus=True)
y.backward(torch.ones_like(y))
torch.cuda.synchronize()
data = b"".join(t.detach().float().cpu().numpy().tobytes() for t in (y, *(t.grad for t in (x, dt, A, B, C, D, bias))))
print(hashlib.sha256(data).hexdigest(), *precompiled.counts().values())
"""


@pytest.mark.gpu
def test_a_call_through_a_pack_has_the_bits_of_a_compiled_one(tmp_path: Path) -> None:
    """With empty caches; the pack is of the GPU that is here, and every kernel of the call comes from it."""
    from ssdgen.pack import install, wheel
    from ssdgen.tune import device

    build = ["pack", "build", "--gpu", device.gpu_here().name, "--shapes", "2,256,4,64,64,1", "--name", "here"]
    subprocess.run([sys.executable, ROOT / "cli.py", *build, "--out", tmp_path], check=True, capture_output=True)
    (file,) = tmp_path.glob("*.whl")
    install.unpack(wheel.read(file), tmp_path / "site")
    pack = [tmp_path / "site", tmp_path / "site" / "ssdgen_pack_here" / "sources"]
    said = {}
    for name, path, more in (
        ("compiled", [tmp_path / "site" / "ssdgen_pack_here" / "sources"], {}),
        ("pack", pack, {}),
        ("asked not to", pack, {"SSDGEN_NO_CUBINS": "1"}),
    ):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **more, "SSDGEN_NO_TUNE": "1"}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path / name)}
        done = subprocess.run([sys.executable, "-c", GPU_USE], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout.split()
    assert said["compiled"][0] == said["pack"][0] == said["asked not to"][0]
    loaded, missed = map(int, said["pack"][1:])
    assert loaded >= 4 and missed == 0
    assert said["compiled"][1] == said["asked not to"][1] == "0"


NO_COMPILER = """
import triton.compiler, triton.runtime.cache
def called(*_, **__):
    raise AssertionError("Triton was asked")
triton.compiler.compile = triton.runtime.cache.triton_key = called
"""


@pytest.mark.gpu
def test_the_next_process_does_not_ask_triton_for_its_kernels(tmp_path: Path) -> None:
    """They are found by the key that a pack would have; the results are the same bits."""
    path = os.pathsep.join((str(ROOT / "ssdgen" / "_alias"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path), "SSDGEN_NO_TUNE": "1"}
    said = []
    for before in ("", NO_COMPILER):
        command = [sys.executable, "-c", before + GPU_USE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said[0] == said[1]
