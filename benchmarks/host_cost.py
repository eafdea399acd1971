"""What the host does for a call: its time, and whole steps in CUDA graphs.  -> a table and a JSON file

    python benchmarks/host_cost.py [--shapes "1,2048,80,64,128,1"] [--out FILE] [--no-peer] [--quick]

Needs a CUDA GPU.  *Host* is the time until a call is enqueued, *wall* the time of a call in a stream of them; both
passes are also timed in one thread, without the hand-over to that of autograd.  Last, a whole training step of a layer
(forward, loss, backward, AdamW) is captured in a graph and replayed: its parameters must become those of the same steps
made one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import growth, machine, peer, report, training_graph, workload  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from benchmarks.rivals import OURS, Candidate, mamba_ssm, ours  # noqa: E402
from ssdgen.mamba2_ops import Mamba2  # noqa: E402

# at most so much for ours at the first, the smallest shape, microseconds
TARGETS = {growth.FORWARD: 60.0, growth.BOTH: 200.0}
# both passes where autograd calls the backward pass in the thread that asks for it
ONE_THREAD = "one thread"
STEPS = 3
# of parameters after STEPS steps, |graph - eager| / |eager|: the same kernels in the same order
SAME = 1e-5


def measure(shape: workload.Shape, candidate: Candidate, passes: str, gpu: machine.Gpu) -> dict[str, Any]:
    """errors, passed and, where they are good, host_us and wall_us."""
    args, d_y = growth.inputs(shape, gpu.device)
    both = passes != growth.FORWARD
    with torch.autograd.set_multithreading_enabled(passes != ONE_THREAD):
        found = growth.errors(growth.Cell(candidate, shape, growth.BOTH if both else passes), args, d_y)
        row: dict[str, Any] = {"errors": found, "passed": growth.passed(found)}
        if row["passed"]:
            leaves = {name: value.detach().requires_grad_(both) for name, value in args.items()}
            if both:
                call: Callable[[], Any] = partial(growth.step, candidate.run, leaves, d_y)
            else:
                call = partial(candidate.run, leaves)
            row["wall_us"], row["host_us"] = gpu.eager_us(call)
    return row


def layer_step(device: str, d_model: int, seqlen: int) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """(a layer, a training step of it: it shall learn to be the identity)."""
    torch.manual_seed(0)
    layer = Mamba2(d_model, device=device)
    inputs = torch.randn(2, seqlen, d_model, device=device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, capturable=device == "cuda")

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = (layer(inputs).float() - inputs).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return layer, step


def whole_step(device: str, d_model: int = 1024, seqlen: int = 512) -> dict[str, Any]:
    """How far parameters after captured steps are from those of as many steps one by one, and from the first ones."""
    found = {}
    # a CPU has no graphs: there both are the same, and what is tried is the rest
    for name, made in (("eager", training_graph.eager), ("graph", training_graph.captured)):
        layer, step = layer_step(device, d_model, seqlen)
        begin = _flat(layer)
        take = made(step) if device == "cuda" else training_graph.eager(step)
        for _ in range(STEPS):
            take()
        found[name] = _flat(layer)
    apart = float((found["graph"] - found["eager"]).norm() / found["eager"].norm())
    moved = float((found["eager"] - begin).norm() / begin.norm())
    return {"apart": apart, "moved": moved, "passed": apart <= SAME < moved}


def _flat(layer: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in layer.parameters()])


def table(document: dict[str, Any]) -> str:
    lines = [("b,L,H,P,N,G", "passes", "who", "host us", "wall us", "target")]
    for row in document["rows"]:
        sizes = ",".join(str(size) for size in row["sizes"])
        if "host_us" not in row:
            said = "WRONG" if row.get("passed") is False else row.get("failed") or row.get("skipped", "")
            lines.append((sizes, row["passes"], row["candidate"], said, "", ""))
            continue
        target = f"{row['target_us']:.0f}" if "target_us" in row else ""
        lines.append((sizes, row["passes"], row["candidate"], f"{row['host_us']:.0f}", f"{row['wall_us']:.0f}", target))
    step = document.get("whole step", {"failed": "not tried"})
    said = (
        f"could not be captured: {step['failed']}"
        if "failed" in step
        else f"in a graph: parameters {step['apart']:.1e} apart, {'the same' if step['passed'] else 'NOT the same'}"
    )
    return "\n".join([*report.aligned(lines), f"a whole training step {said}"])


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    parser = machine.parser(__doc__ or "", "host_cost", 300, resume=False)
    parser.add_argument(
        "--shapes", default="2.7b_b1_2k 2.7b_b8_2k", help="names, prefixes or b,L,H,P,N,G, separated by spaces"
    )
    parser.add_argument("--chunk", type=int, default=256, help="mamba_ssm's; default: 256")
    options = parser.parse_args(argv)
    try:
        shapes = workload.select(options.shapes)
    except ValueError as error:
        parser.error(str(error))
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/host_cost.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    clock = Clock(options.budget)
    scan, about = (None, "not asked for") if options.no_peer else peer.load_public()
    clock.say(f"peer: {about}")
    here = gpu.environment()
    out = options.out or machine.results_path("host_cost", here["gpu"])
    document = machine.Document(out, {**here, "peer": about, "rows": []})
    rows = document.content["rows"]
    clock.say("a whole training step, one by one and in a graph")
    small = {"d_model": 128, "seqlen": 64} if options.quick else {}
    document.content["whole step"] = machine.attempt(partial(whole_step, gpu.device, **small), gpu)
    document.write()
    who = [ours(), *([mamba_ssm(scan, options.chunk)] if scan is not None else [])]
    for index, shape in enumerate(shapes[:1] if options.quick else shapes):
        for candidate in who:
            for passes in (growth.FORWARD, growth.BOTH, ONE_THREAD):
                row: dict[str, Any] = {"candidate": candidate.name, "sizes": list(shape.sizes), "passes": passes}
                if clock.is_up():
                    rows.append(row | {"skipped": "no time"})
                    continue
                clock.say(f"{shape.name}: {candidate.name}, {passes}")
                row |= machine.attempt(partial(measure, shape, candidate, passes, gpu), gpu)
                if candidate.name == OURS and not index and passes in TARGETS:
                    row["target_us"] = TARGETS[passes]
                rows.append(row)
                document.write()
                gpu.tidy()
    document.write()
    print(table(document.content))
    print(f"written: {out}")
    right = all(row.get("passed", True) for row in rows if row["candidate"] == OURS)
    return 0 if right and document.content["whole step"].get("passed", False) else 1


if __name__ == "__main__":
    sys.exit(main())
