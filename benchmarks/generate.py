"""Text from a 2.7B model with our functions and with mamba_ssm's: first the tokens, then the time.  -> table, JSON

    python benchmarks/generate.py [--prompt 4096] [--tokens 256] [--batch 1] [--layers 64] [--out FILE] [--no-peer]

Needs a CUDA GPU with 24 GB, in fp32.  The weights are drawn at random, the same for both.  In fp32 both choose the
likeliest token at each step and must choose the same; where they part, the gap between the two likeliest says whether
that was a tie.  Then, in bf16, the time of the prompt and of a token, both sides in turns, each in a CUDA graph and
without one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import generate_peer, report  # noqa: E402
from ssdgen.mamba2_ops import Mamba2LMConfig, Mamba2LMHeadModel  # noqa: E402

OURS, PEER = "ssdgen", "mamba_ssm"
# mamba2-2.7b
VOCABULARY, D_MODEL = 50288, 2560
SEED = 20240531
# a step's logits differ by rounding alone; a tie is no wider than that
TIE = 1e-3


def make(layers: int, dtype: torch.dtype, device: str, d_model: int = D_MODEL, **layer: Any) -> Mamba2LMHeadModel:
    """The model with random weights, drawn in fp32."""
    torch.manual_seed(SEED)
    config = Mamba2LMConfig(d_model=d_model, n_layer=layers, vocab_size=VOCABULARY, ssm_cfg=layer)
    return Mamba2LMHeadModel(config, device=device).to(dtype).eval()


def tokens_of(model: Mamba2LMHeadModel, prompt: Tensor, count: int) -> Tensor:
    """What follows the prompt, [batch, count]."""
    return model.generate(prompt, count, cuda_graph=False)[:, prompt.shape[1] :]


def same_tokens(model: Mamba2LMHeadModel, prompt: Tensor, ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """How far both agree; where they part, the gap between the likeliest two there, over the spread of the logits."""
    apart = (ours != theirs).any(0).nonzero()
    if not len(apart):
        return {"same": True, "agree": ours.shape[1]}
    first = int(apart[0])
    row = int((ours[:, first] != theirs[:, first]).nonzero()[0])
    with torch.no_grad():
        before = torch.cat((prompt, ours[:, :first]), dim=1)[row : row + 1]
        logits = model(before, num_last_tokens=1).logits[0, -1].double()
    best = logits.topk(2).values
    gap = float((best[0] - best[1]) / logits.std())
    return {"same": False, "agree": first, "gap": gap, "tie": gap < TIE}


@torch.no_grad()
def times(model: Mamba2LMHeadModel, prompt: Tensor, count: int, graph: bool) -> dict[str, float]:
    """{"prompt_ms", "token_us"}: the prompt once, then so many tokens more than two.

    Both runs that are compared record a graph, so that the difference is that of the tokens.
    """
    made = {}
    for wanted in (1, 2, 2 + count):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(prompt, wanted, cuda_graph=graph)
        torch.cuda.synchronize()
        made[wanted] = time.perf_counter() - begin
    return {"prompt_ms": 1e3 * made[1], "token_us": 1e6 * (made[2 + count] - made[2]) / count}


def table(document: dict[str, Any]) -> str:
    """A line for each side, and what the tokens said."""
    heads = zip(
        ("prompt ms", "us/token", "tokens/s", "graph us/token", "graph tokens/s"), (10, 10, 10, 15, 15), strict=True
    )
    lines = [f"peer: {document['peer']}", f"{'':12} " + " ".join(f"{head:>{width}}" for head, width in heads)]
    batch = document["batch"]
    for name, found in document["bf16"].items():
        eager, graph = found["eager"], found["graph"]
        lines.append(
            f"{name:12} {eager['prompt_ms']:10.2f} {eager['token_us']:10.1f} {1e6 * batch / eager['token_us']:10.1f} "
            f"{graph['token_us']:15.1f} {1e6 * batch / graph['token_us']:15.1f}"
        )
    tokens = document.get("fp32")
    if tokens is not None:
        lines.append(
            f"fp32, greedy: the same {tokens['agree']} tokens"
            + ("" if tokens["same"] else f", then apart; gap {tokens['gap']:.1e} of the logits' spread")
        )
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens to generate")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="each side is timed so often, in turns")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    parser.add_argument(
        "--budget", type=float, default=400, metavar="SECONDS", help="start no new round after this long"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/generate_GPU.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if not torch.cuda.is_available():
        print("benchmarks/generate.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    functions, about = (None, "not asked for") if options.no_peer else generate_peer.load()
    say(f"peer: {about}")

    def side(name: str) -> AbstractContextManager[None]:
        return nullcontext() if name == OURS or functions is None else generate_peer.swapped(functions)

    sides = [OURS] if functions is None else [OURS, PEER]
    sizes = {name: getattr(options, name) for name in ("prompt", "tokens", "batch", "layers")}
    document: dict[str, Any] = {**report.environment(), "peer": about, **sizes, "d_model": D_MODEL, "bf16": {}}
    prompt = torch.randint(0, VOCABULARY, (options.batch, options.prompt), device="cuda")
    if functions is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = make(options.layers, torch.float32, "cuda")
        found = {}
        for name in sides:
            say(f"fp32: {options.tokens} tokens with {name} (first calls may compile and tune)")
            with side(name):
                found[name] = tokens_of(model, prompt, options.tokens)
        document["fp32"] = same_tokens(model, prompt, found[OURS], found[PEER])
        say(f"fp32: {document['fp32']}")
        del model
        torch.cuda.empty_cache()

    model = make(options.layers, torch.bfloat16, "cuda")
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(1 + options.rounds):
        if turn > 1 and time.monotonic() - begin > options.budget:
            say(f"the time budget was spent after {turn - 1} rounds")
            break
        for name in sides if turn % 2 else sides[::-1]:
            for way in ("eager", "graph"):
                with side(name):
                    timed = times(model, prompt, options.tokens, way == "graph")
                # the first turn compiles
                if turn:
                    runs.setdefault((name, way), []).append(timed)
        say(f"bf16: round {turn}")
    for name in sides:
        document["bf16"][name] = {
            way: {what: statistics.median(run[what] for run in runs[name, way]) for what in ("prompt_ms", "token_us")}
            for way in ("eager", "graph")
        }
    out = options.out or ROOT / "benchmarks" / "results" / f"generate_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(document))
    print(f"written: {out}")
    tokens = document.get("fp32")
    return 0 if tokens is None or tokens["same"] or tokens["tie"] else 1


if __name__ == "__main__":
    sys.exit(main())
