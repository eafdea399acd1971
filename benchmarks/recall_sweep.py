"""Which state size recalls how many pairs: N = 16, 64, 256 against lengths and pairs.  -> a table, JSON, a picture

    python benchmarks/recall_sweep.py [--budget 540] [--states 16 64 256] [--tasks 256,32 512,64] [--out FILE]

Multi-query associative recall as in recall_model.Task, with a small two-layer model whose scan is ssdgen's.  A cell is
trained with one learning rate after the other.  It ends when a batch that was never trained on is answered (SOLVED),
when its steps are made, or when its share of the budget is spent, of which what early cells leave goes to later ones.
`--plot-only` draws the picture from the file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine, profiling, recall_sweep_report, report, training_graph  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from benchmarks.recall_model import IGNORED, Model, Sizes, Task  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined  # noqa: E402

STATES = (256, 64, 16)
# (length, pairs)
TASKS = ((256, 32), (256, 64), (512, 64), (512, 128), (1024, 128), (1024, 256))
# so many keys and as many values to choose from; more than the pairs of any task
WORDS = 512
SOLVED = recall_sweep_report.SOLVED
# where one of these ends up is luck: none is the best for all widths and state sizes
RATES = (1e-2, 2e-2, 5e-3)
# tokens of a batch, whatever the length
TOKENS = 32768
WARMUP = 100
EVALUATE = 100


@dataclass(frozen=True)
class Plan:
    """How a cell is trained.  rate: the largest learning rate; low: bf16 autocast."""

    steps: int
    rate: float
    batch: int
    device: str
    low: bool
    seed: int


def mixture(task: Task) -> list[Task]:
    """What is trained on, in turns: fewer pairs are found out first, and lead to more."""
    return [replace(task, pairs=max(1, task.pairs // share)) for share in (4, 2, 1)]


def rate_at(step: int, plan: Plan) -> float:
    """Up linearly, then down along a cosine to a tenth."""
    if step < WARMUP:
        return plan.rate * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, plan.steps - WARMUP)
    return plan.rate * (0.55 + 0.45 * cos(pi * min(1.0, done)))


@torch.no_grad()
def accuracy(model: Model, task: Task, plan: Plan, batches: int = 2) -> float:
    """Share of right answers in batches that are not trained on."""
    right = asked = 0
    for index in range(batches):
        tokens, targets = task.batch(plan.batch, 2**40 + plan.seed * batches + index, plan.device)
        with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.low):
            found = model(tokens).argmax(-1)
        wanted = targets != IGNORED
        right += int((found == targets)[wanted].sum())
        asked += int(wanted.sum())
    return right / asked


def trainer(model: Model, task: Task, plan: Plan) -> tuple[Callable[[int], None], str]:
    """(the step of that number, how it is made): a CUDA graph on a GPU, where that can be."""
    cuda = plan.device == "cuda"
    rate = torch.tensor(plan.rate, device=plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, capturable=cuda)
    tokens, targets = task.batch(plan.batch, 0, plan.device)
    tasks = mixture(task)

    def fill(number: int) -> None:
        rate.fill_(rate_at(number, plan))
        drawn = tasks[number % len(tasks)].batch(plan.batch, plan.seed * 1_000_003 + number, plan.device)
        for place, new in zip((tokens, targets), drawn, strict=True):
            place.copy_(new)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.low):
            logits = model(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    take, how = step, "step by step"
    if cuda:
        fill(0)
        try:
            take, how = training_graph.captured(step), "CUDA graph"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            machine.check_lost(error)
            profiling.recover()
            how = f"step by step: no graph, {str(error).splitlines()[0]}"[:160]

    def made(number: int) -> None:
        fill(number)
        take()

    return made, how


def train(task: Task, sizes: Sizes, plan: Plan, seconds: float, now: Callable[[], float]) -> dict[str, Any]:
    """accuracy, the curve of it over the steps, why the cell ended, and its time."""
    begin = now()
    torch.manual_seed(plan.seed)
    model = Model(task.vocabulary, sizes, mamba_chunk_scan_combined).to(plan.device)
    step, how = trainer(model, task, plan)
    curve: list[tuple[int, float]] = []
    ended = "all steps"
    number = 0
    while number < plan.steps:
        step(number)
        number += 1
        if number % EVALUATE == 0 or number == plan.steps:
            curve.append((number, accuracy(model, task, plan)))
            if curve[-1][1] >= SOLVED:
                ended = "solved"
                break
            if now() - begin > seconds:
                ended = "out of time"
                break
    return {
        "accuracy": max(right for _, right in curve) if curve else 0.0,
        "curve": curve,
        "steps": number,
        "ended": ended,
        "seconds": now() - begin,
        "made": how,
    }


def best_of_rates(
    task: Task, sizes: Sizes, plan: Plan, rates: list[float], seconds: float, now: Callable[[], float]
) -> dict[str, Any]:
    """The best of `train` with each rate until one solves the task; each has an equal share of what time is left."""
    begin, runs = now(), {}
    for tried, rate in enumerate(rates):
        share = (seconds - (now() - begin)) / (len(rates) - tried)
        runs[rate] = train(task, sizes, replace(plan, rate=rate), share, now)
        if runs[rate]["ended"] == "solved":
            break
    best = max(runs, key=lambda rate: runs[rate]["accuracy"])
    of_all = {str(rate): found["accuracy"] for rate, found in runs.items()}
    return {**runs[best], "rate": best, "accuracies": of_all, "seconds": now() - begin}


def cells(tasks: list[tuple[int, int]], states: list[int]) -> Iterator[tuple[int, int, int]]:
    """(length, pairs, N): easy tasks first, and of each all states, so that a cut run has whole comparisons."""
    for seqlen, pairs in tasks:
        for dstate in states:
            yield seqlen, pairs, dstate


def parse(argv: list[str] | None):
    parser = machine.parser(__doc__ or "", "recall_sweep", 540, peers=False)

    def pair(text: str) -> tuple[int, int]:
        seqlen, pairs = (int(number) for number in text.split(","))
        if 3 * pairs > seqlen or pairs < 1:
            raise ValueError(text)
        return seqlen, pairs

    pair.__name__ = "length,pairs with three places for each pair"
    parser.add_argument("--tasks", nargs="+", type=pair, default=list(TASKS), metavar="LENGTH,PAIRS")
    parser.add_argument("--states", nargs="+", type=int, default=list(STATES), metavar="N")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4000, help="of a cell, at most")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates, tried in turn")
    parser.add_argument("--words", type=int, default=WORDS, help="keys, and as many values, to choose from")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "recall_states.png", help="picture")
    parser.add_argument("--plot-only", action="store_true", help="draw what --out holds")
    options = parser.parse_args(argv)
    if options.quick:
        options.tasks, options.steps = options.tasks[:1], min(options.steps, 1000)
    return options


def main(argv: list[str] | None = None, now: Callable[[], float] = time.monotonic) -> int:
    options = parse(argv)
    gpu = options.device == "cuda"
    here = report.environment() if gpu and not options.plot_only else {"gpu": "none", "torch": torch.__version__}
    out = options.out or machine.results_path("recall_sweep", here["gpu"])
    if options.plot_only:
        recall_sweep_report.plot(json.loads(out.read_text()), options.plot)
        return 0
    clock = Clock(options.budget)
    begin = now()
    settings = {name: getattr(options, name) for name in ("d_model", "steps", "rates", "words", "tokens", "seed")}
    before = machine.earlier(out, {**here, **settings}) if options.resume else []
    known = {(row["seqlen"], row["pairs"], row["dstate"]): row for row in before}
    document = machine.Document(out, {**here, **settings, "rows": []})
    todo = list(cells(options.tasks, options.states))
    for done, (seqlen, pairs, dstate) in enumerate(todo):
        if (seqlen, pairs, dstate) in known:
            document.content["rows"].append(known[seqlen, pairs, dstate])
            continue
        row: dict[str, Any] = {"seqlen": seqlen, "pairs": pairs, "dstate": dstate}
        left = options.budget - (now() - begin)
        if left <= 0:
            row["skipped"] = "the time budget was spent"
        else:
            clock.say(f"L={seqlen}, {pairs} pairs, N={dstate}")
            task = Task(pairs, seqlen, options.words, options.words)
            sizes = Sizes(options.d_model, 2, min(64, 2 * options.d_model), dstate)
            batch = max(1, options.tokens // seqlen)
            plan = Plan(options.steps, options.rates[0], batch, options.device, gpu, options.seed)
            share = left / (len(todo) - done)
            row |= machine.attempt(partial(best_of_rates, task, sizes, plan, options.rates, share, now), machine.Gpu())
            if "accuracy" in row:
                clock.say(f"  {row['accuracy']:.1%} after {row['steps']} steps, {row['seconds']:.0f} s: {row['ended']}")
        document.content["rows"].append(row)
        document.write()
    print(recall_sweep_report.table(document.content))
    recall_sweep_report.plot(document.content, options.plot)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
