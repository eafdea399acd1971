"""The split call by its kernels, interpreted: what one writes is what the next one reads, in place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ssdgen.mamba2_ops import mamba_split_conv1d_scan_combined
from ssdgen.mamba2_ops.launchers import backward, conv, forward
from tests.layer import plain
from tests.layer.test_split import Case, run

pytestmark = pytest.mark.interpreter


SMALL = Case(batch=1, seqlen=40, nheads=2, headdim=16, ngroups=1, dstate=16, d_nonssm=2)
CASES = [
    SMALL,
    replace(SMALL, d_nonssm=0, seqlen=70, ngroups=2, batch=2),
    replace(SMALL, d_nonssm=0, without=("outproj_weight", "outproj_bias"), options={"norm_before_gate": False}),
    replace(SMALL, d_nonssm=0, without=("rmsnorm_weight", "conv1d_bias", "initial_conv_states")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_split_call_by_kernels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the gradients of its operand's parts are written where they belong: no large tensor is put together."""
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    launched = []
    for module, name in ((forward, "forward"), (backward, "backward")):
        launch = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=launch, **k: launched.append(n) or f(*a, **k))
    joined, join = [0], torch.cat
    operands = {name: None if t is None else t.float() for name, t in case.operands().items()}

    def ours(**arguments):
        return mamba_split_conv1d_scan_combined(
            **arguments, chunk_size=64, return_final_states=True, return_final_conv_states=True
        )

    def cat(tensors, *where, **named):
        made = join(tensors, *where, **named)
        joined.append(made.numel())
        return made

    given = {"headdim": case.headdim, "ngroups": case.ngroups, **case.options}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", cat)
        found, gradients = run(ours, operands, **given)
    # of what has a number for every token, B and C alone and what bypasses the scan
    assert max(joined) <= case.batch * case.seqlen * max(2 * case.ngroups * case.dstate, case.d_nonssm and 34)
    assert launched == ["forward", "backward"]
    double = {name: None if t is None else t.double() for name, t in operands.items()}
    wanted, exact = run(plain.split, double, **given)
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(result.double(), right, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        assert (gradient.double() - exact[name]).norm() < 1e-4 * exact[name].norm(), name


def test_what_a_checkpoint_drops_anyway_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution runs once in each of the two forward passes, not a third time; gradients have the same bits."""
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    case = replace(SMALL, d_nonssm=0)
    operands = {name: None if t is None else t.float() for name, t in case.operands().items()}
    given = {"headdim": case.headdim, "ngroups": case.ngroups, **case.options}
    launched, launch = [0], conv.forward

    def counted(*arguments, **options):
        launched[0] += 1
        return launch(*arguments, **options)

    monkeypatch.setattr(conv, "forward", counted)

    def ours(**arguments):
        return mamba_split_conv1d_scan_combined(**arguments, chunk_size=64, return_final_states=True)

    def kept(**arguments):
        return checkpoint(lambda: ours(**arguments), use_reentrant=False)

    gradients, runs = [], []
    for way in (ours, kept):
        launched[0] = 0
        gradients.append(run(way, operands, **given)[1])
        runs.append(launched[0])
    assert runs == [2, 2]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
