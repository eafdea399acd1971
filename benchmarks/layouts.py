"""`ssd` in every head layout and on both sides of the diagonal: error, then GPU time.  -> a table and a JSON

    python benchmarks/layouts.py [--batch 8] [--seqlen 2048] [--groups 1,4] [--budget SECONDS] [--out FILE] [--no-peer]

Needs a CUDA GPU.  Nothing is timed before y and every gradient are known to be near float64, at a short length.  Beside
each layout stands the same call with its shared operands repeated for every head, beside both sides a second pass over
flipped copies, and beside multi-input heads mamba_ssm's call with as many heads and groups.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peer, report, timing  # noqa: E402
from ssdgen.mamba2_ops import ssd  # noqa: E402

NHEADS, HEADDIM, DSTATE = 32, 64, 128
# which of x, b and c have all heads
LAYOUTS = {
    "multi-input": (True, False, False),
    "multi-head": (True, True, True),
    "multi-contract": (False, False, True),
    "multi-expand": (False, True, False),
}
# |found - exact| / |exact| in bf16
LIMITS = {"y": 1e-2, "x": 2e-2, "a": 5e-2, "b": 2e-2, "c": 2e-2}
SHORT = 300

Args = dict[str, Tensor]


def draw(layout: str, ngroups: int, batch: int, seqlen: int, device: str = "cuda") -> Args:
    generator = torch.Generator(device).manual_seed(0)

    def normal(every: bool, last: int) -> Tensor:
        heads = NHEADS if every else ngroups
        return torch.randn(batch, seqlen, heads, last, device=device, generator=generator).bfloat16()

    x, b, c = (normal(every, last) for every, last in zip(LAYOUTS[layout], (HEADDIM, DSTATE, DSTATE), strict=True))
    a = -0.1 * torch.rand(batch, seqlen, NHEADS, device=device, generator=generator)
    return {"x": x, "a": a, "b": b / DSTATE**0.5, "c": c}


def repeated(args: Args, **options: Any) -> Tensor:
    """The same with every head's own operands in memory."""
    each = {n: t.repeat_interleave(NHEADS // t.shape[2], 2) if n != "a" else t for n, t in args.items()}
    return ssd(**each, **options)  # type: ignore[return-value]


def flipped(args: Args) -> Tensor:
    """Both sides by a second pass over flipped copies; what a token gives to itself is taken off once."""
    back = {n: t.flip(1) for n, t in args.items() if n != "a"} | {"a": args["a"].roll(-1, 1).flip(1)}
    upper = ssd(**back)
    y = ssd(**args) + upper.flip(1)  # type: ignore[union-attr]
    own = (args["b"].float() * args["c"].float()).sum(-1).bfloat16()
    return y - own.repeat_interleave(NHEADS // own.shape[2], 2)[..., None] * args["x"]


def calls(layout: str) -> dict[str, Callable[[Args], Any]]:
    """The ways to be measured, by name; the first is the call as it is meant."""
    found: dict[str, Callable[[Args], Any]] = {layout: lambda args: ssd(**args)}
    if layout in ("multi-contract", "multi-expand"):
        found[f"{layout}, repeated"] = repeated
    found[f"{layout}, two-sided"] = lambda args: ssd(**args, two_sided=True)
    if layout == "multi-input":
        found[f"{layout}, two-sided by flips"] = flipped
    return found


def errors(call: Callable[[Args], Tensor], args: Args) -> dict[str, float]:
    """Relative errors of y and of every gradient against the same call in float64, which PyTorch computes."""
    made = []
    for dtype in (None, torch.float64):
        own = {n: t.detach().to(dtype or t.dtype).requires_grad_() for n, t in args.items()}
        y = call(own)
        adjoint = torch.randn(y.shape, device=y.device, generator=torch.Generator(y.device).manual_seed(1))
        made.append([y, *torch.autograd.grad(y, list(own.values()), adjoint.bfloat16().to(y.dtype))])
    return {
        name: float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())
        for name, found, exact in zip(("y", *args), *made, strict=True)
    }


def measured(call: Callable[[Args], Tensor], args: Args, timer: timing.ColdGpuTimer) -> dict[str, float]:
    """GPU microseconds of the call, and of it with all of its gradients."""
    with torch.no_grad():
        call(args)
        forward = timer(lambda: call(args))
    leaves = {n: t.detach().requires_grad_() for n, t in args.items()}
    adjoint = torch.ones_like(call(leaves))

    # a timer has gradients off
    @torch.enable_grad()
    def step() -> None:
        torch.autograd.grad(call(leaves), list(leaves.values()), adjoint)

    step()
    return {"forward_us": forward, "step_us": timer(step)}


def table(document: dict[str, Any]) -> str:
    lines = [f"{document['gpu']}; {document['sizes']}"]
    lines.append(f"{'':<34} {'groups':>6} {'forward us':>10} {'and back':>10} {'error of y':>10}")
    for row in document["rows"]:
        off = f"{row['errors']['y']:10.1e}" if "errors" in row else " " * 10
        times = f"{row['forward_us']:10.1f} {row['step_us']:10.1f}" if "step_us" in row else f"{'WRONG':>21}"
        lines.append(f"{row['name']:<34} {row['ngroups']:>6} {times} {off}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--groups", default="1,4", help="numbers of groups, separated by commas")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/layouts_GPU.json")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    parser.add_argument(
        "--budget", type=float, default=180, metavar="SECONDS", help="begin nothing new after this long"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks/layouts.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()
    theirs, about = (None, "not asked for") if options.no_peer else peer.load_public()
    sizes = f"batch {options.batch}, seqlen {options.seqlen}, H={NHEADS} P={HEADDIM} N={DSTATE}, bf16"
    document: dict[str, Any] = {**report.environment(), "peer": about, "sizes": sizes, "rows": []}
    out = options.out or ROOT / "benchmarks" / "results" / f"layouts_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    timer = timing.ColdGpuTimer()
    for ngroups in map(int, options.groups.split(",")):
        for layout in LAYOUTS:
            ways: dict[str, Callable[[Args], Any]] = calls(layout)
            if layout == "multi-input" and theirs is not None:
                rates = -torch.rand(NHEADS, device="cuda")
                ways["mamba_ssm"] = lambda args, rates=rates: theirs(
                    args["x"], -args["a"], rates, args["b"], args["c"], 256
                )
            for name, call in ways.items():
                if time.monotonic() - begin > options.budget:
                    break
                row: dict[str, Any] = {"name": name, "ngroups": ngroups}
                if name != "mamba_ssm":
                    row["errors"] = errors(call, draw(layout, ngroups, 1, SHORT))
                # written so that a NaN is no error within its limit
                if all(row.get("errors", {}).get(key, 0.0) <= limit for key, limit in LIMITS.items()):
                    row |= measured(call, draw(layout, ngroups, options.batch, options.seqlen), timer)
                document["rows"].append(row)
                out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(document))
    print(f"written: {out}")
    return 0 if all("step_us" in row for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
