"""The convolution and the gated norm of a layer beside their peers: errors, GPU time, share of the copy bandwidth.

    python benchmarks/layer_parts.py [--out FILE] [--budget SECONDS] [--no-peer]

Needs a CUDA GPU.  The sizes are those of the 2.7B layer at 16K tokens: 5376 channels, a slice of the projection, and
rows of 5120 channels in one group and in eight.  Nothing is timed before its error against float64 is known, and what
is too far off fails.  The convolution's stand-in peer is torch's own (channels first), with the activation after it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from ssdgen import mamba2_ops as ops  # noqa: E402
from ssdgen.mamba2_ops import conv_autograd, norm_autograd  # noqa: E402

OURS = "ssdgen"
BATCH, SEQLEN, INNER, STATE, HEADS, WIDTH = 8, 2048, 5120, 128, 80, 4
CHANNELS = INNER + 2 * STATE
EPS = 1e-5
# |found - exact| / |exact| over all elements, of results in bf16; three times what rounding them once costs
LIMIT = 5e-3

Call = Callable[[], dict[str, torch.Tensor]]


@dataclass
class Part:
    """One row of the table.  calls: by name, each gives results by name; exact: the same in float64."""

    name: str
    least_bytes: int
    calls: dict[str, Call]
    exact: Call


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def exactly(run: Callable[..., torch.Tensor], d_y: torch.Tensor, **operands: torch.Tensor) -> dict[str, torch.Tensor]:
    """y and the gradients in float64."""
    leaves = {name: value.double().requires_grad_() for name, value in operands.items()}
    with torch.enable_grad():
        y = run(**leaves)
        found = torch.autograd.grad(y, list(leaves.values()), d_y.double())
    return {"y": y.detach(), **{f"d_{name}": gradient for name, gradient in zip(leaves, found, strict=True)}}


def conv_parts() -> list[Part]:
    projected = normal(BATCH, SEQLEN, 2 * INNER + 2 * STATE + HEADS)
    x = projected[..., INNER : INNER + CHANNELS].transpose(1, 2)
    weight, bias = normal(CHANNELS, WIDTH) / 2, normal(CHANNELS)
    d_y = normal(BATCH, SEQLEN, CHANNELS).transpose(1, 2)
    first, d_first = x.contiguous(), d_y.contiguous()

    def forward() -> dict[str, torch.Tensor]:
        return {"y": ops.causal_conv1d_fn(x, weight, bias, activation="silu")}

    def backward() -> dict[str, torch.Tensor]:
        needs = [True, True, True, False]
        given = (d_y, None, x, weight, bias, None, None, None, True, needs)
        return dict(zip(("d_x", "d_weight", "d_bias"), conv_autograd.causal_conv1d_backward(*given), strict=True))

    def torchs() -> dict[str, torch.Tensor]:
        summed = F.conv1d(first, weight.unsqueeze(1), bias, padding=WIDTH - 1, groups=CHANNELS)
        return {"y": F.silu(summed[..., :SEQLEN])}

    def torchs_step() -> dict[str, torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (first, weight, bias)]
        with torch.enable_grad():
            summed = F.conv1d(leaves[0], leaves[1].unsqueeze(1), leaves[2], padding=WIDTH - 1, groups=CHANNELS)
            found = torch.autograd.grad(F.silu(summed[..., :SEQLEN]), leaves, d_first)
        return dict(zip(("d_x", "d_weight", "d_bias"), found, strict=True))

    def exact() -> dict[str, torch.Tensor]:
        def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return F.silu(F.conv1d(F.pad(x, (WIDTH - 1, 0)), weight.unsqueeze(1), bias, groups=CHANNELS))

        return exactly(run, d_y, x=x, weight=weight, bias=bias)

    size = x.numel() * x.element_size()
    return [
        Part("conv1d forward", 2 * size, {OURS: forward, "torch": torchs}, exact),
        Part("conv1d backward", 3 * size, {OURS: backward, "torch, forward and backward": torchs_step}, exact),
    ]


def norm_parts(groups: int, peer: Any) -> list[Part]:
    group = INNER // groups
    x, d_y = normal(BATCH, SEQLEN, INNER), normal(BATCH, SEQLEN, INNER)
    z = normal(BATCH, SEQLEN, 2 * INNER + 2 * STATE + HEADS)[..., :INNER]
    weight = normal(INNER, dtype=torch.float32)
    options = {"eps": EPS, "group_size": group, "norm_before_gate": False}

    def forward() -> dict[str, torch.Tensor]:
        return {"y": ops.rmsnorm_fn(x, weight, None, z, **options)}

    def backward() -> dict[str, torch.Tensor]:
        needs = [True, True, False, True]
        given = (d_y, x, weight, None, z, EPS, group, False, True, None, needs)
        return dict(zip(("d_x", "d_weight", "d_z"), norm_autograd.gated_norm_backward(*given), strict=True))

    flat, flat_z, flat_d = x.view(-1, INNER), z.reshape(-1, INNER), d_y.view(-1, INNER)
    shared = {"group_size": group, "norm_before_gate": False, "is_rms_norm": True}

    def peers() -> dict[str, torch.Tensor]:
        y, _, scale = peer._layer_norm_fwd(flat, weight, None, EPS, z=flat_z, **shared)
        return {"y": y.view(x.shape), "scale": scale}

    forwards, backwards = {OURS: forward}, {OURS: backward}
    if peer is not None:
        scale = peers()["scale"]

        def peers_backward() -> dict[str, torch.Tensor]:
            d_x, d_weight, _, d_z = peer._layer_norm_bwd(
                flat_d, flat, weight, None, EPS, None, scale, z=flat_z, **shared
            )
            return {"d_x": d_x.view(x.shape), "d_weight": d_weight, "d_z": d_z.view(x.shape)}

        forwards["mamba_ssm"], backwards["mamba_ssm"] = peers, peers_backward

    def exact() -> dict[str, torch.Tensor]:
        def run(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            value = (x * F.silu(z)).unflatten(-1, (groups, group))
            scaled = value / (value.square().mean(-1, keepdim=True) + EPS).sqrt()
            return scaled.flatten(-2) * weight

        return exactly(run, d_y, x=x, weight=weight, z=z)

    size = x.numel() * x.element_size()
    return [
        Part(f"rms norm forward, {groups} groups", 3 * size, forwards, exact),
        Part(f"rms norm backward, {groups} groups", 5 * size, backwards, exact),
    ]


def errors(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        name: float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in found if name in exact
    }


def measure(part: Part, timer: timing.ColdGpuTimer, copy_tbs: float) -> dict[str, Any]:
    """Errors, then times in both orders."""
    exact = part.exact()
    rows: dict[str, Any] = {name: {"errors": errors(call(), exact)} for name, call in part.calls.items()}
    del exact
    torch.cuda.empty_cache()
    order = list(part.calls)
    runs: dict[str, list[float]] = {name: [] for name in order}
    for name in (*order, *reversed(order)):
        runs[name].append(timer(part.calls[name]))
    for name, times in runs.items():
        microseconds = sum(times) / len(times)
        rows[name] |= {"gpu_us": microseconds, "gpu_us_runs": times}
        rows[name]["share"] = part.least_bytes / (copy_tbs * 1e6) / microseconds
    passed = all(error <= LIMIT for error in rows[OURS]["errors"].values())
    return {"part": part.name, "least_bytes": part.least_bytes, "rows": rows, "passed": passed}


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"{'part':32} {'who':28} {'us':>8} {'share':>6} {'worst error':>12}"]
    for result in results:
        for name, row in result["rows"].items():
            worst = max(row["errors"].values())
            note = "" if result["passed"] or name != OURS else "  TOO LARGE"
            lines.append(f"{result['part']:32} {name:28} {row['gpu_us']:8.1f} {row['share']:6.0%} {worst:12.1e}{note}")
    return "\n".join(lines)


def _peer(wanted: bool) -> tuple[Any, str]:
    if not wanted:
        return None, "not asked for"
    try:
        from mamba_ssm.ops.triton import layernorm_gated
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported ({error}); it is left out"
    return layernorm_gated, "mamba_ssm's layernorm_gated"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no further part is started")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen and torch alone")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks/layer_parts.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()
    peer, about = _peer(not options.no_peer)
    print(f"peer: {about}", file=sys.stderr)
    torch.manual_seed(0)
    copy_tbs = timing.copy_tbs()
    timer = timing.ColdGpuTimer()
    document = {**report.environment(), "peer": about, "copy_tbs": copy_tbs, "parts": []}
    out = options.out or ROOT / "benchmarks" / "results" / f"layer_parts_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for make in (conv_parts, lambda: norm_parts(1, peer), lambda: norm_parts(8, peer)):
        if time.monotonic() - begin > options.budget:
            print("the time budget was spent: parts are left out", file=sys.stderr)
            break
        for part in make():
            print(f"{time.monotonic() - begin:6.1f} s  {part.name}", file=sys.stderr)
            document["parts"].append(measure(part, timer, copy_tbs))
            # after every part: a run that is cut off keeps what it measured
            out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        torch.cuda.empty_cache()
    print(table(document["parts"]))
    print(f"{copy_tbs:.2f} TB/s copied; written: {out}")
    return 0 if all(result["passed"] for result in document["parts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
