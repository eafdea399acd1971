"""The Mamba-2 layer with a large state beside the Mamba-1 layer with a small one: training.  -> a table and a JSON file

    python benchmarks/layer_training.py [--d-model 2560] [--batch 8] [--seqlen 2048] [--out FILE] [--quick]

Needs a CUDA GPU, and Mamba-1's scan (README.md).  Each layer, and its scan alone at the same width, goes forward and
backward under bf16 autocast; both layers' outputs and gradients are checked first, against the same layer in float32
in PyTorch.  Of interest is how many tokens a second the one makes for those of the other, at eight times its state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine, mamba1_layer, report, selective_scan  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from ssdgen.mamba2_ops import Mamba2, fallback, split_forward  # noqa: E402

MAMBA2, MAMBA1 = "Mamba-2, N=128, ssdgen", "Mamba-1, N=16, CUDA scan"
STATES = {MAMBA2: 128, MAMBA1: 16}
# tokens a second of the one over those of the other: the bar
WANTED = 1.5
# |found - exact| / |exact| of the output and of the input's gradient, bf16 against float32
LIMIT = 2e-2
CHECK = (2, 256)


def make(name: str, d_model: int, scan: Any, device: str) -> torch.nn.Module:
    """The layer with weights that depend on nothing but its sizes."""
    torch.manual_seed(0)
    if name == MAMBA2:
        return Mamba2(d_model, d_state=STATES[name], device=device)
    return mamba1_layer.Mamba1(d_model, scan, d_state=STATES[name], device=device)


@contextmanager
def in_pytorch(layer: torch.nn.Module):
    """Inside, the layer's scan is made without kernels."""
    if isinstance(layer, mamba1_layer.Mamba1):
        before, layer.scan = layer.scan, mamba1_layer.plain_scan
        try:
            yield
        finally:
            layer.scan = before
        return

    def plain(x, dt, A, B, C, chunk_size, *, D, dt_bias, dt_softplus, dt_limit, **_) -> Tensor:
        return fallback.forward(x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit)[0]

    before, split_forward.mamba_chunk_scan_combined = split_forward.mamba_chunk_scan_combined, plain
    layer.use_mem_eff_path = False  # type: ignore[assignment]
    try:
        yield
    finally:
        split_forward.mamba_chunk_scan_combined = before
        layer.use_mem_eff_path = True  # type: ignore[assignment]


def step(layer: torch.nn.Module, inputs: Tensor, d_out: Tensor, low: bool = True) -> tuple[Tensor, Tensor]:
    """(output, gradient of the input); gradients of parameters are made too, as a training step wants them."""
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=low):
            out = layer(leaf)
        found = torch.autograd.grad(out, [leaf, *layer.parameters()], d_out.to(out.dtype))
    return out.detach(), found[0]


def errors(layer: torch.nn.Module, d_model: int, device: str) -> dict[str, float]:
    """Of a small batch under autocast, against the layer in float32 without kernels."""
    generator = torch.Generator(device=device).manual_seed(1)
    inputs, d_out = (torch.randn(*CHECK, d_model, device=device, generator=generator) for _ in range(2))
    found = step(layer, inputs, d_out)
    with in_pytorch(layer):
        exact = step(layer, inputs, d_out, low=False)
    gaps = (float((f.double() - e.double()).norm() / e.double().norm()) for f, e in zip(found, exact, strict=True))
    return dict(zip(("y", "d_input"), gaps, strict=True))


def measure(
    name: str, layer: torch.nn.Module, batch: int, seqlen: int, d_model: int, gpu: machine.Gpu
) -> dict[str, Any]:
    """errors, passed and, where they are good, step_us, tokens_s and peak_mb."""
    row: dict[str, Any] = {"errors": errors(layer, d_model, gpu.device)}
    # written so that a NaN is wrong
    row["passed"] = not [error for error in row["errors"].values() if not error <= LIMIT]
    gpu.tidy()
    if row["passed"]:
        inputs = torch.randn(batch, seqlen, d_model, device=gpu.device)
        call = partial(step, layer, inputs, torch.randn_like(inputs))
        call()
        row["peak_mb"] = gpu.extra_mb(call)
        row["step_us"] = gpu.span_us(call, 10)
        row["gpu_us"], row["timed"] = gpu.gpu_us(call)
        row["tokens_s"] = 1e6 * batch * seqlen / row["gpu_us"]
    return row


def verdict(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratio of tokens a second, where both layers are right, and whether it is what is wanted."""
    if not all("tokens_s" in rows.get(name, {}) for name in (MAMBA2, MAMBA1)):
        return {}
    ratio = rows[MAMBA2]["tokens_s"] / rows[MAMBA1]["tokens_s"]
    return {"ratio": ratio, "wanted": WANTED, "reached": ratio >= WANTED, "states": STATES[MAMBA2] / STATES[MAMBA1]}


def table(document: dict[str, Any]) -> str:
    lines = [("layer", "tokens/s", "GPU ms", "eager ms", "peak MB", "error y", "d_input")]
    for name, row in document["rows"].items():
        off = [f"{row['errors'][key]:.1e}" if "errors" in row else "" for key in ("y", "d_input")]
        if "tokens_s" not in row:
            said = "WRONG" if row.get("passed") is False else row.get("failed") or row["missing"]
            lines.append((name, said, "", "", "", *off))
            continue
        times = (f"{row[key] / 1e3:.2f}" for key in ("gpu_us", "step_us"))
        lines.append((name, f"{row['tokens_s']:.0f}", *times, f"{row['peak_mb']:.0f}", *off))
    found = document["verdict"]
    said = (
        f"{found['states']:.0f} times the state at {found['ratio']:.2f} times the tokens a second (wanted: {WANTED})"
        if found
        else "no ratio: both layers must be here and right"
    )
    return "\n".join([*report.aligned(lines), said])


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    parser = machine.parser(__doc__ or "", "layer_training", 300, resume=False)
    parser.add_argument("--d-model", type=int, default=2560)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=2048)
    options = parser.parse_args(argv)
    if options.quick:
        options.batch = 1
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/layer_training.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    clock = Clock(options.budget)
    extension, about = (None, "not asked for") if options.no_peer else selective_scan.load()
    clock.say(f"Mamba-1's scan: {about}")
    here = gpu.environment()
    sizes = {name: getattr(options, name) for name in ("d_model", "batch", "seqlen")}
    out = options.out or machine.results_path("layer_training", here["gpu"])
    document = machine.Document(out, {**here, **sizes, "scan": about, "rows": {}, "verdict": {}})
    rows: dict[str, dict[str, Any]] = document.content["rows"]
    for name in (MAMBA2, MAMBA1):
        if name == MAMBA1 and extension is None:
            rows[name] = {"missing": f"not here: {about}"}
            continue
        clock.say(name)
        scan = None if name == MAMBA2 else mamba1_layer.cuda_scan(extension)

        def run(name: str = name, scan: Callable | None = scan) -> dict[str, Any]:
            layer = make(name, options.d_model, scan, gpu.device)
            return measure(name, layer, options.batch, options.seqlen, options.d_model, gpu)

        rows[name] = machine.attempt(run, gpu)
        gpu.tidy()
        document.write()
    document.content["verdict"] = verdict(rows)
    document.write()
    print(table(document.content))
    print(f"written: {out}")
    return 0 if all(row.get("passed", True) for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
