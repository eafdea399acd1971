"""Whole models, with our functions and with mamba_ssm's: training, prefill, decode.  -> tables and a JSON file

    python benchmarks/end_to_end.py [--sizes 130m 1.3b 2.7b] [--stages training inference] [--budget SECONDS]

Needs a CUDA GPU with 80 GB for all sizes.  Weights are drawn at random, the same for both sides, and the model, its
optimizer and its loop are ours: only the functions are swapped.  Training has fp32 weights, bf16 autocast and AdamW;
inference has bf16 weights.  Logits come first, beside those in fp32, then the loss and the gradients of a step: a
size whose results are further off than the peer's has no ratio.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import end_to_end_report, generate, generate_peer, kernel_classes, machine, training_graph  # noqa: E402
from benchmarks.end_to_end_report import OURS, PEER, STAGES  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from ssdgen.mamba2_ops import Mamba2LMHeadModel  # noqa: E402

# of the check: long enough for several chunks
CHECK_TOKENS = 512
# a token's time is a difference between two whole runs, of training an average over steps
ROUNDS, ROUNDS_OF_TOKENS = 2, 5


@dataclass(frozen=True)
class Size:
    """A model and how it is trained.  checkpoint: the backward pass computes each layer again; graph: also timed so."""

    d_model: int
    layers: int
    batch: int
    seqlen: int = 2048
    checkpoint: bool = False
    graph: bool = False
    steps: int = 6
    prompt: int = 4096
    tokens: int = 256


# what fits 78 GiB: weights, gradients and AdamW take 16 bytes a parameter
SIZES = {
    "130m": Size(768, 24, batch=8, graph=True, steps=10),
    "1.3b": Size(2048, 48, batch=4),
    "2.7b": Size(2560, 64, batch=4, checkpoint=True),
}


class Sides:
    """Who computes: ours, and the peer's functions in the same model."""

    def __init__(self, functions: dict[str, Callable] | None) -> None:
        self._functions = functions
        self.names = [OURS] if functions is None else [OURS, PEER]

    @contextmanager
    def side(self, name: str, model: Mamba2LMHeadModel) -> Iterator[None]:
        """Inside, the model calls the functions of this side, forwards and backwards."""
        mixers = [layer.mixer for layer in model.backbone.layers]
        if name == PEER and self._functions is not None:
            # what is computed again in our backward pass goes past the functions that are swapped
            for mixer in mixers:
                mixer.use_mem_eff_path = False
            with generate_peer.swapped(self._functions):
                try:
                    yield
                finally:
                    for mixer in mixers:
                        mixer.use_mem_eff_path = True
        else:
            yield


def checkpointed(model: Mamba2LMHeadModel) -> None:
    """Each layer keeps its input alone, and is computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for layer in model.backbone.layers:
        # nothing in a layer is random
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def loss_of(model: Mamba2LMHeadModel, tokens: Tensor, low: bool = True) -> Tensor:
    """Mean cross-entropy of the next token, under bf16 autocast with `low`."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=low):
        logits = model(tokens).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def drawn(batch: int, seqlen: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(generate.SEED)
    return torch.randint(0, generate.VOCABULARY, (batch, seqlen), generator=generator).to(device)


def check(model: Mamba2LMHeadModel, sides: Sides, tokens: Tensor) -> dict[str, dict[str, float]]:
    """{side: loss, norm of the gradients, and the relative error of logits against those in fp32}."""
    made = {}
    with torch.no_grad(), sides.side(OURS, model):
        exact = model(tokens[:1]).logits[:, -1].double()
    for name in sides.names:
        with sides.side(name, model):
            with torch.no_grad(), torch.autocast(tokens.device.type, dtype=torch.bfloat16):
                logits = model(tokens[:1]).logits[:, -1].double()
            loss = loss_of(model, tokens)
            loss.backward()
        squares = [parameter.grad.double().square().sum() for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        made[name] = {
            "logits": float((logits - exact).norm() / exact.norm()),
            "loss": float(loss.detach()),
            "gradients": float(torch.stack(squares).sum().sqrt()),
        }
    return made


def step_of(model: Mamba2LMHeadModel, tokens: Tensor, graph: bool) -> Callable[[], Tensor]:
    """Forward, backward and optimizer."""
    cuda = tokens.is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=cuda, capturable=cuda and graph)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def training(size: Size, sides: Sides, gpu: machine.Gpu, clock: Clock) -> dict[str, Any]:
    """checks, and for each side step_us, graph_us, and where the time goes."""
    model = generate.make(size.layers, torch.float32, gpu.device, d_model=size.d_model).train()
    row: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters()), "sides": {}}
    clock.say("  logits, loss and gradients (first calls may compile and tune)")
    row["checks"] = check(model, sides, drawn(2, CHECK_TOKENS, gpu.device))
    row["passed"] = end_to_end_report.agree(row["checks"])
    gpu.tidy()
    if size.checkpoint:
        checkpointed(model)
    tokens = drawn(size.batch, size.seqlen, gpu.device)
    # one optimizer for both sides: its state alone is 8 bytes a parameter
    step = step_of(model, tokens, size.graph)
    runs: dict[str, list[float]] = {name: [] for name in sides.names}
    for turn in range(1 + ROUNDS):
        for name in sides.names if turn % 2 else sides.names[::-1]:
            clock.say(f"  training, {name}, " + (f"round {turn}" if turn else "first step"))
            with sides.side(name, model):
                if not turn:
                    # compiles, and makes the optimizer's state
                    step()
                    gpu.wait()
                else:
                    runs[name].append(gpu.span_us(with_grad(step), size.steps))
    for name in sides.names:
        with sides.side(name, model):
            found: dict[str, Any] = {"step_us": statistics.median(runs[name]), "step_us_runs": runs[name]}
            found["classes"] = kernel_classes.shares(gpu.kernels(with_grad(step)))
            if size.graph and gpu.device == "cuda":
                found |= machine.attempt(partial(_graph, step, size.steps, gpu), gpu)
        row["sides"][name] = found
        gpu.tidy()
    return row


def with_grad(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The timers call without gradients."""

    def call() -> Tensor:
        with torch.enable_grad():
            return step()

    return call


def _graph(step: Callable[[], Tensor], steps: int, gpu: machine.Gpu) -> dict[str, Any]:
    return {"graph_us": gpu.span_us(training_graph.captured(step), steps)}


def inference(size: Size, sides: Sides, gpu: machine.Gpu, clock: Clock) -> dict[str, Any]:
    """For each side the time of a prompt and of a token, batch 1, and how far the logits are apart."""
    model = generate.make(size.layers, torch.bfloat16, gpu.device, d_model=size.d_model)
    prompt = drawn(1, size.prompt, gpu.device)
    logits, row = {}, {"sides": {}}
    for name in sides.names:
        clock.say(f"  inference, {name}, first prompt")
        with torch.no_grad(), sides.side(name, model):
            logits[name] = model(prompt, num_last_tokens=1).logits.double()
    apart = max(float((found - logits[OURS]).norm() / logits[OURS].norm()) for found in logits.values())
    row |= {"apart": apart, "passed": apart <= end_to_end_report.APART}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides.names}
    for turn in range(1 + ROUNDS_OF_TOKENS):
        for name in sides.names if turn % 2 else sides.names[::-1]:
            clock.say(f"  inference, {name}, round {turn}")
            with sides.side(name, model):
                timed = generate.times(model, prompt, size.tokens, graph=gpu.device == "cuda")
            # the first turn compiles
            if turn:
                runs[name].append(timed)
    for name, found in runs.items():
        row["sides"][name] = {key: statistics.median(run[key] for run in found) for key in ("prompt_ms", "token_us")}
    return row


def parse(argv: list[str] | None):
    parser = machine.parser(__doc__ or "", "end_to_end", 540)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: both")
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes = options.sizes[:1]
    return options


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    options = parse(argv)
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/end_to_end.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    clock = Clock(options.budget)
    functions, about = (None, "not asked for") if options.no_peer else generate_peer.load(own_conv=True)
    clock.say(f"peer: {about}")
    here = gpu.environment()
    out = options.out or machine.results_path("end_to_end", here["gpu"])
    known = {(row["stage"], row["size"]): row for row in (machine.earlier(out, here) if options.resume else [])}
    # a run of some sizes leaves the others in the file
    document = machine.Document(out, {**here, "peer": about, "rows": [*known.values()]})
    for stage in options.stages:
        for name in options.sizes:
            if (stage, name) in known:
                continue
            size = SIZES[name]
            row: dict[str, Any] = {"stage": stage, "size": name, **vars(size)}
            if clock.is_up():
                row["skipped"] = "the time budget was spent"
            else:
                clock.say(f"{name}: {stage}")
                run = training if stage == "training" else inference
                row |= machine.attempt(partial(run, size, Sides(functions), gpu, clock), gpu)
            document.content["rows"].append(end_to_end_report.compare(row))
            document.write()
            gpu.tidy()
    print(end_to_end_report.table(document.content))
    print(f"written: {out}")
    return 0 if all(row.get("passed", True) for row in document.content["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
