"""From the start of a process to the end of its first training step, with nothing compiled before.  -> a table and JSON

    python benchmarks/cold_start.py [--shape 2.7b_b8_2k] [--repeat 3] [--budget 450] [--no-peer] [--out FILE]

Needs a CUDA GPU.  Each run is a process of its own with empty caches: ssdgen without a pack, with a pack of sources and
records, with compiled kernels in it, and mamba_ssm; then each once more with the caches that it left.  The packs are
built first, which compiles for this GPU.  A run whose results are wrong has no time.

Python's bytecode of what is installed is there, as an installer leaves it; on a machine that keeps none, torch's import
alone takes 4 s instead of 2.  The step ends in a loss, as a model's does: a backward pass from the gradient of a tensor
has torch import sympy, for 2 s.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

START = "SSDGEN_COLD_START"
BYTECODE, NO_BYTECODE = "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"
PHASES = ("torch", "package", "inputs", "forward", "backward")
OURS = {"ssdgen": None, "ssdgen, pack": "--no-cubins", "ssdgen, pack with cubins": "--cubins"}
PEER = "mamba_ssm"
# packages whose bytecode is made before anything is timed
INSTALLED = ("torch", "triton", "numpy", "sympy", "mpmath", "einops", "packaging", "mamba_ssm", "ssdgen", "benchmarks")
# seconds: what the first process may take at most, and another one with the caches of the first
LIMITS, AGAIN_LIMIT = {"ssdgen, pack": 8.0, "ssdgen, pack with cubins": 3.0}, 2.0


def child(shape_name: str, who: str) -> None:
    """One step as a training script makes it; prints when each phase had ended, and the errors."""
    ends, begin = {}, float(os.environ[START])

    def end(phase: str) -> None:
        ends[phase] = time.time() - begin

    import torch

    end("torch")
    if who == PEER:
        from benchmarks import peer

        scan, _ = peer.load_public()
    else:
        from mamba2_ops import mamba_chunk_scan_combined as scan
    end("package")
    from benchmarks import workload

    (shape,) = workload.select(shape_name)
    args = workload.inputs(shape, "cuda", 0)
    leaves = {name: value.detach().requires_grad_() for name, value in args.items()}
    d_y = torch.randn(args["x"].shape, device="cuda", dtype=args["x"].dtype)
    torch.cuda.synchronize()
    end("inputs")
    operands = [leaves[name] for name in ("x", "dt", "A", "B", "C")]
    y = scan(*operands, 256, D=leaves["D"], dt_bias=leaves["dt_bias"], dt_softplus=True)
    torch.cuda.synchronize()
    end("forward")
    (y * d_y).sum().backward()
    torch.cuda.synchronize()
    end("backward")
    said: dict[str, object] = {"ends": ends, "errors": errors(args, d_y, y.detach(), leaves)}
    if who != PEER:
        said["kernels"] = kernels()
    print(json.dumps(said))


def kernels() -> dict[str, int]:
    """How many kernels came from a pack and how many did not, in the package that ran."""
    import mamba2_ops

    return sys.modules[f"{mamba2_ops.__name__}.precompiled"].counts()


def errors(args: dict, d_y: object, y: object, leaves: dict) -> dict[str, float]:
    """Of y and every gradient, against float64; after everything that is timed."""
    from benchmarks import gradient_reference, reference

    found = {name: leaves[name].grad for name in gradient_reference.OPERANDS}
    of_gradients = gradient_reference.errors(args, d_y, {"step": found})["step"]
    of_all = {"y": reference.errors(args, {"step": y})["step"], **of_gradients}
    return {name: error["relative"] for name, error in of_all.items()}


def build(option: str, gpu: str, shape: str, folder: Path) -> list[str]:
    """Make a pack and lay it out as if installed; returns what to put on the search path."""
    from ssdgen.pack import install, wheel

    command = [sys.executable, str(ROOT / "cli.py"), "pack", "build", "--gpu", gpu, "--shapes", shape, option]
    subprocess.run([*command, "--name", "cold", "--out", str(folder)], check=True, stdout=sys.stderr)
    (file,) = folder.glob("*.whl")
    install.unpack(wheel.read(file), folder / "site")
    return [str(folder / "site"), str(folder / "site" / "ssdgen_pack_cold" / "sources")]


def compile_bytecode(folder: Path, sources: list[str]) -> None:
    """What an installer leaves beside each source, in a folder of its own: bytecode of what a step imports."""
    specs = [importlib.util.find_spec(name) for name in INSTALLED]
    places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
    environment = {**os.environ, BYTECODE: str(folder)}
    environment.pop(NO_BYTECODE, None)
    # it fails where a file is of another version of Python, as some of torch's are; the others are made
    command = [sys.executable, "-m", "compileall", "-qq", "-j", "0", *places, *sources]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)


def run(who: str, shape: str, path: list[str], cache: Path, bytecode: Path, limit_s: float) -> dict:
    """One process.  cache: a folder for everything that it leaves to the next; bytecode: that of installed packages."""
    cache.mkdir(parents=True, exist_ok=True)
    inherited = os.environ.get("PYTHONPATH")
    places = [*path, *([inherited] if inherited else [])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "XDG_CACHE_HOME": str(cache / "user"),
        BYTECODE: str(bytecode),
    }
    environment.pop(NO_BYTECODE, None)
    command = [sys.executable, __file__, "--child", who, "--shape", shape]
    environment[START] = repr(time.time())
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit_s:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def verdict(found: dict, limits: dict[str, float]) -> dict:
    """The run, or why it does not count: an error over its limit."""
    if "failed" in found:
        return found
    wrong = [name for name, error in found["errors"].items() if not error <= limits[name]]
    return {**found, "failed": f"wrong: {', '.join(wrong)}"} if wrong else found


def within(row: dict, most: float) -> bool:
    """Whether a way of starting keeps its limit, and the one for the process after it."""
    return "failed" not in row and row["ends"]["backward"] <= most and row["again"]["backward"] <= AGAIN_LIMIT


def table(rows: dict[str, dict]) -> str:
    """Seconds at the end of each phase, medians; the end of the same process once more with the caches that it left."""
    heads = (*PHASES, "again")
    lines = [f"{'':26} " + " ".join(f"{head:>9}" for head in heads) + "  kernels from the pack"]
    for who, row in rows.items():
        if "failed" in row:
            lines.append(f"{who:26} {row['failed']}")
            continue
        count = row.get("kernels")
        said = f"{count['loaded']} of {count['loaded'] + count['missed']}" if count and count["loaded"] else "none"
        cells = " ".join(f"{row['ends'][phase]:9.2f}" for phase in PHASES)
        lines.append(f"{who:26} {cells} {row['again']['backward']:9.2f}  {said}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2.7b_b8_2k", help="as in forward.py")
    parser.add_argument("--repeat", type=int, default=3, help="processes with empty caches, of ours")
    parser.add_argument("--budget", type=float, default=450, help="seconds; the peer gets what is left")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.shape, options.child)
        return 0
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/cold_start.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    from benchmarks import report, training_report, workload
    from ssdgen.tune import device

    deadline = time.monotonic() + options.budget
    (shape,) = workload.select(options.shape)
    sizes, gpu = ",".join(map(str, shape.sizes)), device.gpu_here().name
    limits = {"y": 5e-3, **training_report.LIMITS}
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bytecode = home / "bytecode"
        for index, (who, option) in enumerate(OURS.items()):
            path = build(option, gpu, sizes, home / f"pack{index}") if option else [str(ROOT / "ssdgen" / "_alias")]
            caches = [home / f"cache{index}_{turn}" for turn in range(options.repeat)]
            compile_bytecode(bytecode, path)
            rows[who] = measure(who, options.shape, [*path, str(ROOT)], caches, bytecode, limits, deadline)
            print(f"{who}: {rows[who].get('failed', 'done')}", file=sys.stderr)
        if not options.no_peer:
            rows[PEER] = measure(PEER, options.shape, [str(ROOT)], [home / "peer"], bytecode, limits, deadline)
    document = {**report.environment(), "shape": shape.name, "rows": rows, "limits_s": LIMITS}
    out = options.out or ROOT / "benchmarks" / "results" / f"cold_start_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(rows))
    print(f"written: {out}")
    missed = [who for who, most in LIMITS.items() if not within(rows[who], most)]
    if missed:
        print(f"over the limit: {', '.join(missed)}")
    return 1 if missed else 0


def measure(
    who: str,
    shape: str,
    path: list[str],
    caches: list[Path],
    bytecode: Path,
    limits: dict[str, float],
    deadline: float,
) -> dict:
    """The medians of runs with empty caches, and of as many with the last one's."""
    found: dict[bool, list[dict]] = {}
    for again in (False, True):
        for cache in caches:
            left = max(1.0, deadline - time.monotonic())
            ran = verdict(run(who, shape, path, caches[-1] if again else cache, bytecode, left), limits)
            if "failed" in ran:
                return ran
            found.setdefault(again, []).append(ran)
    ends, after = (
        {phase: statistics.median(each["ends"][phase] for each in found[again]) for phase in PHASES}
        for again in (False, True)
    )
    return {
        **found[False][-1],
        "ends": ends,
        "runs_s": [each["ends"]["backward"] for each in found[False]],
        "again": after,
        "again_runs_s": [each["ends"]["backward"] for each in found[True]],
    }


if __name__ == "__main__":
    sys.exit(main())
