"""What benchmarks/mamba3.py compares with is right, and its call is one that the package takes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import mamba3 as benchmark  # noqa: E402
from tests.mamba3 import calls  # noqa: E402


def test_the_reference_is_the_recurrence():
    """bf16 inputs, float64 arithmetic on both sides."""
    args = benchmark.inputs((2, 40, 4, 8, 12, 2, 4), seed=1, device="cpu")
    wide = {name: tensor.double() for name, tensor in args.items()}
    found = calls.package().mamba3_siso_combined(**wide, chunk_size=16)
    torch.testing.assert_close(found, benchmark.exact(args), rtol=1e-9, atol=1e-10)


def test_every_operand_has_a_gradient():
    args = benchmark.inputs((1, 20, 2, 4, 8, 1, 2), seed=2, device="cpu")
    found = benchmark.gradients(calls.package().mamba3_siso_combined, args, torch.ones(1, 20, 2, 4))
    assert {name: tensor.shape for name, tensor in found.items()} == {name: args[name].shape for name in found}
    assert found.keys() == args.keys() and all(tensor.abs().sum() > 0 for tensor in found.values())


def test_rows_become_a_table():
    done = {"relative": 1e-3, "gradients": {"Q": 2e-3}, "gpu_us": 10.0, "eager_us": 20.0, "step_us": 30.0}
    row = {"shape": (1, 2, 3, 4, 5, 6, 7), "results": {"ssdgen": done, "mamba_ssm": {"failed": "no reason"}}}
    lines = benchmark.table([row]).splitlines()
    assert lines[1].split() == ["1,2,3,4,5,6,7", "ssdgen", "1.0e-03", "2.0e-03", "10", "20", "30"]
    assert lines[2].endswith("failed: no reason")
