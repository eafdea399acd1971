"""Why the kernels of a training step wait, by Nsight Compute: stalls, spilled registers, banks.  -> a table and JSON

    python benchmarks/stalls.py [--shape 2.7b_b8_2k] [--kernels "chunk_|walk"] [--top 8] [--out FILE]

Needs a CUDA GPU, `ncu` on the PATH and permission to read the GPU's counters.  The step runs as it would anywhere, by
the record or the default, at the clocks that the GPU chooses.  What is told of instructions is of a kernel's loop: of
those that are executed equally often, the ones in which most warps were seen.  Warps that wait for others to end do not
count.  Times are a kernel's alone; in a stream it may begin beside the one before.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# metrics of a kernel as a whole, as ncu calls them, and what the table calls them
WHOLE = {
    "Duration": "us",
    "SM Frequency": "GHz",
    "DRAM Throughput": "DRAM %",
    "L2 Cache Throughput": "L2 %",
    "L1/TEX Cache Throughput": "L1 %",
    "Issue Slots Busy": "issue %",
    "L1/TEX Hit Rate": "L1 hit %",
    "Registers Per Thread": "registers",
    "Dynamic Shared Memory Per Block": "shared KB",
    "Shared Memory Configuration Size": "set aside KB",
    "Local Memory Spilling Requests": "spilled",
}
_MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
_NAME = re.compile(r"^  (\w+) \(\d+, \d+, \d+\)x\(\d+, \d+, \d+\)")
_METRIC = re.compile(r"^ {4}(\S.*?) {2,}(?:(\S+) +)?([\d,.]+)\s*$")


@dataclass
class Instruction:
    """text: in the GPU's assembly.  samples: warps that were seen at it, and by what they waited for."""

    text: str
    samples: int
    executed: int
    stalls: dict[str, int]
    wavefronts: int
    excess: int

    @property
    def operation(self) -> str:
        """Without the predicate in front and what follows the first point."""
        words = self.text.split()
        return words[1 if words[0].startswith("@") else 0].partition(".")[0]


@dataclass
class Kernel:
    name: str
    whole: dict[str, float] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def loop(self) -> list[Instruction]:
        """Instructions that are executed equally often, of those the ones with most samples."""
        samples: Counter[int] = Counter()
        for each in self.instructions:
            # warps that have nothing to do wait at a barrier for the others
            samples[each.executed] += 0 if each.operation == "NOP" else each.samples
        often = samples.most_common(1)[0][0] if samples else 0
        return [each for each in self.instructions if each.executed == often]

    def summary(self, top: int) -> dict[str, Any]:
        """stalls: shares of the loop's samples; waits: its instructions with most samples; banks: excess wavefronts."""
        loop = self.loop
        samples = max(1, sum(each.samples for each in loop))
        stalls: Counter[str] = Counter()
        for each in loop:
            stalls.update(each.stalls)
        by_operation: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for each in loop:
            by_operation[each.operation][0] += 1
            by_operation[each.operation][1] += each.samples
        waits = sorted(loop, key=lambda each: -each.samples)[:top]
        wavefronts = sum(each.wavefronts for each in self.instructions)
        return {
            "whole": self.whole,
            "instructions": len(loop),
            "stalls": {name: count / samples for name, count in stalls.most_common() if count},
            "operations": {name: [n, seen / samples] for name, (n, seen) in _largest(by_operation, top)},
            "waits": [[each.text, each.samples / samples, _first(each.stalls)] for each in waits],
            "banks": sum(each.excess for each in self.instructions) / wavefronts if wavefronts else 0.0,
        }


def _largest(by_operation: dict[str, list[int]], top: int) -> list[tuple[str, list[int]]]:
    return sorted(by_operation.items(), key=lambda item: -item[1][1])[:top]


def _first(stalls: dict[str, int]) -> str:
    return max(stalls, key=lambda name: stalls[name]) if any(stalls.values()) else ""


def details(text: str) -> Iterator[Kernel]:
    """Kernels with their metrics, of ncu's page "details"."""
    kernel = None
    for line in text.splitlines():
        if found := _NAME.match(line):
            if kernel:
                yield kernel
            kernel = Kernel(found[1])
        elif kernel and (found := _METRIC.match(line)) and found[1] in WHOLE:
            number = float(found[3].replace(",", ""))
            scale = _MICROSECONDS.get(found[2] or "", 1.0) if found[1] == "Duration" else 1.0
            kernel.whole[WHOLE[found[1]]] = number * scale
    if kernel:
        yield kernel


def sources(lines: Iterable[str]) -> Iterator[Kernel]:
    """Kernels with their instructions, of ncu's page "source" as CSV."""
    kernel, columns = None, {}
    for row in csv.reader(lines):
        if row and row[0] == "Kernel Name":
            if kernel:
                yield kernel
            kernel = Kernel(row[1])
        elif row and row[0] == "Address":
            columns = {name: at for at, name in enumerate(row)}
        elif kernel and row and row[0].startswith("0x"):
            kernel.instructions.append(_instruction(row, columns))
    if kernel:
        yield kernel


def _instruction(row: list[str], columns: dict[str, int]) -> Instruction:
    def number(name: str) -> int:
        text = row[columns[name]] if name in columns else ""
        return int(text) if text.isdigit() else 0

    stalls = {
        name.removeprefix("stall_"): number(name)
        for name in columns
        if name.startswith("stall_") and "Not Issued" not in name
    }
    wavefronts, excess = number("L1 Wavefronts Shared"), number("L1 Wavefronts Shared Excessive")
    text = row[columns["Source"]].strip()
    return Instruction(text, number("# Samples"), number("Instructions Executed"), stalls, wavefronts, excess)


def joined(whole: Iterable[Kernel], instructions: Iterable[Kernel]) -> list[Kernel]:
    """Both pages' kernels, which come in the same order."""
    found = []
    for one, other in zip(whole, instructions, strict=True):
        if one.name != other.name:
            raise ValueError(f"the pages differ: {one.name} in one, {other.name} in the other; profile again")
        found.append(Kernel(one.name, one.whole, other.instructions))
    return found


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    lines = []
    for name, row in rows:
        lines.append(name)
        lines.append("  " + ", ".join(f"{metric} {number:,.6g}" for metric, number in row["whole"].items()))
        stalls = ", ".join(f"{stall} {share:.0%}" for stall, share in row["stalls"].items() if share >= 0.02)
        lines.append(f"  {row['instructions']} instructions in the loop; warps: {stalls}")
        operations = ", ".join(f"{name} {count} ({share:.0%})" for name, (count, share) in row["operations"].items())
        lines.append(f"  {operations}")
        lines.append(f"  wavefronts of shared memory in excess: {row['banks']:.0%}")
        lines += [f"    {share:6.1%} {stall:14} {text}" for text, share, stall in row["waits"]]
    return "\n".join(lines)


def child(shape_name: str) -> None:
    """A step that compiles, and one that is profiled."""
    import torch

    from benchmarks import workload
    from ssdgen.mamba2_ops import mamba_chunk_scan_combined

    (shape,) = workload.select(shape_name)
    leaves = {name: value.detach().requires_grad_() for name, value in workload.inputs(shape, "cuda", 0).items()}
    operands = [leaves[name] for name in ("x", "dt", "A", "B", "C")]
    d_y = torch.randn_like(leaves["x"])
    for profiled in (False, True):
        if profiled:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        y = mamba_chunk_scan_combined(*operands, 256, D=leaves["D"], dt_bias=leaves["dt_bias"], dt_softplus=True)
        y.backward(d_y)
        torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def profile(shape: str, kernels: str, report: Path) -> list[Kernel]:
    """Errors: RuntimeError with what ncu says."""
    ncu = ("ncu", "--set", "full", "--import-source", "yes", "--clock-control", "none", "--profile-from-start", "off")
    command = [*ncu, "-k", f"regex:{kernels}", "-o", str(report), "-f"]
    _run([*command, sys.executable, __file__, "--child", "--shape", shape])
    page = ["ncu", "-i", f"{report}.ncu-rep", "--page"]
    return joined(details(_run([*page, "details"])), sources(_run([*page, "source", "--csv"]).splitlines()))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with {done.returncode}: " + " / ".join(said))
    return done.stdout


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2.7b_b8_2k", help="as in forward.py, one of them")
    parser.add_argument("--kernels", default="chunk_|walk|group_|single_pass|segment_", help="a regular expression")
    parser.add_argument("--top", type=int, default=8, help="instructions and operations that are named")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: none")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.shape)
        return 0
    from benchmarks import workload

    try:
        shapes = workload.select(options.shape)
    except ValueError as error:
        parser.error(str(error))
    if len(shapes) != 1:
        parser.error(f"--shape {options.shape} is {len(shapes)} shapes; give one of {' '.join(s.name for s in shapes)}")
    if shutil.which("ncu") is None:
        print(
            "stalls.py needs `ncu` of NVIDIA Nsight Compute on the PATH; it comes with CUDA's toolkit.", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            kernels = profile(shapes[0].name, options.kernels, Path(folder) / "step")
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    rows = [(kernel.name, kernel.summary(options.top)) for kernel in kernels]
    print(table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"shape": shapes[0].name, "kernels": rows}, indent=2) + "\n")
        print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
