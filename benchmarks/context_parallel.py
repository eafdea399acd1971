"""One sequence over the GPUs of a machine, against one GPU.  error first, then time -> JSON, a table

    torchrun --nproc-per-node 8 benchmarks/context_parallel.py [--tokens 131072] [--budget 300] [--out FILE]

Every rank has tokens / ranks tokens.  The first rank also runs the whole sequence alone, as long as it fits, for the
error and the speed-up.  bf16, 80 heads of 64, dstate 128.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined  # noqa: E402

NHEADS, HEADDIM, DSTATE = 80, 64, 128
# of what two ways to cut a sequence into chunks may differ, in bf16
LIMIT = 5e-3
SHARED = ("A", "D", "dt_bias")


def operands(tokens: int) -> dict[str, torch.Tensor]:
    """Of the whole sequence, the same on every rank."""
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device="cuda", dtype=dtype)

    return {
        "x": normal(1, tokens, NHEADS, HEADDIM),
        "dt": normal(1, tokens, NHEADS),
        "A": -normal(NHEADS, dtype=torch.float32).exp(),
        "B": normal(1, tokens, 1, DSTATE),
        "C": normal(1, tokens, 1, DSTATE),
        "D": normal(NHEADS, dtype=torch.float32),
        "dt_bias": normal(NHEADS, dtype=torch.float32) - 4,
    }


def step(given: dict[str, torch.Tensor], d_y: torch.Tensor, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """y and the gradients of all operands."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    y = mamba_chunk_scan_combined(**leaves, chunk_size=256, dt_softplus=True, process_group=group)
    assert isinstance(y, torch.Tensor)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), d_y)]


def timed(run, repeats: int) -> float:
    """Median of wall times in microseconds, all ranks together."""
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        dist.barrier()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(1e6 * (time.perf_counter() - start))
    slowest = torch.tensor(found, device="cuda").median()
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def errors(mine: list[torch.Tensor], tokens: int, d_y: torch.Tensor) -> tuple[dict[str, float], float]:
    """Relative differences from one GPU, by operand, and its microseconds; on the first rank, empty on the others."""
    given, rank, found = operands(tokens), dist.get_rank(), {}
    names, whole, alone = ("y", *given), None, 0.0
    if rank == 0:
        whole = step(given, d_y, None)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            step(given, d_y, None)
        torch.cuda.synchronize()
        alone = 2e5 * (time.perf_counter() - start)
    for at, name in enumerate(names):
        if name in SHARED:
            joined = mine[at].float()
            dist.all_reduce(joined)
        else:
            parts = [torch.empty_like(mine[at]) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, mine[at].contiguous())
            joined = torch.cat(parts, dim=1).float()
        if whole is not None:
            exact = whole[at].float()
            found[name] = float((joined - exact).norm() / exact.norm())
    return found, alone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 131072])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds; no length is begun after them")
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/context_parallel_GPU.json")
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    rank, ranks, begin = dist.get_rank(), dist.get_world_size(), time.monotonic()
    rows = []
    for tokens in options.tokens:
        late = torch.tensor(float(time.monotonic() - begin > options.budget), device="cuda")
        dist.all_reduce(late, dist.ReduceOp.MAX)
        if late:
            break
        # shards of one length are all that it measures
        each = tokens // ranks
        tokens = each * ranks
        given = operands(tokens)
        draw = torch.Generator("cuda").manual_seed(1)
        d_y = torch.randn(given["x"].shape, generator=draw, device="cuda", dtype=torch.bfloat16)
        here = slice(rank * each, (rank + 1) * each)
        part = {name: tensor if name in SHARED else tensor[:, here].contiguous() for name, tensor in given.items()}
        d_part = d_y[:, here].contiguous()
        found, alone = errors(step(part, d_part, dist.group.WORLD), tokens, d_y)
        right = torch.tensor(float(all(error < LIMIT for error in found.values())), device="cuda")
        dist.broadcast(right, 0)
        row = {"tokens": tokens, "ranks": ranks, "errors": found, "passed": bool(right)}
        if right:
            together = timed(lambda p=part, d=d_part: step(p, d, dist.group.WORLD), options.repeats)
            own = timed(lambda p=part, d=d_part: step(p, d, None), options.repeats)
            row |= {"us": together, "shard_alone_us": own, "one_gpu_us": alone, "speedup": alone / together}
        rows.append(row)
    if rank == 0:
        document = {**report.environment(), "rows": rows}
        default = ROOT / "benchmarks" / "results" / f"context_parallel_{report.slug(document['gpu'])}.json"
        out = options.out or default
        out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        columns = ("tokens", "ranks", "us", "shard_alone_us", "one_gpu_us", "speedup")
        shown = [tuple(f"{row[c]:.4g}" if c in row else "WRONG" for c in columns) for row in rows]
        print("\n".join(report.aligned([columns, *shown])))
    dist.destroy_process_group()
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
