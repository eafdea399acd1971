"""Mamba-3's recurrence beside mamba_ssm's: errors, forward and training step.  -> a table and a JSON file

    python benchmarks/mamba3.py [--shapes "1,2048,64,64,128,1,32 .."] [--out FILE] [--no-peer] [--budget SECONDS]

Needs a CUDA GPU.  A shape is batch, seqlen, heads, headdim, dstate, groups and pairs that turn; bf16.  Outputs are
compared with a complex recurrence in float64 that shares no code with the generator, gradients with those of the
PyTorch path in float64; nothing is timed before.  The kernels run as they are emitted: nothing is tuned.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from ssdgen.emit import mamba3  # noqa: E402
from ssdgen.pack import templates, tree  # noqa: E402

Args = dict[str, torch.Tensor]
SHAPES = "1,2048,64,64,128,1,32 8,2048,64,64,128,1,32 1,16384,64,64,128,1,32"
SEED = 20240531
# bf16: operands are turned, and weighted inputs, scores and states rounded for the tensor cores, each once; the
# gradients of the angles are sums over all later tokens of what these left
ERROR_LIMIT, GRADIENT_LIMIT = 8e-3, 5e-2
# of the float64 gradients: more memory than a short sequence needs would not fit
GRADIENT_TOKENS = 512
CHUNK = 64
DIFFERENTIABLE = ("Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias", "Angles", "D", "Z")


def inputs(shape: tuple[int, ...], seed: int, device: str = "cuda") -> Args:
    """Operands as the layer makes them: steps around 0.03, normed Q and K with biases around 1."""
    batch, seqlen, heads, headdim, dstate, groups, rates = shape
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*extents: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*extents, generator=generator, device=device).to(dtype)

    step = torch.nn.functional.softplus(draw(batch, heads, seqlen, dtype=torch.float32) - 3.5)
    decay = -torch.nn.functional.softplus(draw(batch, heads, seqlen, dtype=torch.float32))
    return {
        "Q": draw(batch, seqlen, groups, dstate),
        "K": draw(batch, seqlen, groups, dstate),
        "V": draw(batch, seqlen, heads, headdim),
        "ADT": decay * step,
        "DT": step,
        "Trap": draw(batch, heads, seqlen),
        "Q_bias": 1 + 0.1 * draw(heads, dstate, dtype=torch.float32),
        "K_bias": 1 + 0.1 * draw(heads, dstate, dtype=torch.float32),
        "Angles": draw(batch, seqlen, heads, rates, dtype=torch.float32),
        "D": torch.ones(heads, device=device),
        "Z": draw(batch, seqlen, heads, headdim),
    }


def exact(args: Args) -> torch.Tensor:
    """The output in float64, by a complex state that turns itself."""
    x, rates = args["V"].double(), args["Angles"].shape[3]
    per_group = x.shape[2] // args["K"].shape[2]
    b, c = (
        torch.view_as_complex(
            (args[name].double().repeat_interleave(per_group, 2) + args[f"{name}_bias"].double())
            .unflatten(-1, (-1, 2))
            .contiguous()
        )
        for name in ("K", "Q")
    )
    adt, step, trap = (args[name].double().transpose(1, 2) for name in ("ADT", "DT", "Trap"))
    own = trap.sigmoid() * step
    before = step - own
    turns = torch.zeros(b.shape, dtype=torch.float64, device=x.device)
    turns[..., :rates] = torch.pi * args["Angles"].double().tanh() * step[..., None]
    kept = torch.polar(adt.exp()[..., None].expand(turns.shape).contiguous(), -turns)
    state = x.new_zeros((x.shape[0], *x.shape[2:], b.shape[-1]), dtype=torch.complex128)
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        if t:
            state += (before[:, t, :, None] * x[:, t - 1])[..., None] * b[:, t - 1, :, None]
        state *= kept[:, t, :, None]
        state += (own[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        y[:, t] = (state * c[:, t, :, None].conj()).real.sum(-1)
    z = args["Z"].double()
    return (y + args["D"].double()[:, None] * x) * z * z.sigmoid()


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    gap = (found.double() - wanted).nan_to_num(float("inf"), float("inf"), float("inf"))
    return float(gap.norm() / wanted.norm().clamp(min=1e-300))


def gradients(call: Callable[..., Any], args: Args, d_out: torch.Tensor) -> Args:
    leaves = {name: args[name].detach().requires_grad_() for name in DIFFERENTIABLE}
    out = call(**leaves, chunk_size=CHUNK)
    found = torch.autograd.grad(out, list(leaves.values()), d_out.to(out.dtype))
    return dict(zip(leaves, found, strict=True))


def step_us(call: Callable[[], object], calls: int = 5, batches: int = 7) -> float:
    """Wall time of a call with gradients, microseconds: the median over batches of `calls` calls."""
    call()
    found = []
    for _ in range(batches):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return 1e6 * sorted(found)[batches // 2] / calls


def measure(shape: tuple[int, ...], calls: dict[str, Callable[..., Any]], timer: timing.ColdGpuTimer) -> dict[str, Any]:
    """{name: errors of the output and of the worst gradient, and times, or "failed" with the reason}."""
    args, few = inputs(shape, SEED), inputs((1, min(shape[1], GRADIENT_TOKENS), *shape[2:]), SEED + 1)
    wanted = exact(args)
    d_out = torch.randn(few["V"].shape, device="cuda", generator=torch.Generator("cuda").manual_seed(SEED))
    d_out = d_out.bfloat16()
    whole = gradients(calls["ssdgen"], {name: tensor.double() for name, tensor in few.items()}, d_out.double())
    found: dict[str, Any] = {}
    for name, call in calls.items():
        print(f"{shape}: {name}", file=sys.stderr, flush=True)
        try:
            with torch.no_grad():
                error = relative(call(**args, chunk_size=CHUNK), wanted)
            worst = {key: relative(value, whole[key]) for key, value in gradients(call, few, d_out).items()}
            forward = partial(call, **args, chunk_size=CHUNK)
            d_y = torch.randn_like(args["V"])
            found[name] = {
                "relative": error,
                "gradients": worst,
                "gpu_us": timer(forward),
                "eager_us": timing.eager_us(forward)[0],
                "step_us": step_us(partial(gradients, call, args, d_y)),
            }
        except Exception as error:  # a peer may raise what it likes
            if name == "ssdgen":
                raise
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        torch.cuda.empty_cache()
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'shape':32} {'who':10} {'error':>9} {'gradient':>9} {'GPU us':>9} {'eager us':>9} {'step us':>9}"]
    for row in rows:
        for name, result in row["results"].items():
            start = f"{','.join(map(str, row['shape'])):32} {name:10}"
            if "failed" in result:
                lines.append(f"{start} failed: {result['failed'][:60]}")
                continue
            times = " ".join(f"{result[key]:9.0f}" for key in ("gpu_us", "eager_us", "step_us"))
            lines.append(f"{start} {result['relative']:9.1e} {max(result['gradients'].values()):9.1e} {times}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES, help="b,L,H,P,N,G,R, separated by spaces")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/mamba3_GPU.json")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS", help="start no new shape after this")
    options = parser.parse_args(argv)
    shapes = [tuple(map(int, shape.split(","))) for shape in options.shapes.split()]
    if not shapes or any(len(shape) != 7 for shape in shapes):
        parser.error(f"--shapes is {options.shapes!r}; give seven numbers, b,L,H,P,N,G,R, for each shape")
    if not torch.cuda.is_available():
        print("benchmarks/mamba3.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()
    templates.load()
    folder = Path(tempfile.mkdtemp(prefix="mamba3-"))
    tree.write(mamba3.package(runtime=templates.runtime_sources()), folder / "emitted_mamba3")
    sys.path.insert(0, str(folder))
    calls: dict[str, Callable[..., Any]] = {"ssdgen": importlib.import_module("emitted_mamba3").mamba3_siso_combined}
    about = "not asked for"
    if not options.no_peer:
        try:
            from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined

            calls["mamba_ssm"], about = mamba3_siso_combined, "mamba_ssm's mamba3_siso_combined"
        except ImportError as error:
            about = f"mamba_ssm cannot be imported ({error}); only ssdgen is measured"
    print(f"peer: {about}", file=sys.stderr)
    document: dict[str, Any] = {**report.environment(), "peer": about, "rows": []}
    out = options.out or ROOT / "benchmarks" / "results" / f"mamba3_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    timer, passed = timing.ColdGpuTimer(), True
    for shape in shapes:
        if time.monotonic() - begin > options.budget:
            document["rows"].append({"shape": shape, "results": {"ssdgen": {"failed": "the time budget was spent"}}})
            continue
        results = measure(shape, calls, timer)
        mine = results["ssdgen"]
        passed &= mine["relative"] <= ERROR_LIMIT and max(mine["gradients"].values()) <= GRADIENT_LIMIT
        document["rows"].append({"shape": shape, "results": results})
        out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(document["rows"]))
    print(f"written: {out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
