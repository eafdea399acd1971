"""How models of older transformers decide, in a few lines each: they take their fast path, and get it back undone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ssdgen.runtime import compat, compat_transformers

MODULE = compat_transformers.MODULES[0]
PARTS = MODULE.split(".")

LAYER = """
import torch

class Mixer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj = torch.nn.Linear(4, 4)
        {init}

    def cuda_kernels_forward(self, hidden_states, cache_params=None):
        {only_cuda}
        return "fast", causal_conv1d_fn, selective_state_update, mamba_chunk_scan_combined, cache_params

    def forward(self, hidden_states, cache_params=None, output_attentions=False):
        if is_fast_path_available and "cuda" in self.in_proj.weight.device.type:
            return self.cuda_kernels_forward(hidden_states, cache_params)
        return ("slow",)

class MambaRMSNormGated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.randn(8)), 1e-5

    def forward(self, hidden_states, gate=None):
        return "slow"
"""
AT_IMPORT = """
selective_state_update, mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined = None, None, None
causal_conv1d_update, causal_conv1d_fn = None, None
is_fast_path_available = all((selective_state_update, causal_conv1d_fn, causal_conv1d_update))
""" + LAYER.replace("{init}", "pass")
LAZILY = """
def lazy_load_kernel(name):
    return None
""" + LAYER.replace(
    "{init}",
    """global causal_conv1d_fn, causal_conv1d_update, selective_state_update, mamba_chunk_scan_combined
        global is_fast_path_available
        conv, ssm = lazy_load_kernel("causal-conv1d"), lazy_load_kernel("mamba-ssm")
        causal_conv1d_fn = getattr(conv, "causal_conv1d_fn", None)
        causal_conv1d_update = getattr(conv, "causal_conv1d_update", None)
        selective_state_update = getattr(ssm, "selective_state_update", None)
        mamba_chunk_scan_combined = getattr(ssm, "mamba_chunk_scan_combined", None)
        is_fast_path_available = all((selective_state_update, causal_conv1d_fn, causal_conv1d_update))""",
)


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Imports a transformers of one module with the text."""
    folder = tmp_path.joinpath(*PARTS[:-1])
    folder.mkdir(parents=True)
    for parent in [folder, *folder.parents][: len(PARTS) - 1]:
        (parent / "__init__.py").write_text("")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "transformers"}
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(text: str):
        (folder / f"{PARTS[-1]}.py").write_text(text)
        return __import__(MODULE, fromlist=["x"])

    yield load
    compat.uninstall()
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("text", [AT_IMPORT, LAZILY], ids=["at import", "lazily"])
@pytest.mark.parametrize("first", ["install", "import", "make"])
def test_the_fast_path_is_taken(text: str, first: str, module) -> None:
    """Whether `install` comes before the import, before a layer is made, or after."""
    if first == "install":
        compat.install()
    modeling = module(text.replace("{only_cuda}", "pass"))
    layer = modeling.Mixer() if first == "make" else None
    if layer is not None:
        assert layer(torch.ones(1, 4)) == ("slow",)
    compat.install()
    layer = layer or modeling.Mixer()
    way, conv, step, scan, cache = layer(torch.ones(1, 4), "cache", output_attentions=True)
    assert (way, cache) == ("fast", "cache")
    assert [f.__wrapped__ for f in (conv, step, scan)] == [
        compat._CONV["causal_conv1d_fn"], compat._UPDATE["selective_state_update"],
        compat._SCAN["mamba_chunk_scan_combined"],
    ]  # fmt: skip
    assert modeling.is_fast_path_available
    x, gate = torch.randn(3, 8), torch.randn(3, 8)
    norm = modeling.MambaRMSNormGated()
    wanted = torch.nn.functional.rms_norm(x * torch.nn.functional.silu(gate), (8,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x, gate), wanted)
    compat.uninstall()
    assert modeling.Mixer()(torch.ones(1, 4)) == ("slow",) and norm(x) == "slow"


def test_what_needs_cuda_for_more_stays_slow_on_a_cpu(module) -> None:
    modeling = module(AT_IMPORT.replace("{only_cuda}", "torch.cuda.current_stream()"))
    with compat.install():
        assert modeling.Mixer()(torch.ones(1, 4)) == ("slow",)


def test_what_models_hand_on_beyond_the_parameters_is_left_out() -> None:
    call = compat_transformers._leave_out_unknown(lambda x, seq_idx=None: (x, seq_idx))
    assert call(1, seq_idx=2, output_attentions=True) == (1, 2)
