"""The forward pass beside mamba_ssm's: error, GPU time, eager time, roofline share.  -> a table and a JSON file

    python benchmarks/forward.py [--shapes "2.7b 8,2048,24,64,128,1"] [--out FILE] [--no-peer] [--quick]

Needs a CUDA GPU.  Nothing is timed before its error against float64 is known, and a shape whose error is too large gets
no speed-up.  Both sides are measured in the same process by the same functions (timing.py).  README.md says how to read
the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peer, reference, report, timing, workload  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined  # noqa: E402

# bf16: rounding the output costs 1.7e-3 and rounding the decayed operands for the tensor cores as much again
ERROR_LIMIT = 5e-3
SEED = 20240531
OURS = "ssdgen"


def ours(args: dict[str, torch.Tensor]) -> torch.Tensor:
    """The public call, as a user makes it."""
    x, dt, A, B, C = (args[name] for name in ("x", "dt", "A", "B", "C"))
    return mamba_chunk_scan_combined(x, dt, A, B, C, 256, D=args["D"], dt_bias=args["dt_bias"], dt_softplus=True)


class Clock:
    """Says what is being done and when the time is up."""

    def __init__(self, budget_s: float) -> None:
        self._begin = time.monotonic()
        self._budget_s = budget_s

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    def is_up(self) -> bool:
        return time.monotonic() - self._begin > self._budget_s


def measure(shape: workload.Shape, calls: dict[str, Callable], timer: timing.ColdGpuTimer, clock: Clock) -> dict:
    """{name: errors, gpu_us, eager_us, host_us and first_call_s, or "skipped" or "failed" with the reason}."""
    args = workload.inputs(shape, "cuda", SEED)
    results: dict[str, dict] = {}
    outputs = {}
    for name, call in calls.items():
        if name != OURS and clock.is_up():
            results[name] = {"skipped": "the time budget was spent"}
            continue
        clock.say(f"{shape.name}: {name}, first call (may compile and tune)")
        begin = time.monotonic()
        try:
            with torch.no_grad():
                outputs[name] = call(args)
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError as error:
            results[name] = {"failed": str(error).splitlines()[0]}
            continue
        results[name] = {"first_call_s": time.monotonic() - begin}
    clock.say(f"{shape.name}: float64 reference and errors")
    for name, error in reference.errors(args, outputs).items():
        results[name].update(error)
    order = list(outputs)
    outputs.clear()
    torch.cuda.empty_cache()
    clock.say(f"{shape.name}: timing")
    # forwards, then backwards: a clock that drifts during the run shows as a difference between the two
    runs: dict[str, list[float]] = {name: [] for name in order}
    for name in order + order[::-1]:
        runs[name].append(timer(partial(calls[name], args)))
        torch.cuda.empty_cache()
    for name in order:
        wall_us, host_us = timing.eager_us(partial(calls[name], args))
        results[name].update(gpu_us=sum(runs[name]) / 2, gpu_us_runs=runs[name], eager_us=wall_us, host_us=host_us)
    torch.cuda.empty_cache()
    return results


def compare(shape: workload.Shape, results: dict, ceilings: dict[str, float]) -> dict:
    """One row: what was measured, the floor, the verdict on the error and, where that is good, the speed-ups."""
    mine = results[OURS]
    rivals = {name: result for name, result in results.items() if name != OURS and "gpu_us" in result}
    row = {"shape": shape.name, "sizes": list(shape.sizes), "results": results, **report.floor(shape, ceilings)}
    row["roofline_share"] = row["floor_us"] / mine["gpu_us"]
    limit = ERROR_LIMIT
    if rivals:
        best = min(rivals, key=lambda name: rivals[name]["gpu_us"])
        limit = min(limit, rivals[best]["relative"])
        row["peer"] = best
    row["error_limit"] = limit
    row["passed"] = mine["relative"] <= limit
    if rivals and row["passed"]:
        row["gpu_speedup"] = rivals[best]["gpu_us"] / mine["gpu_us"]
        row["eager_speedup"] = min(rival["eager_us"] for rival in rivals.values()) / mine["eager_us"]
    return row


def parse(argv: list[str] | None, about: str = __doc__, name: str = "forward") -> argparse.Namespace:
    """The command line of this benchmark, or of another one with the same options."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--shapes", default="", help="names, prefixes of names or b,L,H,P,N,G, separated by spaces")
    parser.add_argument("--out", type=Path, help=f"JSON file to write; default: benchmarks/results/{name}_GPU.json")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    parser.add_argument("--quick", action="store_true", help="two short shapes and the peer's chunk size 256 only")
    parser.add_argument(
        "--chunks", type=int, nargs="+", choices=peer.CHUNKS, default=peer.CHUNKS, help="the peer's; default: all"
    )
    parser.add_argument(
        "--budget", type=float, default=450, metavar="SECONDS", help="start no new peer after this long"
    )
    options = parser.parse_args(argv)
    try:
        default = "2.7b_b1_2k 130m" if options.quick else " ".join(shape.name for shape in workload.SHAPES)
        options.shapes = workload.select(options.shapes or default)
    except ValueError as error:
        parser.error(str(error))
    if options.quick:
        options.chunks = peer.CHUNKS[-1:]
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if not torch.cuda.is_available():
        print("benchmarks/forward.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    clock = Clock(options.budget)
    rival, about = (None, "not asked for") if options.no_peer else peer.load()
    clock.say(f"peer: {about}")
    calls: dict[str, Callable] = {OURS: ours}
    if rival is not None:
        calls.update({f"mamba_ssm Q={chunk}": partial(rival, chunk) for chunk in options.chunks})
    ceilings = {"copy_tbs": timing.copy_tbs(), "bf16_tflops": timing.matmul_tflops()}
    clock.say("ceilings: {copy_tbs:.2f} TB/s copied, {bf16_tflops:.0f} TFLOP/s in bf16".format(**ceilings))
    timer = timing.ColdGpuTimer()
    document = {**report.environment(), "peer": about, "ceilings": ceilings, "rows": []}
    out = options.out or ROOT / "benchmarks" / "results" / f"forward_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        document["rows"].append(compare(shape, measure(shape, calls, timer, clock), ceilings))
        # after every shape: a run that is cut off keeps what it measured
        out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(report.table(document["rows"]))
    print(f"written: {out}")
    return 0 if all(row["passed"] for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
