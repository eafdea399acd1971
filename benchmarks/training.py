"""A forward and a backward pass beside mamba_ssm's: all errors, times, memory.  -> a table and a JSON file

    python benchmarks/training.py [--shapes "2.7b 8,2048,24,64,128,1"] [--out FILE] [--no-peer] [--quick]

Needs a CUDA GPU.  Nothing is timed before the error of y and of every gradient against float64 is known, and a shape of
which one is too large gets no speed-up.  README.md says how to read the table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    forward,
    gradient_reference,
    peer,
    profiling,
    reference,
    report,
    timing,
    training_report,
    workload,
)
from ssdgen.mamba2_ops import mamba_chunk_scan_combined, memory  # noqa: E402

OURS = forward.OURS
OPERANDS = gradient_reference.OPERANDS

Tensors = dict[str, torch.Tensor]
Scan = Callable[..., torch.Tensor]
Errors = dict[str, dict[str, dict[str, float]]]

# of the inputs.  What A gets is one sum over all tokens: its error is one number drawn, which moves threefold
DRAWS = 4


def gradients(scan: Scan, chunk_size: int, leaves: Tensors, d_y: torch.Tensor) -> Tensors:
    """y and the gradients of all operands, by name: one step, as a model makes it."""
    with torch.enable_grad():
        x, dt, A, B, C = (leaves[name] for name in ("x", "dt", "A", "B", "C"))
        y = scan(x, dt, A, B, C, chunk_size, D=leaves["D"], dt_bias=leaves["dt_bias"], dt_softplus=True)
        found = torch.autograd.grad(y, [leaves[name] for name in OPERANDS], d_y)
    return {"y": y.detach(), **dict(zip(OPERANDS, found, strict=True))}


def measure(
    shape: workload.Shape, calls: dict[str, tuple[Scan, int]], timer: timing.ColdGpuTimer, clock: forward.Clock
) -> dict:
    """{name: errors, gpu_us, eager_us, host_us, launches, extra_mb, or "skipped" or "failed" with the reason}."""
    results = first_calls(shape, calls, clock)
    order = [name for name in calls if "extra_mb" in results[name]]

    clock.say(f"{shape.name}: float64 reference and errors")
    drawn = []
    for draw in range(DRAWS):
        drawn.append(errors(shape, {name: calls[name] for name in order}, forward.SEED + 2 * draw))
        torch.cuda.empty_cache()
        if clock.is_up():
            break
    for name in order:
        results[name]["errors"] = over_draws([found[name] for found in drawn])

    clock.say(f"{shape.name}: timing")
    steps = steps_of(calls, *inputs(shape, forward.SEED))
    times, how = gpu_times({name: steps[name] for name in order}, timer)
    for name in order:
        wall_us, host_us = timing.eager_us(steps[name])
        results[name] |= {"gpu_us": sum(times[name]) / len(times[name]), "gpu_us_runs": times[name], "timed": how}
        results[name] |= {"eager_us": wall_us, "host_us": host_us, "launches": launches(steps[name])}
    torch.cuda.empty_cache()
    return results


def first_calls(
    shape: workload.Shape, calls: dict[str, tuple[Scan, int]], clock: forward.Clock
) -> dict[str, dict[str, Any]]:
    """{name: first_call_s, extra_mb, or "skipped" or "failed" with the reason}."""
    results: dict[str, dict[str, Any]] = {}
    for name, step in steps_of(calls, *inputs(shape, forward.SEED)).items():
        if name != OURS and clock.is_up():
            results[name] = {"skipped": "the time budget was spent"}
            continue
        clock.say(f"{shape.name}: {name}, first step (may compile and tune)")
        begin = time.monotonic()
        try:
            step()
            torch.cuda.synchronize()
            results[name] = {"first_call_s": time.monotonic() - begin, "extra_mb": profiling.extra_mb(step)}
        except torch.cuda.OutOfMemoryError as error:
            results[name] = {"failed": str(error).splitlines()[0]}
        torch.cuda.empty_cache()
    return results


def inputs(shape: workload.Shape, seed: int) -> tuple[Tensors, torch.Tensor]:
    """Operands, and the gradient of y."""
    args = workload.inputs(shape, "cuda", seed)
    generator = torch.Generator(device="cuda").manual_seed(seed + 1)
    return args, torch.randn(args["x"].shape, device="cuda", generator=generator).to(args["x"].dtype)


def steps_of(calls: dict[str, tuple[Scan, int]], args: Tensors, d_y: torch.Tensor) -> dict[str, Callable]:
    """A training step of each candidate, ready to be called."""
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    return {name: partial(gradients, scan, chunk, leaves, d_y) for name, (scan, chunk) in calls.items()}


def errors(shape: workload.Shape, calls: dict[str, tuple[Scan, int]], seed: int) -> Errors:
    """{candidate: {result: its error against float64}} for one draw of the inputs."""
    args, d_y = inputs(shape, seed)
    outputs = {name: step() for name, step in steps_of(calls, args, d_y).items()}
    of_y = reference.errors(args, {name: found.pop("y") for name, found in outputs.items()})
    torch.cuda.empty_cache()
    of_gradients = gradient_reference.errors(args, d_y, outputs)
    return {name: {"y": of_y[name], **of_gradients[name]} for name in calls}


def over_draws(drawn: list[dict[str, dict[str, float]]]) -> dict[str, dict]:
    """The errors of one candidate over its draws: relative ones in the root mean square, the largest of all."""
    return {
        name: {
            "relative": (sum(draw[name]["relative"] ** 2 for draw in drawn) / len(drawn)) ** 0.5,
            "largest": max(draw[name]["largest"] for draw in drawn),
            "draws": [draw[name]["relative"] for draw in drawn],
        }
        for name in drawn[0]
    }


def launches(step: Callable) -> int | None:
    """Kernels of a step; None where the profiler sees none."""
    try:
        return profiling.kernels(step)[0]
    except RuntimeError as error:
        print(f"launches were not counted: {error}", file=sys.stderr)
        return None


def gpu_times(steps: dict[str, Callable], timer: timing.ColdGpuTimer) -> tuple[dict[str, list[float]], str]:
    """({name: GPU times in microseconds}, how): CUDA graphs, or for all of them kernel times where one has no graph."""
    # forwards, then backwards: a clock that drifts during the run shows as a difference between the two
    turns = [*steps, *reversed(steps)]
    runs: dict[str, list[float]] = {name: [] for name in steps}
    try:
        for name in turns:
            runs[name].append(timer(steps[name]))
            torch.cuda.empty_cache()
        return runs, "graph, cold L2"
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"{name} cannot be captured ({str(error).splitlines()[0]}): kernel times instead", file=sys.stderr)
    profiling.recover()
    runs = {name: [] for name in steps}
    for name in turns:
        runs[name].append(profiling.kernels(steps[name])[1])
    return runs, "sum of kernel times"


def main(argv: list[str] | None = None) -> int:
    options = forward.parse(argv, about=__doc__, name="training")
    if not torch.cuda.is_available():
        print("benchmarks/training.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    clock = forward.Clock(options.budget)
    rival, about = (None, "not asked for") if options.no_peer else peer.load_public()
    clock.say(f"peer: {about}")
    calls: dict[str, tuple[Scan, int]] = {OURS: (mamba_chunk_scan_combined, 256)}
    if rival is not None:
        calls.update({f"mamba_ssm Q={chunk}": (rival, chunk) for chunk in options.chunks})
    ceilings = {"copy_tbs": timing.copy_tbs(), "bf16_tflops": timing.matmul_tflops()}
    clock.say("ceilings: {copy_tbs:.2f} TB/s copied, {bf16_tflops:.0f} TFLOP/s in bf16".format(**ceilings))
    timer = timing.ColdGpuTimer()
    document = {**report.environment(), "peer": about, "ceilings": ceilings, "keeps_states": memory.keeps_states()}
    document["rows"] = []
    out = options.out or ROOT / "benchmarks" / "results" / f"training_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        row = training_report.compare(shape, measure(shape, calls, timer, clock), ceilings)
        document["rows"].append(row)
        # after every shape: a run that is cut off keeps what it measured
        out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(training_report.table(document["rows"]))
    print(f"written: {out}")
    return 0 if all(row["passed"] for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
