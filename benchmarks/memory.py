"""Memory of a forward and a backward pass beside mamba_ssm's, and what limits cost.  -> a table and a JSON file

    python benchmarks/memory.py [--shapes "2.7b 8,2048,24,64,128,1"] [--within 0.5] [--limits 1G 256M 64M]
                                [--slices 2 4 8] [--no-peer] [--quick]

Needs a CUDA GPU.  *Extra* is the most that a step holds at a time beside its operands, d_y, y and the gradients that it
returns: what is kept between the passes, and what both need to work.  A limit is SSDGEN_MEMORY_LIMIT; within a share of
the peer's extra is the largest limit, of those tried from that share downwards, with which all that a step holds is no
more.  Slices are asked for by the config, as the tuner would begin with them.  A shape whose errors are too large gets
no ratio.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import growth, machine, peer, report, tail_reference, workload  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from benchmarks.rivals import OURS, Candidate, mamba_ssm, ours  # noqa: E402
from ssdgen.mamba2_ops import select  # noqa: E402
from ssdgen.mamba2_ops.problem import Problem  # noqa: E402
from ssdgen.plan import backward_space  # noqa: E402
from ssdgen.plan.problem import Problem as Planned  # noqa: E402
from ssdgen.tune import device  # noqa: E402

LIMIT = "SSDGEN_MEMORY_LIMIT"
LIMITS = ("2G", "512M", "128M", "32M")
# of the peer's extra
WITHIN = (0.5,)
# limits that are tried for a share, and how much of it each is less than the one before at least
TRIES, LESS = 12, 0.05


@dataclass(frozen=True)
class Way:
    """A candidate, and how its backward pass goes: under a limit, within a share of the peer's extra, or in slices."""

    candidate: Candidate
    limit: str | None = None
    share: float | None = None
    slices: int | None = None

    @property
    def label(self) -> str:
        """As a row names it."""
        if self.limit is not None:
            return f"{self.candidate.name}, {self.limit}"
        if self.share is not None:
            return f"{self.candidate.name}, {self.share:g} of the peer's"
        return f"{self.candidate.name}, {self.slices} slices" if self.slices else self.candidate.name


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


@contextmanager
def sliced(shape: workload.Shape, count: int, where: str) -> Iterator[None]:
    """Inside, the config of the backward pass has so many slices, with the segments and parts that suit them."""
    problem, place = Problem(*shape.sizes, "bfloat16"), torch.device(where, 0)
    before = select.backward_config_for(problem, place)
    if before is None:
        raise ValueError(f"no kernel takes the backward pass of {shape.name}, so there is nothing to cut")
    cut = backward_space.in_slices(before, count, Planned(*shape.sizes), device.gpu_here())
    select.replace_backward(problem, place, cut)
    try:
        yield
    finally:
        select.replace_backward(problem, place, before)


def measure(shape: workload.Shape, way: Way, gpu: machine.Gpu, theirs_mb: float | None = None) -> dict[str, Any]:
    """errors, passed and, where they are good, peak_mb, extra_mb and gpu_us of a step; limit_mb within a share.

    theirs_mb: the peer's extra, of which a share is one.
    """
    args, d_y = growth.inputs(shape, gpu.device)
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    call = partial(growth.step, way.candidate.run, leaves, d_y)
    results, limit, row = outputs_mb(shape, args), way.limit, {}
    if way.share is not None:
        if theirs_mb is None:
            return {"skipped": "nothing of the peer to have a share of"}
        row["limit_mb"] = limit_within(way.share * theirs_mb, results, call, gpu)
        limit = str(round(1e6 * row["limit_mb"]))
    with limited(limit), sliced(shape, way.slices, gpu.device) if way.slices else nullcontext():
        found = tail_reference.errors(call(), args, d_y)
        row |= {"errors": found, "passed": growth.passed(found)}
        gpu.tidy()
        if row["passed"]:
            row["peak_mb"] = gpu.extra_mb(call)
            row["extra_mb"] = row["peak_mb"] - results
            gpu.tidy()
            row["gpu_us"], row["timed"] = gpu.gpu_us(call)
    return row


def limit_within(wanted_mb: float, results_mb: float, call: Callable[[], object], gpu: machine.Gpu) -> float:
    """The limit, 1e6 bytes, with which a step holds no more than is wanted beside its results, or the last one tried.

    A limit is of what is kept alone, and a step holds numbers of tokens besides.
    """
    limit = wanted_mb
    for _ in range(TRIES):
        with limited(str(max(1, round(1e6 * limit)))):
            call()
            gpu.tidy()
            over = gpu.extra_mb(call) - results_mb - wanted_mb
        less = limit - max(over, LESS * wanted_mb)
        if over <= 0 or less <= 0:
            break
        limit = less
    return limit


def ways(scan: Callable | None, options: argparse.Namespace) -> list[Way]:
    """In the order in which they are measured: a share of the peer's comes after the peer."""
    made = [Way(ours()), *(Way(ours(), limit=limit) for limit in options.limits)]
    made += [Way(ours(), slices=count) for count in options.slices]
    if scan is not None:
        made += [Way(mamba_ssm(scan, chunk)) for chunk in options.chunks]
        made += [Way(ours(), share=share) for share in options.within]
    return made


def leanest(results: dict[str, Any]) -> str | None:
    """The name of the peer's right result that holds least."""
    right = [name for name, result in results.items() if _is_peers(name, result)]
    return min(right, key=lambda name: results[name]["extra_mb"], default=None)


def compare(shape: workload.Shape, results: dict[str, Any]) -> dict[str, Any]:
    """A row: everything measured, the leanest of the peer's chunk sizes, and our extra memory over its."""
    row: dict[str, Any] = {"shape": shape.name, "sizes": list(shape.sizes), "results": results}
    right = {name: result for name, result in results.items() if result.get("passed")}
    row["passed"] = all(result.get("passed", True) for name, result in results.items() if name.startswith(OURS))
    if peer_ := leanest(results):
        row["peer"] = peer_
        if row["passed"] and OURS in right:
            row["ratio"] = right[OURS]["extra_mb"] / right[peer_]["extra_mb"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [("b,L,H,P,N,G", "who", "extra MB", "of the peer's", "peak MB", "us", "of unlimited", "peer's us")]
    for row in rows:
        base = row["results"].get(OURS, {}).get("gpu_us")
        least = row["results"][row["peer"]]["extra_mb"] if "peer" in row else None
        theirs = [result["gpu_us"] for name, result in row["results"].items() if _is_peers(name, result)]
        for name, result in row["results"].items():
            sizes = ",".join(str(size) for size in row["sizes"])
            if "gpu_us" not in result:
                said = "WRONG" if result.get("passed") is False else result.get("failed") or result.get("skipped", "")
                lines.append((sizes, name, said, "", "", "", "", ""))
                continue
            share = f"{result['extra_mb'] / least:.2f}" if least and row["passed"] and name.startswith(OURS) else ""
            slower = f"{result['gpu_us'] / base:.2f}" if base and name.startswith(OURS) else ""
            faster = (
                f"{min(theirs) / result['gpu_us']:.2f}" if theirs and row["passed"] and name.startswith(OURS) else ""
            )
            extra, peak, us = (f"{result[key]:.0f}" for key in ("extra_mb", "peak_mb", "gpu_us"))
            lines.append((sizes, name, extra, share, peak, us, slower, faster))
    note = (
        "extra: the most beside operands, d_y, y and gradients; peak: with y and gradients; the peer's: its leanest;\n"
        "the peer's us: those of its fastest, over ours"
    )
    return "\n".join([*report.aligned(lines), note])


def _is_peers(name: str, result: dict[str, Any]) -> bool:
    return not name.startswith(OURS) and bool(result.get("passed"))


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    parser = machine.parser(__doc__ or "", "memory", 540)
    parser.add_argument("--shapes", default="", help="names, prefixes of names or b,L,H,P,N,G, separated by spaces")
    parser.add_argument(
        "--limits", nargs="*", default=list(LIMITS), help=f"{LIMIT} values; default: {' '.join(LIMITS)}"
    )
    shares = " ".join(f"{share:g}" for share in WITHIN)
    parser.add_argument(
        "--within", type=float, nargs="*", default=list(WITHIN), help=f"shares of the peer's extra; default: {shares}"
    )
    parser.add_argument("--slices", type=int, nargs="*", default=[], help="counts of slices of a config; default: none")
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
        for way in ways(scan, options):
            name = way.label
            if "gpu_us" in (found := known.get(shape.sizes, {}).get(name, {})):
                results[name] = found
                continue
            if clock.is_up():
                results[name] = {"skipped": "no time"}
                continue
            clock.say(f"{shape.name}: {name}")
            theirs = leanest(results)
            theirs_mb = results[theirs]["extra_mb"] if theirs else None
            results[name] = machine.attempt(partial(measure, shape, way, gpu, theirs_mb), gpu)
            gpu.tidy()
        document.content["rows"].append(compare(shape, results))
        document.write()
    print(table(document.content["rows"]))
    print(f"written: {out}")
    return 0 if all(row["passed"] for row in document.content["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
