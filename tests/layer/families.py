"""A tiny random model of each family of transformers that has Mamba-2 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 40
# sizes that all families know, each by its own names
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def _mamba2(t: Any):
    return t.Mamba2ForCausalLM, t.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=2,
        chunk_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=None, time_step_limit=(0.0, float("inf")),
    )  # fmt: skip


def _bamba(t: Any):
    return t.BambaForCausalLM, t.BambaConfig(
        **_COMMON, num_hidden_layers=3, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2,
        mamba_d_state=8, mamba_chunk_size=8,
    )  # fmt: skip


def _zamba2(t: Any):
    return t.Zamba2ForCausalLM, t.Zamba2Config(
        **{**_COMMON, "num_key_value_heads": 4}, num_hidden_layers=3, n_mamba_heads=8, mamba_headdim=8,
        mamba_ngroups=2, mamba_d_state=8, chunk_size=8, num_mem_blocks=1, use_mem_rope=True, adapter_rank=4,
        layers_block_type=["mamba", "hybrid", "mamba"], attention_head_dim=16, attention_hidden_size=64,
    )  # fmt: skip


def _falcon_h1(t: Any, **options: Any):
    return t.FalconH1ForCausalLM, t.FalconH1Config(
        **_COMMON, num_hidden_layers=2, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2,
        mamba_d_state=8, mamba_chunk_size=8, head_dim=8, **options,
    )  # fmt: skip


def _nemotron_h(t: Any):
    return t.NemotronHForCausalLM, t.NemotronHConfig(
        **_COMMON, layers_block_type=["mamba", "attention", "mamba", "moe"], mamba_num_heads=8, mamba_head_dim=8,
        n_groups=2, ssm_state_size=8, chunk_size=8, head_dim=8, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, moe_shared_expert_intermediate_size=16,
    )  # fmt: skip


def _granitemoehybrid(t: Any):
    return t.GraniteMoeHybridForCausalLM, t.GraniteMoeHybridConfig(
        **_COMMON, num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=8, mamba_d_head=8,
        mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=8, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=24,
    )  # fmt: skip


def _falcon_h1_with_norm(t: Any):
    # with the norm before the gate its own two paths disagree: the fused call is told the opposite
    return _falcon_h1(t, mamba_rms_norm=True, mamba_norm_before_gate=False)


FAMILIES: dict[str, Callable[[Any], tuple[type, Any]]] = {
    "mamba2": _mamba2,
    "bamba": _bamba,
    "zamba2": _zamba2,
    "falcon_h1": _falcon_h1,
    "falcon_h1 with a norm": _falcon_h1_with_norm,
    "nemotron_h": _nemotron_h,
    "granitemoehybrid": _granitemoehybrid,
}


def model(family: str, device: str = "cpu") -> torch.nn.Module:
    """In evaluation, with biases and norms that are no constants."""
    import transformers

    kind, config = FAMILIES[family](transformers)
    torch.manual_seed(0)
    made = kind(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith((".D", "norm.weight", "conv1d.bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.to(device).eval()


def mixers(made: torch.nn.Module) -> list[torch.nn.Module]:
    """Its Mamba-2 layers."""
    return [module for module in made.modules() if hasattr(module, "A_log")]
