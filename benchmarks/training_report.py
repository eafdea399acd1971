"""The verdict on a training step, and its tables.  results -> rows -> training"""

from __future__ import annotations

from math import isfinite

from benchmarks import gradient_reference, report
from benchmarks.workload import Shape

OURS = "ssdgen"
CHECKED = ("y", *gradient_reference.OPERANDS)

# bf16: y and the gradients of x, dt, B and C are rounded once (1.7e-3) and are sums of products of rounded operands
LIMITS = {"y": 5e-3, "x": 8e-3, "B": 8e-3, "C": 8e-3, "dt": 2e-2, "A": 2e-2, "D": 5e-3, "dt_bias": 2e-2}
# of the peer's error: its own moves by a few percent between draws of the inputs; y has no such room
SLACK = {**dict.fromkeys(CHECKED, 1.05), "y": 1.0}
# no gradient has to be better than this: rounding an operand to bf16 costs twenty times as much
ENOUGH = 1e-4

COLUMNS = (
    "b,L,H,P,N,G",
    "floor",
    "ssdgen",
    "share",
    "mamba_ssm",
    "GPU x",
    "eager",
    "peer",
    "eager x",
    "launches",
    "extra MB",
    "errors",
)


def compare(shape: Shape, results: dict, ceilings: dict[str, float]) -> dict:
    """One row: what was measured, the floor, the verdict on every error and, where all are good, the speed-ups."""
    mine = results[OURS]
    row: dict = {"shape": shape.name, "sizes": list(shape.sizes), "results": results}
    row["floor_us"] = sum(report.floor(shape, ceilings, backward=backward)["floor_us"] for backward in (False, True))
    if "gpu_us" not in mine:
        return row | {"passed": False, "wrong": [], "error_ratios": {}}
    row["roofline_share"] = row["floor_us"] / mine["gpu_us"]
    rivals = {name: result for name, result in results.items() if name != OURS and "gpu_us" in result}
    best = min(rivals, key=lambda name: rivals[name]["gpu_us"]) if rivals else None
    theirs = {name: rivals[best]["errors"][name]["relative"] for name in CHECKED} if best else {}
    found = {name: mine["errors"][name]["relative"] for name in CHECKED}
    limits = {name: limit(name, theirs.get(name)) for name in CHECKED}
    row["error_limits"] = limits
    row["error_ratios"] = {name: found[name] / theirs[name] for name in theirs if theirs[name]}
    # written so that a NaN is wrong
    row["wrong"] = [name for name in CHECKED if not found[name] <= limits[name]]
    row["passed"] = not row["wrong"]
    if best:
        row["peer"] = best
        if row["passed"]:
            row["gpu_speedup"] = rivals[best]["gpu_us"] / mine["gpu_us"]
            row["eager_speedup"] = min(rival["eager_us"] for rival in rivals.values()) / mine["eager_us"]
    return row


def limit(name: str, theirs: float | None) -> float:
    """The largest error that is allowed of y or of a gradient.  theirs: the peer's, None without one."""
    if theirs is None or not isfinite(theirs):
        return LIMITS[name]
    return max(ENOUGH, min(LIMITS[name], SLACK[name] * theirs))


def _row(row: dict) -> tuple[str, ...]:
    mine, peer = row["results"][OURS], row["results"].get(row.get("peer"), {})
    sizes = ",".join(str(size) for size in row["sizes"])
    if "gpu_us" not in mine:
        return (sizes, f"{row['floor_us']:.0f}", *["-"] * (len(COLUMNS) - 3), f"FAILED {mine.get('failed', '')}"[:60])
    chunk = row.get("peer", "").partition("=")[2]
    eager = [result["eager_us"] for name, result in row["results"].items() if name != OURS and "eager_us" in result]
    return (
        sizes,
        f"{row['floor_us']:.0f}",
        f"{mine['gpu_us']:.0f}",
        f"{row['roofline_share']:.0%}",
        f"{peer['gpu_us']:.0f} (Q={chunk})" if peer else "-",
        f"{row['gpu_speedup']:.2f}" if "gpu_speedup" in row else "-",
        f"{mine['eager_us']:.0f}",
        f"{min(eager):.0f}" if eager else "-",
        f"{row['eager_speedup']:.2f}" if "eager_speedup" in row else "-",
        f"{mine['launches']}" + (f" / {peer['launches']}" if peer else ""),
        f"{mine['extra_mb']:.0f}" + (f" / {peer['extra_mb']:.0f}" if peer else ""),
        "within" if row["passed"] else "WRONG " + " ".join(row["wrong"]),
    )


def _errors(row: dict) -> tuple[str, ...]:
    mine, peer = row["results"][OURS], row["results"].get(row.get("peer"), {})
    cells = []
    for name in CHECKED:
        text = f"{mine['errors'][name]['relative']:.1e}" if "errors" in mine else "-"
        if peer:
            text += f" / {peer['errors'][name]['relative']:.1e}"
        cells.append(text)
    return (",".join(str(size) for size in row["sizes"]), *cells)


def table(rows: list[dict]) -> str:
    """Times, and errors of y and of every gradient; ours / the peer's."""
    times = report.aligned([COLUMNS, *(_row(row) for row in rows)])
    names = (COLUMNS[0], "y", *(f"d_{name}" for name in CHECKED[1:]))
    errors = report.aligned([names, *(_errors(row) for row in rows)])
    notes = (
        "one forward and one backward pass; times in us, GPU times with a cold L2; eager, peer: wall time per step; "
        "launches, extra MB: ssdgen / mamba_ssm"
    )
    return "\n".join([*times, notes, "", *errors, "relative errors against float64, ssdgen / mamba_ssm"])
