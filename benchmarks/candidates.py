"""Times legal candidates of all kinds, right ones alone, to fit the cost model to.  GPU -> results/candidates_*.json

    python benchmarks/candidates.py [--budget 500] [--each 16] [--seed 0] [--shapes all] [--out FILE]

Needs a CUDA GPU.  Of each shape and pass: what runs without a record, then where a search begins and candidates drawn
at random from each schedule, in turn.  They are compiled in processes beside, compared with float64 as `ssdgen tune`
compares them, and timed by CUDA graph with a cold L2.  Rows are written as they come, so that whatever ends the run
costs one candidate; a file that is there is added to.  `benchmarks/calibrate.py` reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ssdgen.gpus import Gpu  # noqa: E402
from ssdgen.mamba2_ops import ladder  # noqa: E402
from ssdgen.tune import budget, device, measure, prior, session, shapes  # noqa: E402
from ssdgen.tune.budget import Budget  # noqa: E402
from ssdgen.tune.errors import ProblemError, RejectedError  # noqa: E402
from ssdgen.tune.jobs import Task  # noqa: E402
from ssdgen.tune.passes import PASSES  # noqa: E402
from ssdgen.tune.predict import Report  # noqa: E402
from ssdgen.tune.results import Config, Result, key_of  # noqa: E402

# a file of another schema is not added to
SCHEMA = 1
# candidates that compile while others are timed
AHEAD = 24


class Bench(Protocol):
    """As `measure.MeasuringBench`."""

    def prepare(self, config: Config) -> Future[Report]: ...
    def run(self, config: Config, prepared: Future[Report], best_us: float | None) -> Result: ...


@dataclass(frozen=True)
class Candidate:
    """One config of one shape and pass."""

    task: Task
    config: Config

    @property
    def key(self) -> str:
        return f"{self.task.name} {key_of(self.config)}"


class Results:
    """The file, written whole after each candidate.  Errors: ValueError for a file of another GPU or schema."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._data: dict[str, Any] = {"schema": SCHEMA, **about, "rows": [], "rejected": []}
        if path.exists():
            there = json.loads(path.read_text())
            for name in ("schema", "gpu"):
                if there.get(name) != self._data[name]:
                    wanted = f"{name} {self._data[name]!r}"
                    raise ValueError(
                        f"{path} is of {name} {there.get(name)!r}, and this is {wanted}; name another --out"
                    )
            self._data |= {"rows": there["rows"], "rejected": there["rejected"]}
        self.known = {row["key"] for row in (*self._data["rows"], *self._data["rejected"])}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self._data["rows"]

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return self._data["rejected"]

    def passed(self, candidate: Candidate, result: Result, report: Report) -> None:
        """A candidate that was right, and what its code needs."""
        codes = [launch.code for launch in report.launches]
        needs = [code.resources for code in codes]
        self.rows.append(
            {
                "key": candidate.key,
                "direction": candidate.task.direction,
                "problem": candidate.task.problem.to_json(),
                "config": candidate.config,
                "us": round(result.time_us, 2),
                "spread_us": result.spread_us,
                "error": result.error,
                "error_limit": result.error_limit,
                "kernels": [code.name for code in codes],
                "resources": [[n.registers, n.spilled, n.shared, n.num_warps] for n in needs],
            }
        )
        self._write(candidate)

    def out(self, candidate: Candidate, reason: str) -> None:
        """A candidate that was not."""
        self.rejected.append({"key": candidate.key, "reason": reason[:200]})
        self._write(candidate)

    def _write(self, candidate: Candidate) -> None:
        self.known.add(candidate.key)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.with_suffix(".partial")
        whole.write_text(json.dumps(self._data, indent=1) + "\n")
        os.replace(whole, self._path)


def drawn(task: Task, gpu: Gpu, seed: int, count: int) -> list[Config]:
    """The default, then in turn the starts of the space, which often are near the best, and legal configs at random of
    each schedule; no two alike.  The same seed gives the same.
    """
    space = PASSES[task.direction].space
    found = {key_of(config): config for config in [space.default(task.problem, gpu)]}
    turns = [iter(space.starts(task.problem, gpu))]
    turns += [iter(prior.drawn(task.direction, each, task.problem, gpu, seed)) for each in space.SCHEDULES]
    while turns and len(found) < count:
        for turn in list(turns):
            config = next(turn, None)
            if config is None:
                turns.remove(turn)
            elif len(found) < count:
                found.setdefault(key_of(config), config)
    return list(found.values())


def time_all(
    tasks: tuple[Task, ...],
    candidates: Callable[[Task], list[Config]],
    bench_of: Callable[[Task], Bench],
    results: Results,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Time the candidates of all tasks, each task in its share of the time; what is left of one goes to the others."""
    shares = Budget(seconds, clock)
    for index, task in enumerate(tasks):
        share = shares.deadline(len(tasks) - index) or 0.0
        new = [
            candidate for config in candidates(task) if (candidate := Candidate(task, config)).key not in results.known
        ]
        before = len(results.rows)
        try:
            for candidate in _timed(new, bench_of(task), results, lambda share=share: clock() >= share):
                say(candidate)
        except ProblemError as error:
            say(f"{task.name}: left out, {error}")
        say(f"{task.name}: {len(results.rows) - before} of {len(new)} timed")


def _timed(candidates: list[Candidate], bench: Bench, results: Results, late: Callable[[], bool]) -> Iterator[str]:
    """Judge candidates in order, while the next ones compile.  Errors: ProblemError."""
    waiting: list[tuple[Candidate, Future[Report]]] = []
    left = iter(candidates)
    try:
        while not late():
            while len(waiting) < AHEAD and (candidate := next(left, None)):
                waiting.append((candidate, bench.prepare(candidate.config)))
            if not waiting:
                break
            ready = next((at for at, (_, prepared) in enumerate(waiting) if prepared.done()), 0)
            candidate, prepared = waiting.pop(ready)
            try:
                result = bench.run(candidate.config, prepared, None)
                results.passed(candidate, result, prepared.result())
                yield f"{candidate.task.name}: {result.time_us:.1f} us  {candidate.config['schedule']}"
            except RejectedError as error:
                results.out(candidate, str(error))
                yield f"{candidate.task.name}: out, {str(error)[:100]}"
    finally:
        for _, prepared in waiting:
            prepared.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="500s", help="time for all, 500s or 8m")
    parser.add_argument("--each", type=int, default=16, help="candidates of a shape and pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", default="all")
    parser.add_argument("--jobs", type=int, help="processes that compile; one per core if left out")
    parser.add_argument("--out", type=Path, help="the file; results/candidates_GPU.json if left out")
    options = parser.parse_args()
    gpu = device.gpu_here()
    name = torch.cuda.get_device_name()
    path = options.out or ROOT / "benchmarks" / "results" / f"candidates_{name.lower().replace(' ', '_')}.json"
    about = {"gpu": name, "torch": torch.__version__, "triton": triton.__version__, "seed": options.seed}
    results = Results(path, {**about, "timing": "CUDA graph, cold L2"})
    tasks = session.tasks_of(shapes.parse(options.shapes), ("forward", "backward"))
    users = measure.Users(device.identity(gpu), ladder.current_fingerprint())
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    with measure.benches(gpu, options.jobs or session.default_jobs(), options.seed, "graph", "cold", users) as bench_of:
        time_all(
            tasks,
            lambda task: drawn(task, gpu, options.seed, options.each),
            bench_of,
            results,
            budget.seconds(options.budget),
            say=say,
        )
    print(f"{len(results.rows)} timed, {len(results.rejected)} out, in {path}")


if __name__ == "__main__":
    main()
