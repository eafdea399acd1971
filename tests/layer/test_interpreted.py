"""The split call by its kernels, interpreted: what one writes is what the next one reads, in place."""

from __future__ import annotations

import pytest
import torch

from ssdgen.mamba2_ops import mamba_split_conv1d_scan_combined
from ssdgen.mamba2_ops.launchers import backward, forward
from tests.layer import plain
from tests.layer.test_split import Case, run

pytestmark = pytest.mark.interpreter


def test_the_split_call_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    launched = []
    for module, name in ((forward, "forward"), (backward, "backward")):
        launch = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=launch, **k: launched.append(n) or f(*a, **k))
    case = Case(batch=1, seqlen=40, nheads=2, headdim=16, ngroups=1, dstate=16, d_nonssm=2)
    operands = {name: t.float() for name, t in case.operands().items()}

    def ours(**arguments):
        return mamba_split_conv1d_scan_combined(
            **arguments, chunk_size=64, return_final_states=True, return_final_conv_states=True
        )

    found, gradients = run(ours, operands, headdim=16)
    assert launched == ["forward", "backward"]
    wanted, exact = run(plain.split, {name: t.double() for name, t in operands.items()}, headdim=16)
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(result.double(), right, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        assert (gradient.double() - exact[name]).norm() < 1e-4 * exact[name].norm(), name
