"""The wheel works outside the checkout: what is in it, what importing it loads, the CPU path, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# one worker builds the wheel once (with --dist loadgroup)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

CPU_CALL = """
import torch
from mamba2_ops import mamba_chunk_scan_combined

torch.manual_seed(0)
b, L, H, P, N = 2, 37, 2, 8, 4
x, B, C = torch.randn(b, L, H, P), torch.randn(b, L, 1, N), torch.randn(b, L, 1, N)
dt, A = torch.rand(b, L, H), -torch.rand(H)
y, final = mamba_chunk_scan_combined(x, dt, A, B, C, 16, return_final_states=True)
state = torch.zeros(b, H, P, N)
for t in range(L):
    state = (dt[:, t] * A).exp()[..., None, None] * state
    state = state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
    torch.testing.assert_close(y[:, t], (state * C[:, t, :, None]).sum(-1), rtol=1e-4, atol=1e-4)
torch.testing.assert_close(final, state, rtol=1e-4, atol=1e-4)
"""

LOADED = """
import sys
print("loaded:", *sorted({"sympy", "jinja2", "optuna", "click", "rich", "triton"} & set(sys.modules)))
"""

NO_TRITON = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


@dataclass(frozen=True)
class Installed:
    """A fresh environment that holds the wheel; it borrows every other package from the one that runs the tests."""

    wheel: Path
    python: Path
    folder: Path  # where commands run: nothing of the checkout is near

    def run(self, *command: str | Path) -> str:
        """Standard output of a command that must succeed."""
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSDGEN_", "TRITON_"))
        }
        clean["XDG_CACHE_HOME"] = str(self.folder / "cache")
        done = subprocess.run(
            [str(part) for part in command], cwd=self.folder, env=clean, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def script(self, *parts: str) -> str:
        """Standard output of Python code that must succeed."""
        return self.run(self.python, "-c", "\n".join(textwrap.dedent(part) for part in parts))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # a path in a .pth file is searched after the wheel, and .pth files in it are not read: no editable install gets in
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "work").mkdir()
    return Installed(wheel, python, folder / "work")


def test_wheel_holds_the_data_and_nothing_else(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    expected = {"mamba2_ops/__init__.py", "ssdgen/mamba2_ops/__init__.py", "ssdgen/__init__.py"}
    for folder in ("templates", "tuned"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files, f"{folder}/ is empty"
        expected |= {f"ssdgen/_data/{folder}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert not expected - names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ssdgen", "mamba2_ops"}
    assert not [name for name in names if "_alias" in name or name.endswith(".pyc")]


def test_import_is_light_and_one_module(installed: Installed) -> None:
    where = installed.script(
        """
        import mamba2_ops, ssdgen.mamba2_ops
        assert mamba2_ops is ssdgen.mamba2_ops
        print(mamba2_ops.__file__)
        """,
        LOADED,
    )
    assert where.endswith("loaded:\n"), where
    assert str(installed.python.parent.parent) in where
    assert str(ROOT) not in where


def test_cpu_call(installed: Installed) -> None:
    loaded = installed.script(CPU_CALL, LOADED).split()[1:]
    # torch itself may load these two once an operator runs
    assert set(loaded) <= {"sympy", "triton"}


def test_cpu_call_without_triton(installed: Installed) -> None:
    installed.script(NO_TRITON, CPU_CALL)


def test_command_line(installed: Installed) -> None:
    ssdgen = installed.python.parent / "ssdgen"
    assert "tune" in installed.run(ssdgen, "--help")
    installed.run(ssdgen, "emit", "--out", "emitted")
    ours = ROOT / "ssdgen" / "mamba2_ops"
    emitted = next(path.parent for path in (installed.folder / "emitted").rglob("kernels"))
    kernels = sorted(path.name for path in (ours / "kernels").glob("*.py"))
    assert kernels
    for name in kernels:
        assert (emitted / "kernels" / name).read_bytes() == (ours / "kernels" / name).read_bytes(), name
