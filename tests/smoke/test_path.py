"""The whole path in one process, within fifteen seconds: description, plan, source, package, call."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what it takes is sympy, once for each kernel of a package
SECONDS = 15

PATH = """
import sys
sys.path.insert(0, {root!r})

from ssdgen.spec import show
from ssdgen.spec.layer import Layer
layer = Layer(skip="head", dt_softplus=True)
assert "diagonal" in show.text(layer, 64)

from ssdgen.plan import space
from ssdgen.plan.problem import Problem
from ssdgen.spec.decompose import chunk_graph
from ssdgen.plan.schedules.walk import Walk, kernel
plan = kernel(layer, Walk())
config = space.minimal("single_pass", Problem(1, 40, 2, 16, 16, 1, "float32"))

from ssdgen.emit import kernel as sources, package
from ssdgen.pack import templates, tree
templates.load()
assert "tl.dot(" in sources.module(plan, chunk_graph(layer))
texts = package.package(runtime=templates.runtime_sources(), headdim=16, dstate=16)
from pathlib import Path
tree.write(texts, Path({folder!r}) / "made")
sys.path.insert(0, {folder!r})

import numpy as np
import torch
import made
from ssdgen.spec.oracle import oracle

torch.manual_seed(0)
x, dt, B, C = torch.randn(1, 40, 2, 16), torch.randn(1, 40, 2), torch.randn(1, 40, 1, 16), torch.randn(1, 40, 1, 16)
A, D = -torch.rand(2) - 0.1, torch.randn(2)
y = made.mamba_chunk_scan_combined(x, dt, A, B, C, 64, D=D, dt_softplus=True)
exact = oracle(layer, *(t.double().numpy() for t in (x, dt, A, B, C)), D=D.double().numpy()).y
assert np.abs(y.numpy() - exact).max() < 1e-4
from made.launchers import forward
options = dict(D=D, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=True)
rest = dict(dt_limit=(0.0, float("inf")), final_states=False, state_dtype=None)
meta = [t.to("meta") for t in (x, dt, A, B, C)]
planned = forward.launches(config, *meta, **{{**options, "D": D.to("meta")}}, **rest)
assert [launch.kernel.__name__ for launch in planned.launches] == ["dt_cumsum", "single_pass"]
if {interpreted!r}:
    ours, _ = forward.forward(config, x, dt, A, B, C, **options, **rest)
    assert np.abs(ours.numpy() - exact).max() < 1e-4
print("whole path")
"""


@pytest.mark.parametrize("interpreted", [False, True], ids=["compiled", "interpreted"])
def test_the_whole_path(interpreted: bool, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "SSDGEN"))}
    env |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    start = time.monotonic()
    code = PATH.format(root=str(ROOT), folder=str(tmp_path), interpreted=interpreted)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "whole path"
    assert time.monotonic() - start < SECONDS
