"""The plots as SVG that can stand in a page: no fonts, no fixed size, the page's colours.  rows, History -> text"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..gpus import Gpu
from ..pack.records import BACKWARD, FORWARD
from .content import Row
from .studies import History

# as CSS variables, so that a dark page has its own
COLOURS = {"#111111": "var(--ink)", "#777777": "var(--line)", "#2563eb": "var(--one)", "#d97706": "var(--two)"}
INK, LINE, ONE, TWO = COLOURS
_OF_PASS = {FORWARD: (ONE, "o"), BACKWARD: (TWO, "s")}

# inches, at which the text of a plot is as large as the page's on a phone
_SIZE = (4.4, 3.0)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def roofline(rows: list[Row], gpu: Gpu) -> str:
    """Rate over intensity of each record, below what the GPU's memory and tensor cores allow."""
    with _figure("roofline") as (figure, axes, out):
        ridge = gpu.bf16_tflops / gpu.copy_tbs
        low = min([ridge / 8, *(row.intensity / 2 for row in rows)])
        high = max([ridge * 4, *(row.intensity * 2 for row in rows)])
        axes.plot([low, ridge, high], [low * gpu.copy_tbs, gpu.bf16_tflops, gpu.bf16_tflops], color=LINE, linewidth=1.5)
        for direction, (colour, marker) in _OF_PASS.items():
            own = [row for row in rows if row.direction == direction]
            x, y = [row.intensity for row in own], [row.tflops for row in own]
            if own:
                axes.scatter(x, y, color=colour, marker=marker, s=28, label=f"{direction} pass", zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("FLOP per byte, at least")
        axes.set_ylabel("TFLOP/s")
        if rows:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return out[0]


def history(found: History, name: str) -> str:
    """Every trial's time, and the best so far."""
    with _figure(name) as (figure, axes, out):
        axes.scatter(*zip(*found.trials, strict=True), color=LINE, s=12, label="trials")
        last = found.trials[-1][0]
        best = [*found.best, (last, found.best[-1][1])]
        axes.step(*zip(*best, strict=True), where="post", color=ONE, linewidth=2, label="best so far")
        lowest = found.best[-1][1]
        # candidates that are many times slower would leave nothing to see of the rest
        slow = sorted(time_us for _, time_us in found.trials)[int(0.9 * (len(found.trials) - 1))]
        axes.set_ylim(0.9 * lowest, max(1.1 * slow, 1.3 * lowest))
        axes.set_xlabel("trial")
        axes.set_ylabel("microseconds")
        # above the plot: trials are everywhere in it
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return out[0]


@contextmanager
def _figure(name: str) -> Iterator[tuple[Figure, Any, list[str]]]:
    """A figure with axes; afterwards its SVG is in the list.  name: makes its ids differ from other figures'."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure, out = Figure(figsize=_SIZE, layout="constrained"), []
        yield figure, figure.add_subplot(), out
        buffer = io.StringIO()
        # no date: the same records make the same page
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        out.append(_inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: as wide as it may be, its groups without ids that another plot has too."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    # two ways of naming the font, by matplotlib's version
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
