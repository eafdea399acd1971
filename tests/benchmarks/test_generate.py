"""The generation benchmark where there is no GPU: sides that are swapped, tokens that are compared, its table."""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks import generate, generate_peer
from ssdgen.mamba2_ops import mamba2, mamba_chunk_scan_combined, selective_state_update, split_forward

SMALL = {"d_model": 32, "d_state": 8, "headdim": 8}


def test_the_peers_functions_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution is torch's; scan and update are ours, called as mamba_ssm's want it."""
    monkeypatch.setattr(generate, "VOCABULARY", 50)
    calls = []

    @functools.wraps(mamba_chunk_scan_combined)
    def scan(*args, **kwargs):
        calls.append("scan")
        return mamba_chunk_scan_combined(*args, **kwargs)

    def update(state, x, dt, A, B, C, D, z=None, dt_bias=None, dt_softplus=False):
        assert dt.shape == x.shape and A.shape == state.shape[1:] and D.shape == dt_bias.shape == x.shape[1:]
        calls.append("update")
        return selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)

    functions = {
        "mamba_chunk_scan_combined": generate_peer._known(scan),
        "causal_conv1d_fn": generate_peer._known(generate_peer.conv_fn),
        "causal_conv1d_update": generate_peer._known(generate_peer.conv_update),
        "selective_state_update": generate_peer._each_channel(update),
    }
    model, prompt = generate.make(2, torch.float32, "cpu", **SMALL), torch.randint(0, 50, (2, 9))
    ours = generate.tokens_of(model, prompt, 5)
    assert not calls
    with generate_peer.swapped(functions):
        theirs = generate.tokens_of(model, prompt, 5)
    assert calls == ["scan"] * 2 + ["update"] * 8
    assert mamba2.selective_state_update is selective_state_update
    assert split_forward.mamba_chunk_scan_combined is mamba_chunk_scan_combined
    assert generate.same_tokens(model, prompt, ours, theirs) == {"same": True, "agree": 5}
    other = theirs.clone()
    other[1, 3] += 1
    found = generate.same_tokens(model, prompt, ours, other)
    assert (found["same"], found["agree"], found["tie"]) == (False, 3, False) and found["gap"] > generate.TIE


def test_the_table() -> None:
    side = {"eager": {"prompt_ms": 50.0, "token_us": 1000.0}, "graph": {"prompt_ms": 60.0, "token_us": 500.0}}
    document = {
        "peer": "of the test",
        "batch": 2,
        "bf16": {"ssdgen": side},
        "fp32": {"same": False, "agree": 7, "gap": 1e-5, "tie": True},
    }
    text = generate.table(document)
    assert (
        text.startswith("peer: of the test")
        and "2000.0" in text
        and "4000.0" in text
        and "the same 7 tokens, then apart" in text
    )


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert generate.main([]) == 2
    assert "CUDA GPU" in capsys.readouterr().err
