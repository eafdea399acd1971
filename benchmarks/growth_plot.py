"""The figures of growth.py's file: time against length, against state size, and per token.  results -> docs/*.png

    python benchmarks/growth_plot.py [RESULTS] [--into docs]

Needs matplotlib and no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import growth_report  # noqa: E402
from benchmarks.growth_report import PASSES, Points  # noqa: E402
from benchmarks.rivals import CUDNN, FLASH, GLA, OURS, SCAN, SCAN_STATE  # noqa: E402

DEFAULT = ROOT / "benchmarks" / "results" / "growth_nvidia_h100_80gb_hbm3.json"
PEER = "mamba_ssm, best chunk"
TITLES = {"forward": "forward", "both": "forward and backward"}
# one colour for each, the same in all figures
COLOURS = {
    OURS: "tab:red",
    PEER: "tab:blue",
    GLA: "tab:purple",
    FLASH: "tab:green",
    CUDNN: "tab:olive",
    f"{SCAN} N={SCAN_STATE}": "tab:gray",
    SCAN: "tab:gray",
}


def curves(rows: list[dict[str, Any]], passes: str, axis: int) -> dict[str, Points]:
    """{label: points}, the chunk sizes of mamba_ssm as one."""
    made: dict[str, Points] = {}
    for name in growth_report.names(rows):
        peer = name.startswith("mamba_ssm")
        found = growth_report.best_of(rows, "mamba_ssm" if peer else name, passes, axis)
        if found and (peer or name in COLOURS):
            made[PEER if peer else name] = growth_report.points(rows, name, passes, axis) if name == SCAN else found
    return made


def figure(part: dict[str, Any], axis: int, title: str, path: Path) -> None:
    """A panel for each of the passes that were measured, or for all where none was; both axes in powers of two."""
    pyplot = _pyplot()
    every = {passes: curves(part["rows"], passes, axis) for passes in PASSES}
    measured = {passes: found for passes, found in every.items() if found} or every
    size = (1 + 4.5 * len(measured), 4.2)
    made, (panels,) = pyplot.subplots(1, len(measured), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, (passes, lines) in zip(panels, measured.items(), strict=True):
        for label, found in lines.items():
            sizes = sorted(found)
            axes.plot(
                sizes,
                [found[size] / 1e3 for size in sizes],
                marker="o",
                markersize=3,
                label=label,
                color=COLOURS[label],
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="tokens" if axis == 1 else "state size N", title=TITLES[passes])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("GPU time, ms")
    if panels[0].lines:
        panels[0].legend(fontsize=8)
    made.suptitle(f"{title}, {part['gpu']}")
    _save(made, path)


def per_token(part: dict[str, Any], path: Path) -> None:
    """Time and memory of a token against the length; lengths that no chunk divides are crosses."""
    pyplot = _pyplot()
    made, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, value, scale in zip(panels, ("gpu_us", "extra_mb"), (1e3, 1e3), strict=True):
        for passes in PASSES:
            found = growth_report.per_token(growth_report.points(part["rows"], OURS, passes, value=value))
            whole = sorted(length for length in found if length % 1024 == 0)
            odd = sorted(set(found) - set(whole))
            (line,) = axes.plot(whole, [scale * found[length] for length in whole], marker="o", label=TITLES[passes])
            axes.plot(odd, [scale * found[length] for length in odd], "x", color=line.get_color())
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="ns per token", title="GPU time")
    panels[1].set(ylabel="kB per token", title="memory beside the operands")
    panels[0].legend()
    made.suptitle(f"{OURS}, {part['gpu']}; crosses: lengths that no chunk divides")
    _save(made, path)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(made, path: Path) -> None:
    # no date and no version of the library: the same figures give the same bytes
    made.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(made)


def _heads(part: dict[str, Any]) -> str:
    batch, length, heads, headdim, dstate, _ = part["rows"][0]["sizes"]
    return f"{heads} heads of {headdim}"


def draw(sweeps: dict[str, Any], into: Path) -> list[Path]:
    """A picture for each sweep that is there."""
    made = []
    if "length" in sweeps:
        made.append(into / "time_by_length.png")
        figure(sweeps["length"], 1, f"One sequence, {_heads(sweeps['length'])}", made[-1])
    if "state" in sweeps:
        made.append(into / "time_by_state.png")
        batch, length = sweeps["state"]["rows"][0]["sizes"][:2]
        figure(sweeps["state"], 4, f"{batch} sequences of {length}, {_heads(sweeps['state'])}", made[-1])
    if "growth" in sweeps:
        made.append(into / "per_token.png")
        per_token(sweeps["growth"], made[-1])
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=DEFAULT, help="what growth.py wrote")
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="folder of the pictures")
    options = parser.parse_args(argv)
    if not options.results.exists():
        print(
            f"{options.results} is not there: benchmarks/growth.py writes it, on a machine with a GPU", file=sys.stderr
        )
        return 2
    for path in draw(json.loads(options.results.read_text())["sweeps"], options.into):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
