"""Time against length and state size, beside attention, scans and other kernels.  -> a table and a JSON file

    python benchmarks/growth.py [--sweep length state growth] [--budget SECONDS] [--out FILE] [--no-peer] [--quick]

Needs a CUDA GPU.  `length` and `state` are the two figures of the Mamba-2 paper, `growth` says whether time per token
and memory per token stay what they are up to a million tokens, also at lengths that no chunk divides.  Each cell is
checked against float64 before it is timed.  A sweep that is run again replaces its own part of the file alone;
growth_plot.py draws the file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import growth_report, machine, rivals, tail_reference, workload  # noqa: E402
from benchmarks.forward import SEED, Clock  # noqa: E402
from benchmarks.rivals import OURS, Candidate  # noqa: E402
from benchmarks.training_report import LIMITS  # noqa: E402
from benchmarks.workload import Shape  # noqa: E402

FORWARD, BOTH = "forward", "both"
SWEEPS = ("length", "state", "growth")
# the 2.7B layer
HEADS, HEADDIM, DSTATE = 80, 64, 128
LENGTHS = tuple(512 << power for power in range(12))
STATES = (16, 32, 64, 128, 256)
# the 1.3B layer: a million tokens of the larger one, both passes, need more than 80 GB
GROWTH_HEADS = 64
# multiples of every chunk, each with neighbours that are not
GROWTH = (16384, 16383, 16385, 65536, 65553, 262144, 262244, 1048576, 1000003)
# offsets of other libraries' kernels are 32-bit numbers: beyond this length a peer may break the GPU's context
SAFE = 131072


@dataclass(frozen=True)
class Cell:
    candidate: Candidate
    shape: Shape
    passes: str


def shapes(sweep: str, batch: int = 4) -> list[Shape]:
    if sweep == "state":
        return [Shape(f"N={n}", batch, 4096, HEADS, HEADDIM, n, 1) for n in STATES]
    lengths, heads = (LENGTHS, HEADS) if sweep == "length" else (GROWTH, GROWTH_HEADS)
    return [Shape(f"L={length}", 1, length, heads, HEADDIM, DSTATE, 1) for length in lengths]


def takes_part(candidate: Candidate, sweep: str) -> bool:
    """Growth is about ours.  Attention has no state; Mamba-1's scan has its own against length, the same in `state`."""
    if sweep == "growth":
        return candidate.name == OURS
    if sweep == "state":
        return not candidate.quadratic and candidate.dstate is None
    return candidate.name != rivals.SCAN


def cells(sweep: str, candidates: list[Candidate], over: list[Shape]) -> list[Cell]:
    """In the order of measuring: forward passes first; side by side, but beyond SAFE ours before anybody else."""
    made = [
        Cell(candidate, rivals.shape_for(candidate, shape), passes)
        for passes in (FORWARD, BOTH)
        for shape in over
        for candidate in candidates
        if takes_part(candidate, sweep)
    ]
    return sorted(made, key=lambda cell: cell.shape.seqlen > SAFE and cell.candidate.name != OURS)


def step(run: Callable[[dict], Tensor], leaves: dict[str, Tensor], d_y: Tensor) -> dict[str, Tensor]:
    """y and the gradients of all that has one."""
    with torch.enable_grad():
        y = run(leaves)
        wanted = [name for name, leaf in leaves.items() if leaf.requires_grad]
        found = torch.autograd.grad(y, [leaves[name] for name in wanted], d_y)
    return {"y": y.detach(), **dict(zip(wanted, found, strict=True))}


def inputs(shape: Shape, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments, and the gradient of y."""
    args = workload.inputs(shape, device, SEED)
    generator = torch.Generator(device=device).manual_seed(SEED + 1)
    return args, torch.randn(args["x"].shape, device=device, generator=generator).to(args["x"].dtype)


def errors(cell: Cell, args: dict[str, Tensor], d_y: Tensor) -> dict[str, float]:
    """Of y and, for both passes, of the gradients, against float64."""
    candidate, both = cell.candidate, cell.passes == BOTH
    if candidate.quadratic:
        leaves = {name: t.detach().requires_grad_(both) for name, t in candidate.prepare(args).items()}
        d_y = d_y.reshape(leaves["q"].shape)
        found = step(candidate.run, leaves, d_y) if both else {"y": candidate.run(leaves)}
        return tail_reference.attention_errors(leaves, found, d_y if both else None)

    def whole(leaves: dict[str, Tensor]) -> Tensor:
        return candidate.finish(leaves, candidate.run(candidate.prepare(leaves)))

    leaves = {name: value.detach().requires_grad_(both) for name, value in args.items()}
    found = step(whole, leaves, d_y) if both else {"y": whole(leaves)}
    return tail_reference.errors(found, args, d_y if both else None)


def passed(found: dict[str, float]) -> bool:
    """Whether every error is within its limit; of attention's queries, that of C."""
    # written so that a NaN is wrong
    return not [name for name, error in found.items() if not error <= LIMITS["C" if name == "q" else name]]


def measure(cell: Cell, gpu: machine.Gpu) -> dict[str, Any]:
    """errors, passed and, where they are good, gpu_us, timed and extra_mb."""
    args, d_y = inputs(cell.shape, gpu.device)
    begin = time.monotonic()
    found = errors(cell, args, d_y)
    row: dict[str, Any] = {"errors": found, "passed": passed(found), "checked_s": time.monotonic() - begin}
    gpu.tidy()
    if not row["passed"]:
        return row
    made = {name: value.detach() for name, value in cell.candidate.prepare(args).items()}
    if cell.passes == BOTH:
        with torch.no_grad():
            own = torch.empty_like(cell.candidate.run(made))
        # another order of the same random numbers; d_y of the layer is no longer needed
        own.copy_(d_y.reshape(-1)[: own.numel()].view(own.shape))
        del d_y
        leaves = {name: value.requires_grad_() for name, value in made.items()}
        call = partial(step, cell.candidate.run, leaves, own)
    else:
        del d_y
        call = partial(cell.candidate.run, made)
    del args
    gpu.tidy()
    with torch.no_grad():
        call()
        row["extra_mb"] = gpu.extra_mb(call)
        gpu.tidy()
        row["gpu_us"], row["timed"] = gpu.gpu_us(call)
    return row


def expected_us(cell: Cell, rows: list[dict[str, Any]]) -> float | None:
    """How long a call will take, from the last length of the same candidate; None: unknown."""
    before = [row for row in rows if row["candidate"] == cell.candidate.name and row["passes"] == cell.passes]
    before = [row for row in before if "gpu_us" in row]
    if not before:
        return None
    last = before[-1]
    grown = cell.shape.seqlen / last["sizes"][1]
    return last["gpu_us"] * (grown**2 if cell.candidate.quadratic else grown)


def run_sweep(
    todo: list[Cell],
    gpu: machine.Gpu,
    clock: Clock,
    slowest_us: float,
    keep: Callable[[list], None],
    earlier: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """A row for every cell, handed to `keep` as they come.  earlier: rows that are taken as they are."""
    known = {(row["candidate"], tuple(row["sizes"]), row["passes"]): row for row in earlier or []}
    rows: list[dict[str, Any]] = []
    lost = ""
    for cell in todo:
        head = {"candidate": cell.candidate.name, "sizes": list(cell.shape.sizes), "passes": cell.passes}
        expected = expected_us(cell, rows)
        before = known.get((cell.candidate.name, cell.shape.sizes, cell.passes))
        if before is not None:
            rows.append(before)
            continue
        if lost:
            row: dict[str, Any] = {"skipped": f"the GPU was lost: {lost}"}
        elif clock.is_up():
            row = {"skipped": "the time budget was spent"}
        elif expected is not None and expected > slowest_us:
            row = {"skipped": f"a call would take about {expected / 1e6:.1f} s"}
        else:
            clock.say(f"{cell.candidate.name}, {cell.passes}, {cell.shape.name} (N={cell.shape.dstate})")
            try:
                row = machine.attempt(partial(measure, cell, gpu), gpu)
            except machine.DeviceLost as error:
                lost = f"{error}, in {cell.candidate.name} at {cell.shape.name}"
                row = {"failed": f"the GPU was lost: {error}"}
            else:
                gpu.tidy()
        rows.append(head | row)
        keep(rows)
    return rows


def parse(argv: list[str] | None):
    parser = machine.parser(__doc__ or "", "growth", 540)
    parser.add_argument("--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="default: all")
    parser.add_argument("--chunks", type=int, nargs="+", default=[128, 256], help="mamba_ssm's; default: 128 256")
    parser.add_argument("--slowest", type=float, default=1.5, metavar="SECONDS", help="leave longer calls out")
    parser.add_argument("--lengths", type=int, nargs="+", help="instead of those of the sweep (length, growth)")
    parser.add_argument("--states", type=int, nargs="+", help="instead of those of the sweep (state)")
    parser.add_argument("--heads", type=int, help="instead of those of the sweep")
    options = parser.parse_args(argv)
    if options.quick:
        options.lengths, options.states = options.lengths or [1024, 2048], options.states or [64]
        options.chunks = options.chunks[-1:]
    return options


def chosen(sweep: str, options) -> list[Shape]:
    """The shapes of a sweep, as the command line changes them."""
    base = shapes(sweep)
    values, name = (options.states, "dstate") if sweep == "state" else (options.lengths, "seqlen")
    if values:
        letter = "N" if sweep == "state" else "L"
        base = [replace(base[0], **{name: value}, name=f"{letter}={value}") for value in values]
    return [replace(shape, nheads=options.heads) for shape in base] if options.heads else base


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    options = parse(argv)
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/growth.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    clock = Clock(options.budget)
    candidates, about = rivals.load(not options.no_peer, tuple(options.chunks))
    for name, said in about.items():
        clock.say(f"{name}: {said}")
    here = gpu.environment()
    out = options.out or machine.results_path("growth", here["gpu"])
    content = json.loads(out.read_text()) if out.exists() else {"sweeps": {}}
    document = machine.Document(out, content)
    good = True
    for sweep in options.sweep:
        before = machine.earlier(out, here, lambda file, sweep=sweep: file["sweeps"].get(sweep, {}))
        part = content["sweeps"][sweep] = {**here, "peers": about, "rows": []}

        def keep(rows: list[dict], part: dict = part) -> None:
            part["rows"] = rows
            document.write()

        todo = cells(sweep, candidates, chosen(sweep, options))
        rows = run_sweep(todo, gpu, clock, 1e6 * options.slowest, keep, before if options.resume else None)
        part["rows"] = rows
        good &= all(row.get("passed", True) for row in rows if row["candidate"] == OURS)
        part["findings"] = growth_report.findings(sweep, rows)
        document.write()
        if any("the GPU was lost" in row.get("failed", "") for row in rows):
            # nothing works in this process any more
            break
    print(growth_report.tables(content["sweeps"], [sweep for sweep in options.sweep if sweep in content["sweeps"]]))
    print(f"written: {out}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
