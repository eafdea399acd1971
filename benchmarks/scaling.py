"""What 8 to 1024 GPUs would do with one sequence.  measured times, speeds of links -> docs/scaling.png, a table

    python benchmarks/scaling.py [--plot FILE] [--table FILE]

No GPU is needed.  Times of a shard come from results/*_nvidia_h100_80gb_hbm3.json (one row, 80 heads of 64, dstate
128, bf16), between its lengths by powers; docs/scaling.md says what was not measured.  Messages take a latency and
their bytes over a speed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ssdgen.mamba2_ops.exchange import GATHER_UP_TO  # noqa: E402
from ssdgen.spec import counts  # noqa: E402
from ssdgen.spec.layer import Layer  # noqa: E402

GPU = "nvidia_h100_80gb_hbm3"
NHEADS, HEADDIM, DSTATE, NGROUPS = 80, 64, 128, 1
# a pair (total, state) in fp32
PAIR = 4 * NHEADS * (1 + HEADDIM * DSTATE)
IN_MACHINE = 8


@dataclass(frozen=True)
class Links:
    """Speeds of a GPU in one direction, bytes a microsecond, and latencies, microseconds; sources: docs/scaling.md."""

    inside: float = 0.8 * 450e3
    outside: float = 0.8 * 50e3
    start: float = 8.4
    step_inside: float = 3.4
    step_outside: float = 9.6

    def gather(self, ranks: int, size: int) -> float:
        """A ring in which every rank's message passes through all others."""
        machines = math.ceil(ranks / IN_MACHINE)
        steps = ranks - 1
        slow = machines if machines > 1 else 0
        latency = self.start + (steps - slow) * self.step_inside + slow * self.step_outside
        return latency + steps * size / (self.outside if slow else self.inside)

    def scan(self, ranks: int, size: int) -> float:
        """Rounds of one message between ranks 1, 2, 4, ... apart; all ranks of a machine have a link of their own."""
        time, distance = 0.0, 1
        while distance < ranks:
            # some ranks of a machine send to another one as soon as there are others
            leaves = ranks > IN_MACHINE
            step, speed = (self.step_outside, self.outside) if leaves else (self.step_inside, self.inside)
            time += self.start + step + size / speed
            distance *= 2
        return time

    def exchange(self, ranks: int, size: int) -> float:
        return self.gather(ranks, size) if ranks <= GATHER_UP_TO else self.scan(ranks, size)


@dataclass(frozen=True)
class Shard:
    """Microseconds on one GPU.  states, adjoints: what is computed before the exchanges of the two passes."""

    forward: float
    backward: float
    states: float
    adjoints: float

    def step(self, ranks: int, links: Links) -> float:
        """Both passes.  The pairs of the first half of the heads travel while those of the second are computed."""
        time = self.forward + self.backward
        if ranks > 1:
            sent = links.exchange(ranks, PAIR // 2)
            for computed in (self.states, self.adjoints):
                time += computed + max(0.0, sent - computed / 2) + sent
        return time


def measured(name: str) -> dict[int, float]:
    """{tokens: microseconds} of one row with the sizes above."""
    document = json.loads((ROOT / "benchmarks" / "results" / f"{name}_{GPU}.json").read_text())
    sizes = [NHEADS, HEADDIM, DSTATE, NGROUPS]
    rows = [row for row in document["rows"] if row["sizes"][0] == 1 and row["sizes"][2:] == sizes]
    return {row["sizes"][1]: row["results"]["ssdgen"]["gpu_us"] for row in rows}


def between(points: dict[int, float], tokens: float) -> float:
    """A power law between two measured lengths; proportional to tokens above the longest, constant below the shortest.

    A call that is too small to fill the GPU takes as long as the smallest one that was measured.
    """
    lengths = sorted(points)
    if tokens <= lengths[0]:
        return points[lengths[0]]
    if tokens >= lengths[-1]:
        return points[lengths[-1]] * tokens / lengths[-1]
    high = next(length for length in lengths if length >= tokens)
    low = lengths[lengths.index(high) - 1]
    slope = math.log(points[high] / points[low]) / math.log(high / low)
    return points[low] * (tokens / low) ** slope


def shard(tokens: float) -> Shard:
    """Of so many tokens.  Walks for states take the share of a forward pass that their bytes are of its bytes."""
    forward, both = between(measured("forward"), tokens), between(measured("training"), tokens)
    sizes = {"batch": 1, "seqlen": 1, "nheads": NHEADS, "headdim": HEADDIM, "dstate": DSTATE, "ngroups": NGROUPS}
    sizes["element_bytes"] = 2
    moved = {
        name: term.subs({symbol: sizes[str(symbol)] for symbol in term.free_symbols})
        for name, term in counts.least_bytes(Layer()).items()
    }
    walk = forward * float((moved["x"] + moved["B"] + moved["dt_raw"]) / sum(moved.values()))
    # for the adjoint the states of the segments are walked through as well
    return Shard(forward, both - forward, walk, 2 * walk)


def strong(tokens: int, ranks: list[int], links: Links) -> dict[int, float]:
    """{ranks: step in microseconds} of one sequence that is cut ever finer."""
    return {count: shard(tokens / count).step(count, links) for count in ranks}


def weak(tokens: int, ranks: list[int], links: Links) -> dict[int, float]:
    """{ranks: share of the time that is spent on what one GPU would do too}, with `tokens` on each."""
    alone = shard(tokens).step(1, links)
    return {count: alone / shard(tokens).step(count, links) for count in ranks}


# one sequence, and tokens of each rank where it grows with them
STRONG, WEAK = 8 << 20, 16384
RANKS = [8 << power for power in range(8)]


def table(links: Links) -> str:
    """In Markdown, as in docs/scaling.md."""
    lines = [
        "| GPUs | tokens each | step, us | of this, exchange | speed-up over 8 | efficiency at 16384 tokens each |",
        "|---|---|---|---|---|---|",
    ]
    steps, shares = strong(STRONG, RANKS, links), weak(WEAK, RANKS, links)
    for ranks in RANKS:
        tokens = STRONG // ranks
        one = shard(tokens)
        waited = steps[ranks] - one.forward - one.backward - one.states - one.adjoints
        lines.append(
            f"| {ranks} | {tokens} | {steps[ranks]:.0f} | {waited:.0f} | {steps[RANKS[0]] / steps[ranks]:.1f} | "
            f"{shares[ranks]:.0%} |"
        )
    return "\n".join(lines)


def crossing(links: Links) -> list[tuple[int, float, float]]:
    """(ranks, gather, scan) in microseconds for half of a pair: where the one takes over from the other."""
    return [(ranks, links.gather(ranks, PAIR // 2), links.scan(ranks, PAIR // 2)) for ranks in (2, 4, 8, 16, 32)]


def plot(links: Links, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for tokens, label in ((1 << 20, "1M tokens"), (STRONG, "8M tokens"), (64 << 20, "64M tokens")):
        steps = strong(tokens, RANKS, links)
        left.plot(RANKS, [time / 1000 for time in steps.values()], marker="o", label=label)
        left.plot(RANKS, [steps[RANKS[0]] / 1000 * RANKS[0] / ranks for ranks in RANKS], color="grey", linewidth=0.5)
    left.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="forward and backward, ms", title="one sequence")
    for tokens in (2048, 16384, 131072):
        right.plot(RANKS, list(weak(tokens, RANKS, links).values()), marker="o", label=f"{tokens} tokens each")
    right.set(
        xscale="log", ylim=(0, 1), xlabel="GPUs", ylabel="efficiency", title="a sequence as long as the GPUs are many"
    )
    for axes in (left, right):
        axes.set_xticks(RANKS, [str(ranks) for ranks in RANKS], minor=False)
        axes.legend()
    # no date and no version of the library: the same figures give the same bytes
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "scaling.png")
    options = parser.parse_args(argv)
    links = Links()
    print(table(links))
    for ranks, gather, scan in crossing(links):
        print(f"{ranks} ranks: half of a pair takes {gather:.0f} us gathered, {scan:.0f} us in rounds")
    plot(links, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
