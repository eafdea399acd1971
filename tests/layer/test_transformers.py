"""Models of transformers with our functions against the same models with their own: logits, gradients, generation.

Each test counts the calls: a fast path that was not taken would agree with itself.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

# before, its own slow path knows no groups in Mamba2's norm, which its fast path has
pytest.importorskip("transformers", minversion="5.24")

from ssdgen.mamba2_ops import compat
from tests.layer import families

ROOT = Path(__file__).resolve().parents[2]
CONV, UPDATE = "causal_conv1d_fn", "causal_conv1d_update"
SCAN, SPLIT, STEP = "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined", "selective_state_update"
NORM = "rmsnorm_fn"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of our functions was called."""
    counted: Counter[str] = Counter()

    def count(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            counted[function.__name__] += 1
            return function(*args, **kwargs)

        return call

    for table in (compat._SCAN, compat._UPDATE, compat._CONV):
        for name, function in table.items():
            monkeypatch.setitem(table, name, count(function))
    monkeypatch.setattr(compat.norm, NORM, count(compat.norm.rmsnorm_fn))
    return counted


def close(found: torch.Tensor, wanted: torch.Tensor, what: str = "") -> None:
    assert (found - wanted).norm() <= 2e-5 * wanted.norm() + 1e-9, what


def prompts(pads: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask; the second row starts with so much padding."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(2, families.VOCABULARY, (2, 19), generator=generator)
    mask = torch.ones_like(input_ids)
    input_ids[1, :pads], mask[1, :pads] = 0, 0
    return input_ids, mask


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_logits_and_gradients(family: str, training: bool, calls: Counter[str]) -> None:
    model = families.model(family).train(training)
    input_ids, _ = prompts()

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(input_ids, use_cache=False).logits
        logits.square().mean().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    slow, slow_gradients = run()
    assert not calls
    with compat.install():
        fast, gradients = run()
    layers = len(families.mixers(model))
    norms = sum(getattr(layer, "mamba_rms_norm", True) for layer in families.mixers(model))
    wanted = {SPLIT: layers} if training else {CONV: layers, SCAN: layers, NORM: norms}
    assert calls == {name: count for name, count in wanted.items() if count}
    close(fast, slow)
    assert gradients.keys() == slow_gradients.keys()
    for name, gradient in gradients.items():
        close(gradient, slow_gradients[name], name)
    run()
    assert calls == {name: count for name, count in wanted.items() if count}, "uninstalled, and still called"


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("pads", [0, 5])
def test_prefill_and_decode_token_by_token(family: str, pads: int, calls: Counter[str]) -> None:
    """The same tokens, and at every step the same logits, also where a prompt has padding on its left."""
    model = families.model(family)
    input_ids, mask = prompts(pads)
    steps = 5

    def run():
        return model.generate(
            input_ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip

    slow = run()
    assert not calls
    with compat.install():
        fast = run()
    layers = len(families.mixers(model))
    assert calls[CONV] == calls[SCAN] == layers and not calls[SPLIT]
    assert calls[UPDATE] == calls[STEP] == layers * (steps - 1)
    assert torch.equal(fast.sequences, slow.sequences)
    for found, wanted in zip(fast.logits, slow.logits, strict=True):
        close(found, wanted)


def test_padding_is_as_if_it_were_not_there(calls: Counter[str]) -> None:
    model = families.model("mamba2")
    input_ids, mask = prompts(5)
    with compat.install():
        padded = model(input_ids, attention_mask=mask).logits[1:, 5:]
        alone = model(input_ids[1:, 5:]).logits
    assert calls[SCAN]
    close(padded, alone)


def test_packed_sequences_are_taken(calls: Counter[str]) -> None:
    """Their own slow path refuses seq_idx; ours keeps the sequences apart."""
    model = families.model("bamba")
    layer = families.mixers(model)[0]
    hidden = torch.randn(1, 12, 32)
    seq_idx = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    with compat.install():
        together = layer(hidden, seq_idx=seq_idx)
        apart = torch.cat([layer(hidden[:, :5]), layer(hidden[:, 5:])], dim=1)
    close(together, apart)


# modules that are imported after `install`, in a process of their own
LATER = """
import sys

import mamba2_ops

mamba2_ops.compat.install()
from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

assert mamba_chunk_scan_combined is mamba2_ops.mamba_chunk_scan_combined
assert causal_conv1d_fn is mamba2_ops.causal_conv1d_fn
assert not any(name in sys.modules for name in mamba2_ops.compat_transformers.MODULES)

import torch
from tests.layer import families

calls = []
run = mamba2_ops.decode._fallback
mamba2_ops.decode._fallback = lambda *a, **k: calls.append(1) or run(*a, **k)
model = families.model("mamba2")
model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)
assert len(calls) == 2 * 2, calls
from transformers.models.mamba2 import modeling_mamba2



def ours():
    found = vars(modeling_mamba2).items()
    return [name for name, value in found if getattr(value, "__module__", "").startswith("ssdgen")]


assert ours()
mamba2_ops.compat.uninstall()
assert not ours()
assert "mamba_ssm" not in sys.modules
"""


@pytest.mark.slow
def test_models_that_are_imported_later() -> None:
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'ssdgen' / '_alias')]!r}\n" + LATER
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(family: str, dtype: torch.dtype, calls: Counter[str]) -> None:
    """Logits and a gradient with our kernels against float64 by transformers' own path on the CPU."""
    exact, model = families.model(family).double(), families.model(family, "cuda").to(dtype)
    # torch's product of groups of rows has no float64 everywhere
    exact.set_experts_implementation("eager")
    input_ids, _ = prompts()
    wanted = exact(input_ids, use_cache=False).logits
    wanted.square().mean().backward()
    with compat.install():
        for training in (False, True):
            model.train(training).zero_grad()
            found = model(input_ids.cuda(), use_cache=False).logits
            found.square().mean().backward()
            limit = 1e-3 if dtype is torch.float32 else 6e-2
            assert (found.cpu().double() - wanted).norm() < limit * wanted.norm()
            for ours, right in zip(families.mixers(model), families.mixers(exact), strict=True):
                gradient, exact_gradient = ours.in_proj.weight.grad.cpu().double(), right.in_proj.weight.grad
                assert (gradient - exact_gradient).norm() < 2 * limit * exact_gradient.norm()
        tokens = model.eval().generate(input_ids.cuda(), max_new_tokens=4, do_sample=False)
    assert calls[SPLIT] and calls[SCAN] and calls[STEP] and tokens.shape == (2, 23)
