"""The figures of docs/gallery.md.  benchmarks/results/*.json -> docs/figures/*.svg, without a GPU

    make figures

Each file says in its metadata which numbers it shows, so that a test finds one that lags behind its results.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = ROOT / "docs" / "figures"
GPU = "nvidia_h200"

# on a card of their own colour, so that a light and a dark page show the same; told apart without colours too
CARD, INK, LINE, OURS, PEER = "#ffffff", "#1f2937", "#9ca3af", "#1d6fb8", "#e0a458"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssdgen",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": CARD,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Bars:
    """Two bars for each row.  label: of the row; ours, peer: microseconds, None where it was not measured;
    scale: what both are divided by, so that rows of any length can stand together."""

    label: str
    ours: float
    peer: float | None
    scale: float


def of_calls(results: dict[str, Any]) -> list[Bars]:
    """Rows of forward or training results that passed: time for 1024 tokens, against the peer's best chunk size."""
    found = []
    for row in results["rows"]:
        if not row.get("passed"):
            continue
        # where a time is missing the file says why
        timed = {name: each for name, each in row["results"].items() if isinstance(each, dict) and "gpu_us" in each}
        times = {name: each["gpu_us"] for name, each in timed.items()}
        peers = [time for name, time in times.items() if name != "ssdgen"]
        if "ssdgen" not in times:
            continue
        batch, seqlen = row["sizes"][:2]
        name = row["shape"].partition("_")[0]
        label = f"{name}\n{batch} x {seqlen:,}"
        found.append(Bars(label, times["ssdgen"], min(peers, default=None), batch * seqlen / 1024))
    return found


def of_decode(results: dict[str, Any], batch: int) -> list[Bars]:
    """Formats of the state at one batch, beside the peer's where it has the format."""
    times = {row["name"]: row["gpu_us"] for row in results["rows"] if row["batch"] == batch}
    names = ("float32", "bfloat16", "int8", "float8")
    return [Bars(name, times[name], times.get(f"mamba_ssm {name}"), 1.0) for name in names if name in times]


def of_parts(results: dict[str, Any]) -> list[Bars]:
    """The convolution and the norms."""
    found = []
    for part in results["parts"]:
        times = {name: row["gpu_us"] for name, row in part["rows"].items()}
        peer = next((time for name, time in times.items() if name != "ssdgen"), None)
        found.append(Bars(part["part"], times["ssdgen"], peer, 1.0))
    return found


def draw(axes: Axes, rows: Sequence[Bars], unit: str) -> None:
    """Horizontal bars, first row on top, each with its time and what the peer takes of ours."""
    height = 0.38
    widest = max(max(row.ours, row.peer or 0.0) / row.scale for row in rows)
    for place, row in enumerate(rows):
        ours = row.ours / row.scale
        # alone in its row, a bar stands beside the label
        at = place - height / 2 if row.peer is not None else place
        axes.barh(at, ours, height, color=OURS, label="ssdgen" if place == 0 else None)
        faster = "" if row.peer is None else f", {row.peer / row.ours:.1f} times as fast"
        axes.text(ours + widest * 0.01, at, f"{_time(row.ours)}{faster}", va="center", fontsize=9.5)
        if row.peer is not None:
            peer = row.peer / row.scale
            axes.barh(
                place + height / 2,
                peer,
                height,
                color=PEER,
                hatch="///",
                edgecolor=CARD,
                linewidth=0,
                label="peer" if place == 0 else None,
            )
            axes.text(peer + widest * 0.01, place + height / 2, _time(row.peer), va="center", fontsize=9.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, widest * 1.3)
    axes.set_xlabel(unit)


def _time(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f} ms" if microseconds >= 1000 else f"{microseconds:.3g} us"


def figure(rows: dict[str, list[Bars]], unit: str, peer: str) -> str:
    """One panel for each title, as the text of an SVG."""
    digest = hashlib.sha256(repr((rows, unit, peer)).encode()).hexdigest()[:16]
    heights = [len(each) for each in rows.values()]
    with matplotlib.rc_context(STYLE):
        # inches; the legend and the axis take the rest
        made = Figure(
            figsize=(8.0, 0.62 * sum(heights) + 0.75 * len(rows) + 0.35), facecolor=CARD, layout="constrained"
        )
        panels = made.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, each) in zip(panels, rows.items(), strict=True):
            draw(axes, each, unit)
            if len(rows) > 1:
                axes.set_title(title, loc="left", fontsize=11)
        handles, labels = panels[0].get_legend_handles_labels()
        made.legend(handles, [peer if name == "peer" else name for name in labels], loc="outside upper right", ncols=2)
        out = io.StringIO()
        # a margin of the card
        made.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        made.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Description": f"data {digest}"})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}_{GPU}.json").read_text())


def forward() -> str:
    results = _read("forward")
    return figure({"": of_calls(results)}, "GPU time of a forward pass, us for 1024 tokens", results["peer"])


def training() -> str:
    results = _read("training")
    return figure({"": of_calls(results)}, "GPU time of both passes, us for 1024 tokens", results["peer"])


def decode() -> str:
    results = _read("decode")
    panels = {f"batch {batch}": of_decode(results, batch) for batch in (1, 256)}
    return figure(panels, "GPU time of a step, us", results["peer"])


def layer_parts() -> str:
    results = _read("layer_parts")
    return figure({"": of_parts(results)}, "GPU time, us", "peer (convolution: torch; norm: mamba_ssm)")


FIGURES: dict[str, Callable[[], str]] = {
    "forward": forward,
    "training": training,
    "decode": decode,
    "layer_parts": layer_parts,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in FIGURES.items():
        path = FOLDER / f"{name}.svg"
        path.write_text(make())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
