"""Whole models on a CPU: sides that compute the same, steps that train, results that decide about ratios, classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import end_to_end, end_to_end_report, generate, generate_peer, kernel_classes  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined, selective_state_update  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402

OURS, PEER = end_to_end_report.OURS, end_to_end_report.PEER
SMALL = end_to_end.Size(64, 2, batch=2, seqlen=12, checkpoint=True, steps=1, prompt=9, tokens=3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny model, and a peer that is our own functions; returns the names of those that were called."""
    calls: list[str] = []

    def scan(*args, **kwargs):
        calls.append("scan")
        return mamba_chunk_scan_combined(*args, **kwargs)

    def update(*args, **kwargs):
        calls.append("update")
        return selective_state_update(*args, **kwargs)

    functions = {"mamba_chunk_scan_combined": scan, "selective_state_update": update}
    monkeypatch.setattr(generate, "VOCABULARY", 50)
    monkeypatch.setattr(end_to_end, "CHECK_TOKENS", 10)
    monkeypatch.setattr(end_to_end, "SIZES", {"130m": SMALL})
    monkeypatch.setattr(generate_peer, "load", lambda own_conv: (functions, "of the test"))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    return calls


def test_a_run_from_end_to_end(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "whole.json"
    assert end_to_end.main(["--sizes", "130m", "--out", str(out)], Cpu()) == 0  # type: ignore[arg-type]
    training, inference = json.loads(out.read_text())["rows"]
    assert training["passed"] and training["ratios"] == {"step_us": 1.0}
    assert training["checks"][OURS]["loss"] == pytest.approx(training["checks"][PEER]["loss"], rel=1e-3)
    assert training["sides"][OURS]["step_tokens_s"] == pytest.approx(24 / 1e-4)
    assert training["sides"][PEER]["classes"]["GEMM"]["share"] == pytest.approx(0.6)
    assert inference["passed"] and set(inference["ratios"]) == {"prompt_ms", "token_us"}
    assert "scan" in small and "update" in small
    calls = len(small)
    assert end_to_end.main(["--resume", "--out", str(out)], Cpu()) == 0  # type: ignore[arg-type]
    assert len(small) == calls and json.loads(out.read_text())["rows"] == [training, inference]
    text = capsys.readouterr().out
    assert "agree" in text and "GEMM" in text and "us/token" in text


def test_the_peer_s_functions_make_the_same_gradients(small: list[str]) -> None:
    """In fp32 to the last digits but few; with checkpoints the layers are computed once more by the same side."""
    sides, found = end_to_end.Sides(generate_peer.load(own_conv=True)[0]), {}
    tokens = end_to_end.drawn(2, 12, "cpu")
    for name, checkpoints in ((OURS, False), (PEER, False), (PEER, True)):
        model = generate.make(2, torch.float32, "cpu", d_model=64).train()
        if checkpoints:
            end_to_end.checkpointed(model)
        before = len(small)
        with sides.side(name, model):
            end_to_end.loss_of(model, tokens, low=False).backward()
        assert len(small) - before == {(OURS, False): 0, (PEER, False): 2, (PEER, True): 4}[name, checkpoints]
        assert all(layer.mixer.use_mem_eff_path for layer in model.backbone.layers)
        found[name, checkpoints] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    first, *others = found.values()
    assert first.norm() > 0
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)


def test_a_step_changes_every_parameter(small: list[str]) -> None:
    model = generate.make(2, torch.float32, "cpu", d_model=64).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step = end_to_end.step_of(model, end_to_end.drawn(2, 12, "cpu"), graph=False)
    with torch.no_grad():
        losses = [float(end_to_end.with_grad(step)()) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize(
    ("name", "value"), [("logits", 0.02), ("logits", math.nan), ("loss", 4.1), ("gradients", 2.2), ("loss", math.inf)]
)
def test_what_is_wrong_has_no_ratio(name: str, value: float) -> None:
    right = {"logits": 0.01, "loss": 4.0, "gradients": 2.0}
    assert end_to_end_report.agree({OURS: right, PEER: right}) and end_to_end_report.agree({OURS: right})
    wrong = {**right, name: value}
    assert not end_to_end_report.agree({OURS: wrong, PEER: right})
    sides = {who: {"step_us": 1.0, "classes": {}} for who in (OURS, PEER)}
    base = {"stage": "training", "size": "130m", "batch": 1, "seqlen": 8, "sides": sides}
    row = end_to_end_report.compare({**base, "passed": False})
    assert "ratios" not in row
    text = end_to_end_report.table({"gpu": "x", "peer": "y", "rows": [row, {**base, "size": "2.7b", "passed": True}]})
    assert "WRONG" in text and "1.00" not in text


def test_a_size_that_does_not_fit_is_a_row() -> None:
    row = {"stage": "training", "size": "2.7b", "batch": 1, "seqlen": 8, "failed": "out of memory"}
    assert "out of memory" in end_to_end_report.table(
        {"gpu": "x", "peer": "y", "rows": [end_to_end_report.compare(row)]}
    )


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("single_pass_2n", "SSD"),
        ("reverse_walk", "SSD"),
        ("dt_cumsum", "SSD"),
        ("_chunk_scan_fwd_kernel", "SSD"),
        ("_bmm_chunk_bwd_kernel", "SSD"),
        ("conv_walk_4w", "convolution"),
        ("rms_norm_gate_first_backward", "norm"),
        ("_layer_norm_bwd_kernel", "norm"),
        ("state_step_untied", "decode step"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "GEMM"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>", "copies and casts"),
        ("cunn_SoftMaxForward", "loss and embedding"),
        ("no_such_kernel", "other"),
    ],
)
def test_kernels_are_told_apart(kernel: str, kind: str) -> None:
    assert kernel_classes.classify(kernel) == kind


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert end_to_end.main([]) == 2 and "sees none here" in capsys.readouterr().err
