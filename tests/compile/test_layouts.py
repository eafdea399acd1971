"""Kernels that `ssd` alone launches compile without a GPU: those for a decay per token, and those of other layouts."""

from __future__ import annotations

import os
from importlib import import_module
from math import inf
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ssdgen import gpus
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.defaults import default_config
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.tune.compile import compile_launch
from tests.parity.dense import HEADS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]

# what says most: every kernel that knows of decays, and of each layout those that read most
CHECKED = {
    "multi-input": {"dt_cumsum_gated", "dt_gradients_gated", "mirror_walk"},
    "multi-contract": {"single_pass_multi_contract", "chunk_states_multi_contract", "group_gradients_multi_contract"},
    "multi-expand": {"segment_adjoint_multi_expand", "reverse_walk_multi_expand"},
}


def launches(layout: str, sms: int) -> dict[str, Any]:
    """Of both passes with the built-in configs, on tensors without contents."""
    batch, seqlen, nheads, ngroups, headdim, dstate = 1, 512, 8, 2, 32, 32
    hx, hb, hc = HEADS[layout](nheads, ngroups)

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    one = meta(1, dtype=torch.float32)
    operands = {
        "x": meta(batch, seqlen, hx, headdim),
        "dt": one.expand(batch, seqlen, nheads),
        "A": meta(batch, seqlen, nheads, dtype=torch.float32),
        "B": meta(batch, seqlen, hb, dstate),
        "C": meta(batch, seqlen, hc, dstate),
    }
    options = {"D": meta(nheads), "z": None, "dt_bias": None, "seq_idx": meta(batch, seqlen, dtype=torch.int32)}
    options |= {"initial_states": meta(batch, nheads, headdim, dstate), "dt_softplus": False, "dt_limit": (-inf, inf)}
    problem = Problem(batch, seqlen, nheads, headdim, dstate, ngroups, "bfloat16", layout=layout)
    end = "" if layout == "multi-input" else f"_{layout.replace('-', '_')}"
    launcher, backward = (import_module(f"ssdgen.mamba2_ops.launchers.{name}{end}") for name in ("forward", "backward"))
    made = launcher.launches(
        default_config(problem, sms), **operands, **options, cu_seqlens=None, final_states=True, state_dtype=None
    ).launches
    made += backward.launches(
        default_backward(problem, sms),
        **operands,
        **options,
        d_y=meta(batch, seqlen, nheads, headdim),
        d_final_states=meta(batch, nheads, headdim, dstate),
        needs=frozenset(("x", "A", "B", "C")),
    ).launches
    below = {"below": meta(batch, seqlen, nheads, headdim), "seq_idx": options["seq_idx"]}
    made += launcher._mirror_plan(default_config(problem, sms), {**operands, **below, "dt_bias": None}).launches
    return {launch.kernel.__name__: launch for launch in made}


@pytest.mark.parametrize("gpu", ("a100", "h200", "mi300x"))
@pytest.mark.parametrize("layout", CHECKED)
def test_compiles(layout: str, gpu: str) -> None:
    target = gpus.find(gpu)
    # the sequence is one segment where there are few multiprocessors, else many
    found = {**launches(layout, 1), **launches(layout, 132)}
    for name in sorted(CHECKED[layout]):
        compiled = compile_launch(found[name], target)
        assert compiled.resources.shared <= target.smem_per_cta
