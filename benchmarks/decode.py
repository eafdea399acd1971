"""The decode step beside mamba_ssm's: error, GPU time, share of copy bandwidth; replay; drift.  -> a table and a JSON

    python benchmarks/decode.py [--batches 1,16,256] [--budget SECONDS] [--out FILE] [--no-peer] [--drift STEPS]
    python benchmarks/decode.py --variants [--budget SECONDS] [--out FILE]

Needs a CUDA GPU.  Every call is replayed in a CUDA graph with a cold L2, in the same process as the copy that it is
compared with.  Nothing is timed before its y and state are known to be near float64.  The peer keeps states in fp32 and
bf16 only.  Host time is that of a call in eager mode.
"""

from __future__ import annotations

import argparse
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

from benchmarks import report, timing  # noqa: E402
from ssdgen.mamba2_ops import Replay, selective_state_update  # noqa: E402

NHEADS, HEADDIM, DSTATE, NGROUPS = 80, 64, 128, 1
STEPS = 16  # of a replay
FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}
LARGEST = {"int8": 127.0, "float8": 448.0}
# |found - exact| / |exact|: y is rounded to bf16; a state to its format
Y_LIMIT = 5e-3
STATE_LIMITS = {"float32": 1e-5, "bfloat16": 2.5e-3, "int8": 1.2e-2, "float8": 4e-2}

Args = dict[str, Any]


def draw(batch: int, state: str, seed: int = 0) -> Args:
    """Arguments of a call as a model has them: bf16 operands, and dt, A and D one number for a head."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda", generator=generator)

    def uniform() -> torch.Tensor:
        return torch.rand(NHEADS, device="cuda", generator=generator)

    args: Args = {
        "x": normal(batch, NHEADS, HEADDIM).bfloat16(),
        "dt": (0.5 * normal(batch, NHEADS)).bfloat16()[..., None].expand(-1, -1, HEADDIM),
        "A": (-1 - 15 * uniform())[:, None, None].expand(-1, HEADDIM, DSTATE),
        "B": normal(batch, NGROUPS, DSTATE).bfloat16(),
        "C": normal(batch, NGROUPS, DSTATE).bfloat16(),
        "D": normal(NHEADS)[:, None].expand(-1, HEADDIM),
        "dt_bias": torch.log(torch.expm1(0.001 * 100.0 ** uniform()))[:, None].expand(-1, HEADDIM),
        "dt_softplus": True,
    }
    stored = normal(batch, NHEADS, HEADDIM, DSTATE)
    if state in LARGEST:
        args["state_scale"] = stored.abs().amax(-1) / LARGEST[state]
        stored /= args["state_scale"][..., None]
        stored = stored.round() if state == "int8" else stored
    args["state"] = stored.to(FORMATS[state])
    return args


def restored(args: Args) -> torch.Tensor:
    scale = args.get("state_scale")
    return args["state"].float() if scale is None else args["state"].float() * scale[..., None]


def exact(args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the state after the step, in float64, of the first rows of the batch."""
    rows = slice(0, 8)
    x, dt, B, C = (args[name][rows].double() for name in ("x", "dt", "B", "C"))
    A, D, bias = (args[name].double() for name in ("A", "D", "dt_bias"))
    step = torch.nn.functional.softplus(dt + bias)
    group = torch.arange(NHEADS, device="cuda") // (NHEADS // NGROUPS)
    before = restored({name: t[rows] for name, t in args.items() if name in ("state", "state_scale")}).double()
    state = (step[..., None] * A).exp() * before
    state = state + (step * x)[..., None] * B[:, group, None]
    return torch.einsum("bhpn,bhn->bhp", state, C[:, group]) + D * x, state


def errors(call: Callable[..., torch.Tensor], args: Args) -> dict[str, float]:
    """Relative errors of y and of the state of one call on a copy of its state."""
    own = {name: t.clone() if name in ("state", "state_scale") else t for name, t in args.items()}
    y_exact, state_exact = exact(args)
    y = call(**own)
    found = {name: t[:8] for name, t in own.items() if name in ("state", "state_scale")}

    def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours.double() - theirs).norm() / theirs.norm())

    return {"y": relative(y[:8], y_exact), "state": relative(restored(found), state_exact)}


def load_peer() -> tuple[Callable[..., torch.Tensor] | None, str]:
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update as peer
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported ({error}); only ssdgen is measured"
    return peer, "mamba_ssm"


def variants(peer: Callable[..., torch.Tensor] | None) -> dict[str, tuple[str, Callable[..., torch.Tensor]]]:
    """{name: (format of the state, call)}."""
    found: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
        name: (name, selective_state_update) for name in FORMATS
    }
    if peer is not None:
        found |= {f"mamba_ssm {name}": (name, peer) for name in ("float32", "bfloat16")}
    seed = torch.zeros(1, dtype=torch.int64, device="cuda")
    for name in ("bfloat16", "int8", "float8"):
        found[f"{name} random"] = (name, partial(selective_state_update, rng_seed=seed))
    return found


def moved(batch: int, state: str, replay: bool = False) -> float:
    """Bytes that a step must move: the state read and written, its scales, x, y, B, C and dt."""
    rows = batch * NHEADS * HEADDIM
    crossings = 1 + (1 / STEPS if replay else 1)
    of_state = crossings * rows * (DSTATE * FORMATS[state].itemsize + (4 if state in LARGEST else 0))
    return of_state + 2 * (2 * rows + batch * (NHEADS + 2 * NGROUPS * DSTATE))


def replay_us(batch: int, state: str, timer: timing.ColdGpuTimer) -> dict[str, float]:
    """Mean time of STEPS steps in a row, of which the last writes the state; the others take that of the middle one.

    apart_us: of a step whose rows have kept different numbers of inputs, so that one in STEPS writes its state.
    """
    args = draw(batch, state)
    cache = Replay.allocate(args["state"], STEPS, NGROUPS)

    def at(counts: torch.Tensor) -> float:
        """Time of the step that finds so many inputs kept."""

        def place() -> None:
            cache.count.copy_(counts)

        def call() -> None:
            place()
            selective_state_update(**args, replay=cache)

        call()
        return timer(call) - timer(place)

    between, write = (at(torch.full_like(cache.count, count)) for count in (STEPS // 2 - 1, STEPS - 1))
    apart = at(torch.arange(batch, device="cuda").to(cache.count.dtype) % STEPS)
    mean = ((STEPS - 1) * between + write) / STEPS
    return {"gpu_us": mean, "between_us": between, "write_us": write, "apart_us": apart}


def drift(steps: int, batch: int = 2) -> dict[str, dict[str, float]]:
    """Relative error of y and of the state against an fp32 state after many steps of the same inputs."""
    plain = draw(batch, "float32", seed=7)
    kinds = [(name, seeded) for name in ("bfloat16", "int8", "float8") for seeded in (False, True)]
    each = {(name, seeded): draw(batch, name, seed=7) for name, seeded in kinds}
    seed = torch.zeros(1, dtype=torch.int64, device="cuda")
    generator = torch.Generator("cuda").manual_seed(11)
    found: dict[str, dict[str, float]] = {}
    sums = {kind: [0.0, 0.0] for kind in kinds}
    tail = steps // 8
    for step in range(steps):
        token = {
            name: torch.randn(plain[name].shape, device="cuda", generator=generator).bfloat16()
            for name in ("x", "B", "C")
        }
        y = selective_state_update(**{**plain, **token}).float()
        for kind, args in each.items():
            ours = selective_state_update(**{**args, **token}, rng_seed=seed if kind[1] else None).float()
            if step >= steps - tail:
                sums[kind][0] += float((ours - y).square().sum())
                sums[kind][1] += float(y.square().sum())
        seed += 1
    for (name, seeded), (gap, size) in sums.items():
        args = each[name, seeded]
        state = float((restored(args) - plain["state"]).norm() / plain["state"].norm())
        found[f"{name}{' random' if seeded else ''}"] = {"y": (gap / size) ** 0.5, "state": state}
    return found


def table(document: dict[str, Any]) -> str:
    lines = [
        f"{document['gpu']}, {document['copy_tbs']:.2f} TB/s copied; H={NHEADS} P={HEADDIM} N={DSTATE} G={NGROUPS}"
    ]
    lines.append(f"{'batch':>5}  {'state':<20} {'us':>8} {'of copy':>8} {'host us':>8} {'error y':>8} {'state':>8}")
    for row in document["rows"]:
        host = f"{row['host_us']:8.1f}" if "host_us" in row else " " * 8
        off = f"{row['y']:8.1e} {row['state_error']:8.1e}" if "y" in row else ""
        if "apart_us" in row:
            between, write, apart = (f"{row[f'{name}_us']:.1f}" for name in ("between", "write", "apart"))
            off = f"keeps {between}, writes {write}, one row in {STEPS} {apart}"
        lines.append(
            f"{row['batch']:>5}  {row['name']:<20} {row['gpu_us']:8.2f} {row['share']:8.1%} {host} {off}"
            + ("" if row.get("passed", True) else "  WRONG")
        )
    for name, off in document.get("drift", {}).items():
        lines.append(f"after {document['drift_steps']} steps, {name:<16} y {off['y']:.1e}, state {off['state']:.1e}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,16,64,128,256", help="rows, separated by commas")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/decode_GPU.json")
    parser.add_argument("--no-peer", action="store_true", help="measure ssdgen alone")
    parser.add_argument("--drift", type=int, default=4096, metavar="STEPS", help="0: leave it out")
    parser.add_argument(
        "--budget", type=float, default=240, metavar="SECONDS", help="begin nothing new after this long"
    )
    parser.add_argument("--variants", action="store_true", help="configs of ours side by side instead of the peer")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks/decode.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()
    if options.variants:
        return _variants(options)
    peer, about = (None, "not asked for") if options.no_peer else load_peer()
    document: dict[str, Any] = {**report.environment(), "peer": about, "copy_tbs": timing.copy_tbs(), "rows": []}
    out = options.out or ROOT / "benchmarks" / "results" / f"decode_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    timer = timing.ColdGpuTimer()

    def late() -> bool:
        return time.monotonic() - begin > options.budget

    def add(row: dict[str, Any], state: str, replay: bool = False) -> None:
        row["share"] = moved(row["batch"], state, replay) / row["gpu_us"] / 1e6 / document["copy_tbs"]
        document["rows"].append(row)
        out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")

    with torch.no_grad():
        for batch in sorted(map(int, options.batches.split(",")), reverse=True):
            for name, (state, call) in variants(peer).items():
                if late():
                    break
                args = draw(batch, state)
                off = errors(call, args)
                row = {"batch": batch, "name": name, "y": off["y"], "state_error": off["state"]}
                # at random a state is off by more than to nearest
                wide = 2 if name.endswith("random") else 1
                row["passed"] = off["y"] <= Y_LIMIT and off["state"] <= wide * STATE_LIMITS[state]
                run = partial(call, **args)
                row["gpu_us"] = timer(run)
                row["eager_us"], row["host_us"] = timing.eager_us(run)
                add(row, state)
                del args, run
            for state in ("bfloat16", "int8"):
                if not late():
                    add({"batch": batch, "name": f"{state} replay", **replay_us(batch, state, timer)}, state, True)
        if options.drift and not late():
            document |= {"drift": drift(options.drift), "drift_steps": options.drift}
            out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(document))
    print(f"written: {out}")
    return 0 if all(row.get("passed", True) for row in document["rows"]) else 1


def _variants(options: argparse.Namespace) -> int:
    # the file takes what it measures from here
    from benchmarks import decode_variants

    document: dict[str, Any] = {**report.environment(), "copy_tbs": timing.copy_tbs()}
    out = options.out or ROOT / "benchmarks" / "results" / f"variants_decode_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    timer = timing.ColdGpuTimer()
    right = decode_variants.run(timer, document, out, options.budget, lambda text: print(text, file=sys.stderr))
    print(decode_variants.table(document))
    print(f"written: {out}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
