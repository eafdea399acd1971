"""Memory of a forward and a backward pass beside mamba_ssm's, and what limits cost.  -> a table and a JSON file

    python benchmarks/memory.py [--shapes "2.7b 8,2048,24,64,128,1"] [--limits 1G 256M 64M] [--no-peer] [--quick]

Needs a CUDA GPU.  *Extra* is the most that a step holds at a time beside its operands, d_y, y and the gradients that it
returns: what is kept between the passes, and what both need to work.  A limit is SSDGEN_MEMORY_LIMIT.  A shape whose
errors are too large gets no ratio.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import growth, machine, peer, report, tail_reference, workload  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from benchmarks.rivals import OURS, Candidate, mamba_ssm, ours  # noqa: E402

LIMIT = "SSDGEN_MEMORY_LIMIT"
LIMITS = ("2G", "512M", "128M", "32M")


@contextmanager
def limited(to: str | None) -> Iterator[None]:
    """Inside, the backward pass may keep so much; None: as much as it wants."""
    before = os.environ.pop(LIMIT, None)
    if to is not None:
        os.environ[LIMIT] = to
    try:
        yield
    finally:
        os.environ.pop(LIMIT, None)
        if before is not None:
            os.environ[LIMIT] = before


def outputs_mb(shape: workload.Shape, operands: dict[str, torch.Tensor]) -> float:
    """y and the gradients of all operands, 1e6 bytes."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in operands.values()]
    return (sum(sizes) + operands["x"].numel() * operands["x"].element_size()) / 1e6


def measure(shape: workload.Shape, candidate: Candidate, limit: str | None, gpu: machine.Gpu) -> dict[str, Any]:
    """errors, passed and, where they are good, peak_mb, extra_mb and gpu_us of a step."""
    args, d_y = growth.inputs(shape, gpu.device)
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    call = partial(growth.step, candidate.run, leaves, d_y)
    with limited(limit):
        found = tail_reference.errors(call(), args, d_y)
        row: dict[str, Any] = {"errors": found, "passed": growth.passed(found)}
        gpu.tidy()
        if row["passed"]:
            row["peak_mb"] = gpu.extra_mb(call)
            row["extra_mb"] = row["peak_mb"] - outputs_mb(shape, args)
            gpu.tidy()
            row["gpu_us"], row["timed"] = gpu.gpu_us(call)
    return row


def candidates(scan: Callable | None, chunks: list[int], limits: list[str]) -> list[tuple[Candidate, str | None]]:
    made: list[tuple[Candidate, str | None]] = [(ours(), None), *((ours(), limit) for limit in limits)]
    return made + ([(mamba_ssm(scan, chunk), None) for chunk in chunks] if scan is not None else [])


def label(candidate: Candidate, limit: str | None) -> str:
    return candidate.name if limit is None else f"{candidate.name}, {limit}"


def compare(shape: workload.Shape, results: dict[str, Any]) -> dict[str, Any]:
    """A row: everything measured, the leanest of the peer's chunk sizes, and our extra memory over its."""
    row: dict[str, Any] = {"shape": shape.name, "sizes": list(shape.sizes), "results": results}
    right = {name: result for name, result in results.items() if result.get("passed")}
    theirs = {name: result for name, result in right.items() if not name.startswith(OURS)}
    row["passed"] = all(result.get("passed", True) for name, result in results.items() if name.startswith(OURS))
    if theirs:
        row["peer"] = min(theirs, key=lambda name: theirs[name]["extra_mb"])
        if row["passed"] and OURS in right:
            row["ratio"] = right[OURS]["extra_mb"] / theirs[row["peer"]]["extra_mb"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [("b,L,H,P,N,G", "who", "extra MB", "of the peer's", "peak MB", "us", "of unlimited")]
    for row in rows:
        base = row["results"].get(OURS, {}).get("gpu_us")
        least = row["results"][row["peer"]]["extra_mb"] if "peer" in row else None
        for name, result in row["results"].items():
            sizes = ",".join(str(size) for size in row["sizes"])
            if "gpu_us" not in result:
                said = "WRONG" if result.get("passed") is False else result.get("failed") or result.get("skipped", "")
                lines.append((sizes, name, said, "", "", "", ""))
                continue
            share = f"{result['extra_mb'] / least:.2f}" if least and row["passed"] and name.startswith(OURS) else ""
            slower = f"{result['gpu_us'] / base:.2f}" if base and name.startswith(OURS) else ""
            extra, peak, us = (f"{result[key]:.0f}" for key in ("extra_mb", "peak_mb", "gpu_us"))
            lines.append((sizes, name, extra, share, peak, us, slower))
    note = "extra: the most beside operands, d_y, y and gradients; peak: with y and gradients; the peer's: its leanest"
    return "\n".join([*report.aligned(lines), note])


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    parser = machine.parser(__doc__ or "", "memory", 540)
    parser.add_argument("--shapes", default="", help="names, prefixes of names or b,L,H,P,N,G, separated by spaces")
    parser.add_argument(
        "--limits", nargs="*", default=list(LIMITS), help=f"{LIMIT} values; default: {' '.join(LIMITS)}"
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[128, 256], help="mamba_ssm's; default: 128 256")
    options = parser.parse_args(argv)
    try:
        everything = " ".join(shape.name for shape in workload.SHAPES)
        shapes = workload.select(options.shapes or ("2.7b_b1_2k" if options.quick else everything))
    except ValueError as error:
        parser.error(str(error))
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/memory.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    clock = Clock(options.budget)
    scan, about = (None, "not asked for") if options.no_peer else peer.load_public()
    clock.say(f"peer: {about}")
    here = gpu.environment()
    out = options.out or machine.results_path("memory", here["gpu"])
    before = machine.earlier(out, here) if options.resume else []
    document = machine.Document(out, {**here, "peer": about, "rows": []})
    known = {tuple(row["sizes"]): row["results"] for row in before}
    for shape in shapes:
        results: dict[str, Any] = {}
        for candidate, limit in candidates(scan, options.chunks, options.limits):
            name = label(candidate, limit)
            if "gpu_us" in (found := known.get(shape.sizes, {}).get(name, {})):
                results[name] = found
                continue
            if clock.is_up():
                results[name] = {"skipped": "no time"}
                continue
            clock.say(f"{shape.name}: {name}")
            results[name] = machine.attempt(partial(measure, shape, candidate, limit, gpu), gpu)
            gpu.tidy()
        document.content["rows"].append(compare(shape, results))
        document.write()
    print(table(document.content["rows"]))
    print(f"written: {out}")
    return 0 if all(row["passed"] for row in document.content["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
