"""How near a short `ssdgen tune` comes to the best that half an hour finds.  -> a table and a JSON file

    python benchmarks/tuning_time.py [--shape 2,4096,128,64,128,1] [--short 300] [--long 1800] [--jobs N] [--out FILE]
    python benchmarks/tuning_time.py --folder FOLDER --within 570    # in several calls: each goes on

Needs a CUDA GPU.  One process searches for --short seconds.  Beside it, each on a GPU of its own, others share a study
until they have had --long seconds of GPU time together; the first one's GPU joins them once it is free.  Both start
from nothing but the bundled records of other shapes: those of the shape itself, which is one of a Granite 4 hybrid,
must not be there.  What both found is then timed in turns in one process, as `ssdgen tune` times its finalists.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from ssdgen.mamba2_ops import ladder  # noqa: E402
from ssdgen.pack import store  # noqa: E402
from ssdgen.pack.records import BACKWARD, FORWARD, Record  # noqa: E402
from ssdgen.tune import device, measure, session, shapes  # noqa: E402
from ssdgen.tune.results import Result  # noqa: E402

SHAPE = "2,4096,128,64,128,1"
PASSES = (FORWARD, BACKWARD)
# how much slower than the best what a short search finds may be
LIMIT = 1.03
# of a log, what an error shows: characters
SAID = 2000
# until a study is there to work on
WAIT_S = 60


@dataclass(frozen=True)
class Searching:
    """A search under way: its processes, the first of which decides what to do, and the folder of its records."""

    processes: list[subprocess.Popen]
    out: Path

    def join(self, shape: str, gpu: int, jobs: int) -> None:
        """Another process helps, on this GPU."""
        at = len(self.processes)
        self.processes.append(start(command(shape, self.out, jobs, "--worker"), gpu, self.out / f"worker_{at}.log"))

    def wait(self) -> None:
        """Errors: RuntimeError where a process failed, and where nothing was found."""
        for at, process in enumerate(self.processes):
            if code := process.wait():
                # the folder may go with this process
                said = (self.out / (f"worker_{at}.log" if at else "search.log")).read_text()[-SAID:]
                raise RuntimeError(f"the search {self.out.name} ended with {code}; what it said last: {said}")


@dataclass(frozen=True)
class Spent:
    """What earlier calls have done.  short: whether the short search has ended; long_s: GPU time of the long one."""

    short: bool = False
    long_s: float = 0.0

    @classmethod
    def of(cls, folder: Path) -> Spent:
        path = folder / "spent.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        (folder / "spent.json").write_text(json.dumps(asdict(self)) + "\n")


def span(left: float, short: float, gpus: int, within: float) -> tuple[float, float]:
    """(seconds, GPU seconds) of the long search in a call, of which `left` GPU seconds are wanted.

    short: for so long the first GPU is another search's; 0: it is free.  within: seconds that the call may take.  With
    one GPU the searches come one after the other.
    """
    others = gpus - 1 if short else gpus
    if not others:
        seconds = max(0.0, min(left, within - short))
        return seconds, seconds
    seconds = left / others
    if seconds > short:
        # from then on all of them search
        seconds = (left + short * (gpus - others)) / gpus
    seconds = min(seconds, within)
    return seconds, others * seconds + (gpus - others) * max(0.0, seconds - short)


def command(shape: str, out: Path, jobs: int, *more: str) -> list[str]:
    """`ssdgen tune` for the shape, with records and trials of its own; whoever joins knows from those what to do."""
    wanted = [] if {"--worker", "--resume"} & {*more} else ["--shapes", shape]
    wanted += ["--out", str(out / "tuned"), "--storage", str(out / "trials.journal")]
    return [sys.executable, str(ROOT / "cli.py"), "tune", *wanted, "--jobs", str(jobs), *more]


def search(shape: str, seconds: float, gpus: list[int], out: Path, jobs: int) -> Searching:
    """Begin a search of so many seconds on each of these GPUs, in one study, or go on with the one that is there."""
    out.mkdir(exist_ok=True)
    journal, log, end = out / "trials.journal", out / "search.log", time.monotonic() + WAIT_S
    more = ("--resume",) if journal.exists() else ()
    first = start(command(shape, out, jobs, *more, "--budget", f"{seconds:.0f}s"), gpus[0], log)
    while len(gpus) > 1 and not (journal.exists() and "shape 1 of" in log.read_text()):
        if first.poll() is not None or time.monotonic() > end:
            break
        time.sleep(0.5)
    found = Searching([first], out)
    for gpu in gpus[1:]:
        found.join(shape, gpu, jobs)
    return found


def go_on(folder: Path, options: argparse.Namespace, gpus: list[int], jobs: int) -> Spent:
    """Search for as long as a call may; what has been done then."""
    spent = Spent.of(folder)
    short = 0.0 if spent.short else options.short
    seconds, worth = span(options.long - spent.long_s, short, len(gpus), options.within)
    alone = search(options.shape, short, gpus[:1], folder / "short", jobs) if short else None
    if alone and len(gpus) == 1:
        alone.wait()
    others = gpus[1:] if alone and len(gpus) > 1 else gpus
    long = search(options.shape, seconds, others, folder / "long", jobs) if seconds >= 1 else None
    print(f"searching on {len(gpus)} GPUs; logs are in {folder}", file=sys.stderr, flush=True)
    if alone:
        alone.wait()
        if long and others != gpus and seconds > short:
            long.join(options.shape, gpus[0], jobs)
    if long:
        long.wait()
    done = Spent(True, spent.long_s + worth)
    done.write(folder)
    return done


def start(arguments: list[str], gpu: int, log: Path) -> subprocess.Popen:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = visible.split(",")[gpu] if visible else str(gpu)
    with log.open("w") as file:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": chosen, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(arguments, env=environment, stdout=file, stderr=subprocess.STDOUT)


def found(out: Path) -> dict[str, Record]:
    """{pass: its record}."""
    (folder,) = (out / "tuned").iterdir()
    return {direction: record for direction in PASSES for record in store.read(folder, direction)}


def in_turns(shape: str, records: list[dict[str, Record]], jobs: int) -> dict[str, list[float]]:
    """{pass: microseconds of each of the records}, timed side by side on the current GPU."""
    gpu = device.gpu_here()
    users = measure.Users(device.identity(gpu), ladder.current_fingerprint())
    times = {}
    with measure.benches(gpu, jobs, 0, "graph", "cold", users) as bench_of:
        for task in session.tasks_of(shapes.parse(shape), PASSES):
            each = [record[task.direction] for record in records]
            batch = [Result(r.config, r.time_us, r.spread_us, r.error, r.error_limit) for r in each]
            timed = bench_of(task).finals(batch)
            if len(timed) < len(batch):
                raise RuntimeError(f"{task.name}: what was found is not right when it is run again")
            times[task.direction] = [result.time_us for result in timed]
    return times


def rows(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """What a short and a long search found: their times, and how far the short one is from the better of both."""
    return [
        {"pass": name, "short_us": short, "long_us": long, "ratio": short / min(short, long)}
        for name, (short, long) in times.items()
    ]


def table(document: dict[str, Any]) -> str:
    lines = [
        f"{document['gpu']}; {document['shape']}, bf16; {document['short_s']:.0f} s alone beside "
        f"{document['long_s']:.0f} s of GPU time",
        f"{'':<10} {'short us':>10} {'long us':>10} {'from the best':>14}",
    ]
    lines += [
        f"{row['pass']:<10} {row['short_us']:>10.1f} {row['long_us']:>10.1f} {row['ratio']:>14.3f}"
        for row in document["rows"]
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=SHAPE, help="b,L,H,P,N,G, without a bundled record")
    parser.add_argument("--short", type=float, default=300, metavar="SECONDS", help="one process, both passes")
    parser.add_argument("--long", type=float, default=1800, metavar="SECONDS", help="of GPU time, all others together")
    parser.add_argument("--jobs", type=int, help="processes that compile for each GPU; default: all cores shared out")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/tuning_time_GPU.json")
    parser.add_argument(
        "--folder", type=Path, help="of the searches, which a later call goes on with; default: none stays"
    )
    parser.add_argument("--within", type=float, default=inf, metavar="SECONDS", help="end this call's searches by then")
    options = parser.parse_args(argv)
    if options.within < inf and not options.folder:
        parser.error("--within leaves searches for another call: say where, with --folder")
    if options.within < options.short:
        parser.error(f"--within is {options.within:.0f}, and the short search alone takes {options.short:.0f}")
    if not torch.cuda.is_available():
        print("benchmarks/tuning_time.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpus = list(range(torch.cuda.device_count()))
    jobs = options.jobs or max(1, session.default_jobs() // len(gpus))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        spent = go_on(folder, options, gpus, jobs)
        if options.long - spent.long_s >= 1:
            print(
                f"{spent.long_s:.0f} of {options.long:.0f} s have been searched; the same command goes on with the rest"
            )
            return 3
        records = [found(folder / name) for name in ("short", "long")]
    document: dict[str, Any] = {**report.environment(), "shape": options.shape, "gpus": len(gpus)}
    document |= {"short_s": options.short, "long_s": options.long, "limit": LIMIT}
    document["configs"] = [{name: record.config for name, record in each.items()} for each in records]
    document["rows"] = rows(in_turns(options.shape, records, jobs))
    out = options.out or ROOT / "benchmarks" / "results" / f"tuning_time_{report.slug(document['gpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(table(document))
    print(f"written: {out}")
    return 0 if all(row["ratio"] <= LIMIT for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
