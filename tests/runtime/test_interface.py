"""Which way a call takes, and what the launchers are given."""

from __future__ import annotations

import inspect
import subprocess
import sys
from math import inf
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ssdgen.runtime import autograd, interface, paths
from ssdgen.runtime.interface import mamba_chunk_scan_combined

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Calls that reached the launchers; those answer with recognisable tensors."""
    calls: list[SimpleNamespace] = []

    def forward(config, x, dt, A, B, C, **options):
        calls.append(SimpleNamespace(config=config, x=x, dt=dt, A=A, B=B, C=C, **options))
        states = None
        if options["final_states"]:
            cu_seqlens = options["cu_seqlens"]
            rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            states = torch.arange(rows).view(-1, 1, 1, 1).expand(rows, x.shape[2], x.shape[3], B.shape[3])
        return torch.full_like(x, 7.0), states

    launchers = ModuleType("ssdgen.runtime.launchers")
    launchers.forward = SimpleNamespace(forward=forward, again=lambda *given, **options: None)
    monkeypatch.setitem(sys.modules, "ssdgen.runtime.launchers", launchers)
    monkeypatch.setitem(sys.modules, "ssdgen.runtime.launchers.forward", launchers.forward)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    monkeypatch.setattr(paths, "HAVE_TRITON", True)
    return calls


def operands(batch: int = 1, seqlen: int = 6) -> dict:
    return {
        "x": torch.randn(batch, seqlen, 4, 8),
        "dt": torch.rand(batch, seqlen, 4),
        "A": -torch.ones(4),
        "B": torch.randn(batch, seqlen, 1, 16),
        "C": torch.randn(batch, seqlen, 1, 16),
        "chunk_size": 64,
    }


def test_the_signature_is_mamba_ssms() -> None:
    found = inspect.signature(mamba_chunk_scan_combined).parameters
    ours = [p for p in found.values() if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in ours] == [("process_group", None)]
    theirs = [p for p in found.values() if p not in ours]
    assert [(p.name, p.default) for p in theirs if p.default is not p.empty] == [
        ("D", None),
        ("z", None),
        ("dt_bias", None),
        ("initial_states", None),
        ("seq_idx", None),
        ("cu_seqlens", None),
        ("dt_softplus", False),
        ("dt_limit", (0.0, inf)),
        ("return_final_states", False),
        ("return_varlen_states", False),
        ("state_dtype", None),
    ]
    assert list(found)[:6] == ["x", "dt", "A", "B", "C", "chunk_size"]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in theirs)


def test_the_kernels_run_where_they_can(launched: list) -> None:
    assert mamba_chunk_scan_combined(**operands()).eq(7).all()
    call = launched[0]
    assert call.config["schedule"] and call.final_states is False and call.state_dtype is torch.float32


@pytest.mark.parametrize("reason", ["float64", "no rows", "not interpreted", "not asked for", "no Triton"])
def test_the_pytorch_path_runs_otherwise(launched: list, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    call = operands(batch=0 if reason == "no rows" else 1)
    if reason == "float64":
        call = {name: value if name == "chunk_size" else value.double() for name, value in call.items()}
    if reason == "not interpreted":
        monkeypatch.delenv("TRITON_INTERPRET")
    if reason == "not asked for":
        monkeypatch.delenv("SSDGEN_FORCE_TRITON")
    if reason == "no Triton":
        monkeypatch.setattr(paths, "HAVE_TRITON", False)
    y = mamba_chunk_scan_combined(**call)
    assert not launched and y.shape == call["x"].shape


@pytest.mark.parametrize("traced", [False, True])
def test_the_dispatcher_is_passed_by_in_eager_mode(
    launched: list, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    """An operator costs the host more than a launch; in what is compiled there is no way around it."""
    seen = []
    operator = autograd.chunk_scan
    monkeypatch.setattr(autograd, "chunk_scan", lambda *args: seen.append(args) or operator(*args))
    monkeypatch.setattr(interface, "is_compiling", lambda: traced)
    call = operands()
    call["dt"].requires_grad_()
    with torch.no_grad():
        mamba_chunk_scan_combined(**call)
    assert len(launched) == 1 and len(seen) == traced
    y = mamba_chunk_scan_combined(**call)
    assert len(launched) == 2 and len(seen) == 2 * traced and y.requires_grad


def test_operands_arrive_with_a_unit_last_stride(launched: list) -> None:
    call = operands()
    slices = torch.randn(1, 6, 64)
    call |= {
        "x": slices[..., :32].unflatten(2, (4, 8)),
        "B": torch.randn(1, 6, 16, 1).transpose(2, 3),
        "D": torch.randn(8)[::2],
        "z": torch.randn(1, 6, 8, 4).transpose(2, 3),
        "dt": torch.rand(1, 4, 6).transpose(1, 2),
        "initial_states": torch.randn(1, 4, 16, 8).transpose(2, 3),
    }
    mamba_chunk_scan_combined(**call)
    got = launched[0]
    assert got.x is call["x"] and got.dt is call["dt"]  # no copies
    for name in ("B", "D", "z", "initial_states"):
        assert getattr(got, name).stride(-1) == 1 and torch.equal(getattr(got, name), call[name])


def test_states_of_a_packed_row(launched: list) -> None:
    """The launchers give one state a sequence; the last of them is that of the row."""
    call = operands() | {"cu_seqlens": torch.tensor([0, 2, 3, 6]), "seq_idx": torch.zeros(1, 6, dtype=torch.int32)}
    y, final, varlen = mamba_chunk_scan_combined(**call, return_final_states=True, return_varlen_states=True)
    assert final.shape == (1, 4, 8, 16) and final.eq(2).all() and varlen.shape[0] == 3
    assert len(mamba_chunk_scan_combined(**call, return_final_states=True)) == 2
    assert all(c.final_states and c.seq_idx is None for c in launched)


def test_no_triton_and_no_tuner_is_imported() -> None:
    """The CPU path needs torch alone; also where Triton is not there at all."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch; from ssdgen.runtime.interface import mamba_chunk_scan_combined as scan, paths\n"
        "t = torch.ones(1, 3, 2, 4); y = scan(t, t[..., 0], -torch.ones(2), t, t, 64)\n"
        "assert y.isfinite().all() and not paths.HAVE_TRITON\n"
        "assert not [m for m in ('sympy', 'jinja2', 'optuna') if m in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
