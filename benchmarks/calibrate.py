"""Fit the cost model to the candidates that were measured, and say how well it ranks.  results/*.json -> constants.json

    python benchmarks/calibrate.py           # fit, write ssdgen/tune/constants.json, the quality and its table
    python benchmarks/calibrate.py --check   # fit nothing: the quality of the constants that are there

Needs no GPU.  What was measured without a word on registers and shared memory is compiled first, and kept in
results/compiled_sm90.json.  Every prediction in the table is by constants that were fitted without the candidate's
shape; the constants that are written are fitted to all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import measured  # noqa: E402
from ssdgen.gpus import Gpu  # noqa: E402
from ssdgen.tune import calibration, compile, model  # noqa: E402
from ssdgen.tune.calibration import Sample, Timed  # noqa: E402
from ssdgen.tune.compile import Compiled, Launch  # noqa: E402
from ssdgen.tune.errors import CompileError  # noqa: E402
from ssdgen.tune.passes import PASSES  # noqa: E402
from ssdgen.tune.resources import Resources  # noqa: E402
from ssdgen.tune.shapes import name_of  # noqa: E402

QUALITY = measured.RESULTS / "model_quality.json"
COMPILED = measured.RESULTS / "compiled_sm90.json"
PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- quality: written by benchmarks/calibrate.py -->", "<!-- end of quality -->"

# candidates of a run and shape from which on a ranking says something
FEWEST = 4


def samples(rows: Sequence[measured.Row], left_out: Counter[str], known: Known) -> list[Sample]:
    """What the model needs to know of each row; what does not compile today is left out."""
    found = []
    for row in rows:
        it = PASSES[row.direction]
        launches = it.plan(row.config, it.draw(row.problem, "meta", 0, False), False).launches
        alone = row.kernels_us or (None,) * len(launches)
        try:
            codes = [_code(row, at, launch, known) for at, launch in enumerate(launches)]
        except CompileError as error:
            left_out[f"it does not compile today: {str(error)[:60]}"] += 1
            continue
        timed = tuple(
            Timed(it.work(launch, row.config, row.problem), code, row.problem.dtype, launch.num_stages, us)
            for launch, code, us in zip(launches, codes, alone, strict=True)
        )
        found.append(Sample(row.gpu, row.direction, name_of(row.problem), row.run, timed, row.us))
    return found


class Known:
    """Resources of launches that were compiled before, by config and shape of a launch."""

    def __init__(self, path: Path = COMPILED) -> None:
        self._path = path
        # or why a kernel does not compile
        self._known: dict[str, list[int] | str] = json.loads(path.read_text()) if path.exists() else {}
        self._used: dict[str, list[int] | str] = {}

    def __call__(self, launch: Launch, gpu: Gpu) -> Resources:
        """Errors: CompileError."""
        key = f"{gpu.arch} {launch.kernel.__name__} {compile.shape_of(launch)}"
        if key not in self._known:
            try:
                needs = compile.compile_launch(launch, gpu).resources
                self._known[key] = [needs.registers, needs.spilled, needs.shared, needs.num_warps]
            except CompileError as error:
                self._known[key] = str(error)
        found = self._used[key] = self._known[key]
        if isinstance(found, str):
            raise CompileError(found)
        return Resources(*found)

    def save(self) -> None:
        """Keep what was asked for, and drop the rest."""
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(self._used[key])}" for key in sorted(self._used))
        self._path.write_text("{\n" + lines + "\n}\n")


def report(found: Sequence[Sample], predicted: Sequence[float], left_out: Counter[str]) -> dict[str, Any]:
    """The quality of predictions, by pass, kind of GPU and shape."""
    groups: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for sample, guess in zip(found, predicted, strict=True):
        groups[sample.direction, sample.gpu.name][sample.shape].append((guess, sample.us))
    shapes, passes = [], []
    for (direction, gpu), by_shape in sorted(groups.items(), key=lambda item: (item[0][0] != "forward", item[0])):
        about = {"direction": direction, "gpu": gpu}
        rows = [
            {**about, "shape": shape, **vars(calibration.quality(pairs))}
            for shape, pairs in sorted(by_shape.items())
            if len(pairs) >= FEWEST
        ]
        if rows:
            shapes += rows
            everything = [pair for pairs in by_shape.values() for pair in pairs]
            passes.append(
                {
                    **about,
                    "candidates": len(everything),
                    "rho_pooled": calibration.quality(everything).rho,
                    "rho_mean": fmean(row["rho"] for row in rows for _ in range(row["count"])),
                    "ratio_mean": calibration.geometric([row["ratio"] for row in rows]),
                    "ratio_worst": max(row["ratio"] for row in rows),
                }
            )
    return {"candidates": len(found), "left_out": dict(sorted(left_out.items())), "passes": passes, "shapes": shapes}


def table(data: dict[str, Any]) -> str:
    """The same for people to read."""
    lines = ["| pass | GPU | shape | candidates | rho | predicted best / best |", "|---|---|---|---|---|---|"]
    for row in data["shapes"]:
        lines.append(
            f"| {row['direction']} | {row['gpu']} | {row['shape']} | {row['count']} "
            f"| {row['rho']:.2f} | {row['ratio']:.2f} |"
        )
    for total in data["passes"]:
        lines.append(
            f"| **{total['direction']}** | {total['gpu']} | all, pooled {total['rho_pooled']:.3f} "
            f"| {total['candidates']} | {total['rho_mean']:.2f} "
            f"| {total['ratio_mean']:.2f}, at worst {total['ratio_worst']:.2f} |"
        )
    return "\n".join(lines)


def _code(row: measured.Row, at: int, launch: Launch, known: Known) -> Compiled:
    name = launch.kernel.__name__
    # sums that torch made when the row was measured may be a launch of ours today
    if row.resources is None or (row.kernels is not None and name not in row.kernels):
        return Compiled(name, "", known(launch, row.gpu))
    registers, spilled, shared, *warps = row.resources[row.kernels.index(name) if row.kernels else at]
    return Compiled(name, "", Resources(registers, spilled, shared, *(warps or [launch.num_warps])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="use the constants that are there, and write nothing")
    options = parser.parse_args()
    rows, left_out = measured.read()
    known = Known()
    found = samples(rows, left_out, known)
    if options.check:
        print(table(report(found, [calibration.predicted(sample) for sample in found], left_out)))
        return
    known.save()
    fitted = calibration.fit(found)
    data = report(found, calibration.held_out(found), left_out)
    about = {
        "about": "written by benchmarks/calibrate.py; what each means: Constants in model.py",
        "candidates": len(found),
        "error": round(calibration.loss(found, fitted) ** 0.5, 3),
    }
    model.FILE.write_text(model.to_json(fitted, **about))
    QUALITY.write_text(json.dumps(data, indent=1) + "\n")
    text = table(data)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)
    for reason, count in sorted(left_out.items()):
        print(f"left out: {count:3} {reason}")


if __name__ == "__main__":
    main()
