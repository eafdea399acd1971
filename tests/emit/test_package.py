"""The package that is checked in is the one that is emitted, and a package runs alone."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sympy

from ssdgen.emit import fingerprint
from ssdgen.pack import tree
from ssdgen.plan import catalogue, space
from ssdgen.plan.problem import Problem
from ssdgen.spec.layer import Layer
from ssdgen.spec.masks import CONSTANT, DT, A, MaskFamily
from ssdgen.tune import inputs
from tests.emit import sources

ROOT = Path(__file__).resolve().parents[2]
CHECKED_IN = ROOT / "ssdgen" / "mamba2_ops"


def test_regenerating_gives_the_bytes_that_are_checked_in() -> None:
    """After a change that was meant: `ssdgen emit --out ssdgen/mamba2_ops`, and read the diff."""
    texts = sources.package()
    there = {
        path.relative_to(CHECKED_IN).as_posix(): path.read_bytes()
        for path in CHECKED_IN.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(there) == sorted(texts)
    different = [path for path, text in texts.items() if there[path] != text.encode()]
    assert not different


def test_the_runtime_is_copied_unchanged() -> None:
    texts = sources.package()
    for path in (ROOT / "ssdgen" / "runtime").glob("*.py"):
        if path.name != "__init__.py":
            assert texts[path.name] == path.read_text()


def test_the_manifest_says_what_it_holds() -> None:
    manifest = json.loads(sources.package()["manifest.json"])
    assert manifest["fingerprint"] == fingerprint.of_package()
    assert manifest["layer"] == {"family": "ssd", "layout": "multi-input"}
    assert manifest["space"] == space.fingerprint()
    other = json.loads(sources.package(Layer(family=CONSTANT))["manifest.json"])
    assert other["layer"]["family"] == "constant" and other["fingerprint"] != manifest["fingerprint"]


def consumers(texts: dict[str, str]) -> set[str]:
    """The kernels of a package that are specialised by warps."""
    return {Path(path).stem for path in texts if "consumer" in path}


def consumers_of(n_tiles: int, *p_tiles: int) -> set[str]:
    """Kernels with so many tiles of dstate for a consumer; what adds up heads has one, and so many of headdim.

    The walk back has twice as many, half as wide.
    """
    walks = (*catalogue.walks(True), *catalogue.walks(False), *catalogue.keeping())
    forward = {shape.name for shape in walks if shape.consumers}
    found = {name for name in forward | {*catalogue.SPECIALISED} if not name.startswith(("reverse", "group"))}
    found = {name for name in found if ("_2n_" in name) == (n_tiles == 2)}
    found |= {name for name in catalogue.SPECIALISED if name.startswith(f"reverse_walk_{2 * n_tiles}n")}
    groups = {1: "group_gradients_blocks", 2: "group_gradients_2p_blocks"}
    return found | {f"{groups[tiles]}_{count}consumers" for tiles in p_tiles for count in (2, 3)}


def test_sizes_leave_kernels_out() -> None:
    small, whole = sources.package(headdim=64, dstate=128), sources.package()
    assert set(small) < set(whole)
    two = [path for path in small if "_2n" in path or "_2p" in path]
    assert two == [f"kernels/reverse_walk_2n_blocks_{way}2consumers.py" for way in ("", "left_")]
    assert consumers(small) == consumers_of(1, 1)
    odd = sources.package(headdim=80, dstate=96)
    assert "kernels/single_pass_2n_2p.py" in odd and "kernels/single_pass_2n.py" in odd
    # the tiles of consumers are equal: 96 is one, and above 128 there are two
    assert consumers(odd) == consumers_of(1, 2)
    assert consumers(sources.package(headdim=64, dstate=200)) == consumers_of(2, 1)
    assert consumers(sources.package(headdim=64)) == consumers_of(1, 1) | consumers_of(2, 1)
    assert consumers(whole) == consumers_of(1, 1, 2) | consumers_of(2)
    with pytest.raises(ValueError, match="at least 1"):
        sources.package(headdim=0)
    with pytest.raises(ValueError, match="10000"):
        sources.package(dstate=10000)


@pytest.mark.parametrize("schedule", space.SCHEDULES)
def test_sizes_that_were_left_out_are_named(schedule: str, tmp_path: Path) -> None:
    package = sources.imported(sources.package(headdim=64, dstate=128), tmp_path, f"fixed_{schedule}")
    launcher = importlib.import_module(f"{package.__name__}.launchers.forward")
    config = space.minimal(schedule, Problem(1, 1024, 2, 64, 96))
    given = inputs.random(Problem(1, 1024, 2, 64, 96), "meta", 0)
    options = dict.fromkeys(("z", "initial_states", "seq_idx", "cu_seqlens", "state_dtype"))
    with pytest.raises(package.OptionError, match="headdim 64 and dstate 96"):
        launcher.launches(
            config, *given.operands(), **given.options(), **options, dt_limit=(0.0, 1.0), final_states=False
        )


def test_the_chunk_is_that_of_the_default() -> None:
    before, after = sources.package(), sources.package(chunk=16)
    assert set(before) == set(after)
    assert [path for path in before if before[path] != after[path]], "chunk=16 changes nothing"


def test_a_formula_without_a_form_in_torch_is_refused() -> None:
    family = MaskFamily("tanh", -DT * sympy.tanh(A), "no form for tanh")
    with pytest.raises(ValueError, match="tanh"):
        sources.package(Layer(family=family))


# a package in a process that has torch and triton, and nothing of what it was made with
ALONE = """
import sys
sys.path.insert(0, {folder!r})
import torch

try:
    import triton
except ImportError:
    pass

BLOCKED = {{"sympy", "jinja2", "optuna", "ssdgen", "mamba2_ops", "click", "rich", "hypothesis", "pytest"}}
for name in [name for name in sys.modules if name.split(".")[0] in BLOCKED]:
    del sys.modules[name]


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is not to be imported", name=name)


sys.meta_path.insert(0, Blocker())

import alone

assert alone.__file__.startswith({folder!r})
torch.manual_seed(0)
b, l, h, p, n = 1, 40, 2, 16, 16
x, dt = torch.randn(b, l, h, p), torch.rand(b, l, h)
A, B, C, D = -torch.rand(h) - 0.1, torch.randn(b, l, 1, n), torch.randn(b, l, 1, n), torch.randn(h)
y, final = alone.mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=64, D=D, return_final_states=True)

state, ys = torch.zeros(b, h, p, n, dtype=torch.float64), []
for t in range(l):
    decay = (dt[:, t] * A).double().exp()[..., None, None]
    state = decay * state + torch.einsum("bh,bhp,bn->bhpn", dt[:, t].double(), x[:, t].double(), B[:, t, 0].double())
    ys.append(torch.einsum("bhpn,bn->bhp", state, C[:, t, 0].double()) + D[:, None] * x[:, t])
# not torch.testing, which imports sympy
assert (y - torch.stack(ys, 1)).abs().max() < 1e-4 and (final - state).abs().max() < 1e-4

print("ran", sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED))
"""


@pytest.mark.parametrize("interpreted", [False, True], ids=["torch", "kernels"])
def test_runs_alone(interpreted: bool, tmp_path: Path) -> None:
    """With torch and triton, under a name of its own, in a folder of its own."""
    if interpreted:
        pytest.importorskip("triton")
    tree.write(sources.package(headdim=16, dstate=16), tmp_path / "alone")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSDGEN", "TRITON"))}
    env |= {"TRITON_INTERPRET": "1", "SSDGEN_FORCE_TRITON": "1"} if interpreted else {}
    code = ALONE.format(folder=str(tmp_path))
    if interpreted:
        # the PyTorch path must not be what runs
        code = code.replace("torch.manual_seed(0)", "alone.fallback.forward = None; torch.manual_seed(0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "ran []"


def test_two_packages_live_side_by_side(tmp_path: Path) -> None:
    """Two copies, of two layers, in one process: neither knows of the other."""
    import torch

    ssd = sources.imported(sources.package(headdim=16, dstate=16), tmp_path, "ssd_side_by_side")
    constant = sources.imported(
        sources.package(Layer(family=CONSTANT), headdim=16, dstate=16), tmp_path, "constant_side_by_side"
    )
    assert ssd.SsdError is not constant.SsdError
    x, dt, B = torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2), torch.randn(1, 20, 1, 16)
    assert ssd.mamba_chunk_scan_combined(x, dt, -torch.rand(2), B, B, 64).shape == x.shape
