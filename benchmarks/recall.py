"""A small language model learns to recall, with our scan, with mamba_ssm's and in float32.  -> loss curves, a verdict

    python benchmarks/recall.py [--steps 300] [--seed 0] [--device cuda] [--no-peer] [--out FILE] [--plot FILE]

All runs begin with the same weights and see the same batches.  The two scans run under bf16 autocast, the float32 one
is the PyTorch path.  How far apart curves may be is measured: by a float32 run whose first weights were rounded to
bf16, and by the peer's.  The script returns 1 where our curve is further from the float32 one than those allow.  A CPU
runs the PyTorch path throughout, in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peer, report  # noqa: E402
from benchmarks.recall_model import IGNORED, Model, Scan, Sizes, Task  # noqa: E402
from ssdgen.mamba2_ops import fallback, mamba_chunk_scan_combined  # noqa: E402

OURS, PEER = "ssdgen, bf16", "mamba_ssm, bf16"
EXACT, ROUNDED = "PyTorch, float32", "PyTorch, float32, weights rounded to bf16"
LEARNING_RATE = 5e-3
# steps whose losses are averaged before curves are compared: a batch's own loss moves more than the curve does
WINDOW = 20
# of the measured noise, and in nats: two bf16 runs differ more than one float32 run and its neighbour
SLACK, LEAST = 3.0, 0.05
# of the peer's distance, which is the noise of training in bf16 itself
PEER_SLACK = 1.5

Curve = list[float]


def in_pytorch(x, dt, A, B, C, chunk_size, **options) -> torch.Tensor:
    """The scan without kernels on any device, in the dtype of its operands."""
    return fallback.forward(x, dt, A, B, C, **options)[0]


def train(
    scan: Scan, *, device: str, steps: int, seed: int, task: Task, sizes: Sizes, batch: int, low: bool, rounded: bool
) -> tuple[Curve, float]:
    """(loss of each step, share of right answers in batches that were not trained on).

    low: bf16 autocast; rounded: begin from weights rounded to bf16.
    """
    torch.manual_seed(seed)
    # made on the CPU, so that every device begins with the same weights
    model = Model(task.vocabulary, sizes, scan)
    if rounded:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20)
        tokens, targets = (t.to(device) for t in task.batch(batch, seed * 1_000_003 + step))
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=low):
            logits = model(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    right = asked = 0
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=low):
        for index in range(4):
            tokens, targets = (t.to(device) for t in task.batch(batch, seed * 1_000_003 + 900_000 + index))
            wanted = targets != IGNORED
            right += int((model(tokens).argmax(-1) == targets)[wanted].sum())
            asked += int(wanted.sum())
    return torch.stack(losses).tolist(), right / asked


def smooth(curve: Curve) -> list[float]:
    """Means of WINDOW steps, one after the other; what is left at the end counts too."""
    return [sum(part) / len(part) for part in (curve[at : at + WINDOW] for at in range(0, len(curve), WINDOW))]


def distance(one: Curve, other: Curve) -> float:
    """The largest difference of the smoothed curves, nats; infinite if a loss is not a number."""
    gaps = [abs(a - b) for a, b in zip(smooth(one), smooth(other), strict=True)]
    return max(gaps) if all(gap == gap for gap in gaps) else float("inf")


def verdict(curves: dict[str, Curve]) -> dict:
    """noise and allowed, nats; how far each bf16 curve is from the float32 one; agree: whether ours is near enough."""
    noise = distance(curves[ROUNDED], curves[EXACT])
    far = {name: distance(curve, curves[EXACT]) for name, curve in curves.items() if name in (OURS, PEER)}
    allowed = SLACK * noise + LEAST
    if isfinite(rival := far.get(PEER, 0.0)):
        allowed = max(allowed, PEER_SLACK * rival)
    return {"noise": noise, "allowed": allowed, "distances": far, "agree": far[OURS] <= allowed}


def plot(curves: dict[str, Curve], path: Path) -> bool:
    """Write the picture; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture; `pip install ssdgen[bench]`", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve, label=name, linewidth=1, linestyle=":" if name == ROUNDED else "-")
    axes.set(xlabel="step", ylabel="cross-entropy, nats", title="Multi-query associative recall, two layers of Mamba-2")
    axes.legend()
    # no date and no version of the library: the same curves give the same bytes
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return True


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-peer", action="store_true", help="without mamba_ssm")
    parser.add_argument("--small", action="store_true", help="short sequences and a narrow model, for a CPU")
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/recall_GPU.json")
    parser.add_argument("--plot", type=Path, help="picture; default: docs/recall.png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    runs: dict[str, tuple[Scan, bool, bool]] = {
        # a CPU computes bf16 far more slowly than fp32
        OURS: (mamba_chunk_scan_combined, options.device != "cpu", False),
        EXACT: (in_pytorch, False, False),
        ROUNDED: (in_pytorch, False, True),
    }
    rival, about = (None, "not asked for") if options.no_peer else peer.load_public()
    if rival is not None and options.device != "cpu":
        runs[PEER] = (rival, True, False)
    print(f"peer: {about}", file=sys.stderr)
    task, sizes = (Task(4, 24, 8, 8), Sizes(32, 2, 16, 16)) if options.small else (Task(), Sizes())
    curves, found = {}, {}
    for name, (scan, low, rounded) in runs.items():
        begin = time.monotonic()
        curves[name], accuracy = train(
            scan, device=options.device, steps=options.steps, seed=options.seed, task=task, sizes=sizes,
            batch=options.batch, low=low, rounded=rounded,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        found[name] = {"accuracy": accuracy, "seconds": seconds, "losses": curves[name]}
        print(f"{name:45} loss {smooth(curves[name])[-1]:.4f}  right {accuracy:6.1%}  {seconds:6.1f} s", flush=True)
    gpu = options.device != "cpu"
    document = {
        **(report.environment() if gpu else {"gpu": "none", "torch": torch.__version__}),
        "peer": about,
        "task": vars(task),
        "sizes": vars(sizes),
        "steps": options.steps,
        "batch": options.batch,
        "seed": options.seed,
        "runs": found,
        "verdict": verdict(curves),
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"recall_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    plot(curves, options.plot or ROOT / "docs" / "recall.png")
    print("noise {noise:.4f} nats, allowed {allowed:.4f}, distances {distances}".format(**document["verdict"]))
    print("the curves agree" if document["verdict"]["agree"] else "the curves DIFFER by more than noise")
    return 0 if document["verdict"]["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
