"""The layer on a GPU, by kernels: values and gradients against float64, decoding, waits for the device."""

from __future__ import annotations

import pytest
import torch

from ssdgen.mamba2_ops import InferenceParams, Mamba2, mamba_split_conv1d_scan_combined
from ssdgen.mamba2_ops.vllm import mamba_chunk_scan_combined_varlen
from tests.layer import plain
from tests.layer.test_split import Case, run

pytestmark = pytest.mark.gpu

CASES = [
    Case(batch=2, seqlen=300, nheads=8, headdim=64, ngroups=2, dstate=64, d_nonssm=32),
    Case(batch=1, seqlen=1030, nheads=4, headdim=64, ngroups=1, dstate=128, without=("rmsnorm_weight",)),
    Case(batch=3, seqlen=77, nheads=6, headdim=24, ngroups=3, dstate=20, width=3, options={"norm_before_gate": False}),
]
LIMITS = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 6e-3}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_split_call(case: Case, recompute: bool, dtype: torch.dtype) -> None:
    """Parameters in fp32, what goes with the tokens in another dtype."""
    tokens = ("zxbcdt", "outproj_weight", "outproj_bias", "initial_conv_states")
    cast = {
        name: None if t is None else (0.5 * t).to("cuda", dtype if name in tokens else torch.float32)
        for name, t in case.operands().items()
    }
    given = {"headdim": case.headdim, "ngroups": case.ngroups, **case.options}

    def ours(**arguments):
        return mamba_split_conv1d_scan_combined(
            **arguments, chunk_size=256, return_final_states=True, return_final_conv_states=True, recompute=recompute
        )

    double = {name: None if t is None else t.double() for name, t in cast.items()}
    wanted, exact = run(plain.split, double, **given)
    found, gradients = run(ours, cast, **given)
    for result, right in zip(found, wanted, strict=True):
        assert relative(result, right) < LIMITS[dtype]
    for name, gradient in gradients.items():
        assert relative(gradient, exact[name]) < 2 * LIMITS[dtype], name


@pytest.mark.parametrize("dtype", LIMITS)
def test_prefill_and_steps(dtype: torch.dtype) -> None:
    made = Mamba2(128, d_state=64, headdim=32, ngroups=2, layer_idx=0, device="cuda").to(dtype)
    u = torch.randn(4, 140, 128, device="cuda", dtype=dtype)
    params = InferenceParams(max_seqlen=140, max_batch_size=4)
    with torch.no_grad():
        wanted = made.double()(u.double())
        made = made.to(dtype)
        found = [made(u[:, :130], inference_params=params)]
        for t in range(130, 140):
            params.seqlen_offset = t
            found.append(made(u[:, t : t + 1], inference_params=params))
    assert relative(torch.cat(found, 1), wanted) < LIMITS[dtype]


def test_torch_compile() -> None:
    case = CASES[0]
    operands = {name: t.float().cuda().requires_grad_() for name, t in case.operands().items() if t is not None}

    def call():
        return mamba_split_conv1d_scan_combined(**operands, chunk_size=256, headdim=case.headdim, ngroups=case.ngroups)

    eager = call()
    compiled = torch.compile(call, fullgraph=True)()
    assert relative(compiled, eager.double()) < 1e-4
    compiled.sum().backward()
    assert all(t.grad is not None for t in operands.values())


def test_vllms_call_waits_for_nothing() -> None:
    cuts = torch.tensor([0, 100, 101, 400], dtype=torch.int32, device="cuda")
    x, dt = torch.randn(400, 8, 64, device="cuda"), torch.rand(400, 8, device="cuda")
    B, C = torch.randn(2, 400, 1, 64, device="cuda").unbind(0)
    out, A = torch.empty_like(x), -torch.rand(8, device="cuda")
    marks = {
        "last_chunk_indices": torch.tensor([0, 1, 2], device="cuda"),
        "seq_idx": torch.tensor([0, 1, 2], device="cuda"),
    }

    def call() -> torch.Tensor:
        # a tensor of its own at each step of a server
        own = cuts.clone()
        return mamba_chunk_scan_combined_varlen(
            x, dt, A, B, C, 256, own, own, marks["last_chunk_indices"], marks["seq_idx"], out
        )

    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
