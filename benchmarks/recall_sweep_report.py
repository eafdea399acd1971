"""The table and the picture of recall by state size.  rows -> recall_sweep"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import report

# share of right answers with which a task counts as solved
SOLVED = 0.99


def by_state(rows: list[dict[str, Any]]) -> dict[int, dict[tuple[int, int], dict[str, Any]]]:
    """{N: {(length, pairs): row}}, N from the smallest."""
    made: dict[int, dict[tuple[int, int], dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["dstate"]):
        made.setdefault(row["dstate"], {})[row["seqlen"], row["pairs"]] = row
    return made


def solved(rows: list[dict[str, Any]]) -> dict[int, int]:
    """{N: how many of its tasks are solved}."""
    return {
        dstate: sum(row.get("accuracy", 0.0) >= SOLVED for row in cells.values())
        for dstate, cells in by_state(rows).items()
    }


def table(document: dict[str, Any]) -> str:
    rows = document["rows"]
    states = by_state(rows)
    tasks = sorted({task for cells in states.values() for task in cells})
    lines = [("length", "pairs", *(f"N={dstate}" for dstate in states))]
    for task in tasks:
        lines.append((str(task[0]), str(task[1]), *(_cell(cells.get(task)) for cells in states.values())))
    counts = ", ".join(f"{count} of {len(tasks)} with N={dstate}" for dstate, count in solved(rows).items())
    return "\n".join([*report.aligned(lines), f"solved ({SOLVED:.0%} of the answers right): {counts}"])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "accuracy" not in row:
        return "-" if "skipped" in row else "failed"
    marks = {"solved": "", "all steps": "", "out of time": " t"}
    return f"{row['accuracy']:.1%} ({row['steps']}{marks[row['ended']]})"


def plot(document: dict[str, Any], path: Path) -> bool:
    """Write the picture; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture; `pip install ssdgen[bench]`", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    states = by_state([row for row in document["rows"] if "accuracy" in row])
    tasks = sorted({task for cells in states.values() for task in cells}, key=lambda task: (task[1], task[0]))
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for dstate, cells in states.items():
        places = [place for place, task in enumerate(tasks) if task in cells]
        axes.plot(places, [cells[tasks[place]]["accuracy"] for place in places], marker="o", label=f"N = {dstate}")
    axes.set_xticks(range(len(tasks)), [f"{pairs}\n{seqlen}" for seqlen, pairs in tasks])
    axes.set(
        xlabel="pairs, and length of the sequence below",
        ylabel="right answers",
        ylim=(0, 1.03),
        title=f"Associative recall, two layers, d_model {document['d_model']}",
    )
    if states:
        axes.legend()
    # no date and no version of the library: the same figures give the same bytes
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return True
