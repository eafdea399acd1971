"""What the sweeps say: crossovers, ratios, time and memory per token, cliffs; tables.  rows -> growth, growth_plot"""

from __future__ import annotations

import math
from typing import Any

from benchmarks import report
from benchmarks.rivals import CUDNN, OURS

Rows = list[dict[str, Any]]
Points = dict[int, float]

PASSES = ("forward", "both")
# where the ratio to attention is asked for, tokens; and from where on time per token is to be flat
AT, FLAT_FROM = 16384, 16384
# a length within this share of another one is its neighbour
NEAR = 0.05


def points(rows: Rows, candidate: str, passes: str, axis: int = 1, value: str = "gpu_us") -> Points:
    """{size: value} of the cells that were right and were measured.  axis: 1 for the length, 4 for the state size."""
    return {
        row["sizes"][axis]: row[value]
        for row in rows
        if row["candidate"] == candidate and row["passes"] == passes and value in row and row["passed"]
    }


def names(rows: Rows) -> list[str]:
    """Candidates in the order of their first row."""
    return list(dict.fromkeys(row["candidate"] for row in rows))


def best_of(rows: Rows, prefix: str, passes: str, axis: int = 1) -> Points:
    """Of several candidates, such as the chunk sizes of one library, the fastest at each size."""
    made: Points = {}
    for name in names(rows):
        if name.startswith(prefix):
            for size, us in points(rows, name, passes, axis).items():
                made[size] = min(us, made.get(size, math.inf))
    return dict(sorted(made.items()))


def at(series: Points, size: float) -> float | None:
    """A power law between the two sizes around it; None outside of what was measured."""
    if size in series:
        return series[int(size)]
    below, above = [s for s in series if s < size], [s for s in series if s > size]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    slope = math.log(series[high] / series[low]) / math.log(high / low)
    return series[low] * (size / low) ** slope


def crossover(mine: Points, theirs: Points) -> dict[str, Any]:
    """{"length": from where on mine takes less time}, by powers between measured lengths.

    "side": "between" two of them, "below" where mine is never behind, "none" where it is behind at the last one.
    """
    common = sorted(set(mine) & set(theirs))
    if not common:
        return {"side": "unknown"}
    gaps = {length: math.log(theirs[length] / mine[length]) for length in common}
    behind = [length for length in common if gaps[length] < 0]
    if not behind:
        return {"side": "below", "length": common[0]}
    last = behind[-1]
    if last == common[-1]:
        return {"side": "none", "length": last}
    after = common[common.index(last) + 1]
    share = -gaps[last] / (gaps[after] - gaps[last])
    return {"side": "between", "length": round(last * (after / last) ** share)}


def per_token(series: Points) -> Points:
    return {length: value / length for length, value in series.items()}


def spread(series: Points, start: int = FLAT_FROM) -> float | None:
    """How far the largest time per token is above the smallest, from `start` on; 0.1 is ten percent."""
    values = [value for length, value in per_token(series).items() if length >= start]
    return max(values) / min(values) - 1 if len(values) > 1 else None


def cliffs(series: Points, chunk: int = 1024) -> dict[int, float]:
    """{length that is no multiple: its time per token over that of the nearest multiple}, where one is near."""
    whole = [length for length in series if length % chunk == 0]
    made = {}
    for length in sorted(set(series) - set(whole)):
        near = min(whole, key=lambda other: abs(other - length), default=None)
        if near is not None and abs(near - length) <= NEAR * near:
            made[length] = series[length] / length / (series[near] / near)
    return made


def findings(sweep: str, rows: Rows) -> dict[str, Any]:
    """The numbers that a sweep is made for."""
    made: dict[str, Any] = {}
    for passes in PASSES:
        mine = points(rows, OURS, passes)
        if not mine:
            continue
        if sweep == "length":
            attention, peer = points(rows, CUDNN, passes), best_of(rows, "mamba_ssm", passes)
            found: dict[str, Any] = {
                "crossover": crossover(mine, attention),
                "peer crossover": crossover(peer, attention),
            }
            for name, series in (("ratio", mine), ("peer ratio", peer)):
                both = at(attention, AT), at(series, AT)
                found[f"{name} at {AT}"] = both[0] / both[1] if both[0] and both[1] else None
        elif sweep == "state":
            found = {"slowdown": growth_over_states(points(rows, OURS, passes, axis=4))}
        else:
            whole = {length: us for length, us in mine.items() if length % 1024 == 0}
            found = {
                "us per 1000 tokens": {length: 1e3 * us for length, us in per_token(whole).items()},
                "spread": spread(whole),
                "cliffs": cliffs(mine),
                "bytes per token": {
                    length: 1e6 * mb for length, mb in per_token(points(rows, OURS, passes, value="extra_mb")).items()
                },
            }
        made[passes] = found
    return made


def growth_over_states(series: Points) -> Points:
    """{N: time over that of the smallest N}."""
    first = series[min(series)] if series else 1.0
    return {size: us / first for size, us in series.items()}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "gpu_us" in row:
        return f"{row['gpu_us']:.0f}"
    if row.get("passed") is False:
        return "WRONG"
    reason = row.get("failed") or row.get("skipped", "")
    return {"out of memory": "no memory", "the time budget was spent": "-"}.get(
        reason, "left out" if "skipped" in row else "failed"
    )


def table(sweep: str, part: dict[str, Any]) -> str:
    """Sizes downwards, candidates across, microseconds; a block for each of the passes."""
    rows, axis = part["rows"], 4 if sweep == "state" else 1
    text = [f"{sweep}: {part['gpu']}, {'N' if axis == 4 else 'L'} downwards, GPU times in us"]
    heads = names(rows)
    for passes in PASSES:
        found = {(row["candidate"], _size(row, sweep)): row for row in rows if row["passes"] == passes}
        sizes = sorted({size for _, size in found})
        if sizes:
            lines = [(passes, *heads)]
            lines += [(str(size), *(_cell(found.get((name, size))) for name in heads)) for size in sizes]
            text += ["", *report.aligned(lines)]
    reasons = {f"  {row['candidate']}: {row['failed']}" for row in rows if "failed" in row}
    absent = [f"  {name}: {said}" for name, said in part["peers"].items() if "not here" in said or "cannot" in said]
    return "\n".join([*text, *sorted(reasons), *absent])


def _size(row: dict[str, Any], sweep: str) -> int:
    return row["sizes"][4 if sweep == "state" else 1]


def _said(found: dict[str, Any], passes: str) -> list[str]:
    lines = []
    for name in ("crossover", "peer crossover"):
        if name in found:
            side, length = found[name]["side"], found[name].get("length")
            words = {
                "between": f"from L = {length} on",
                "below": f"at every measured length, from {length} on",
                "none": f"not yet at {length}",
                "unknown": "unknown",
            }
            who = "mamba_ssm" if name.startswith("peer") else OURS
            lines.append(f"{passes}: {who} is faster than cuDNN attention {words[side]}")
    for name, value in found.items():
        if "ratio" in name and value is not None:
            who = "mamba_ssm" if name.startswith("peer") else OURS
            lines.append(f"{passes}: at {AT} tokens {who} is {value:.1f} times as fast as cuDNN attention")
    if found.get("spread") is not None:
        lines.append(f"{passes}: time per token from {FLAT_FROM} on spreads by {found['spread']:.1%}")
    if found.get("cliffs"):
        worst = max(found["cliffs"], key=found["cliffs"].get)
        lines.append(
            f"{passes}: the worst odd length, {worst}, takes {found['cliffs'][worst]:.2f} of its neighbour's time"
        )
    if found.get("bytes per token"):
        values = found["bytes per token"].values()
        lines.append(f"{passes}: {min(values):.0f} to {max(values):.0f} bytes per token beside the operands")
    return lines


def tables(sweeps: dict[str, Any], wanted: list[str]) -> str:
    text = []
    for sweep in wanted:
        part = sweeps[sweep]
        text.append(table(sweep, part))
        text += [line for passes, found in part["findings"].items() for line in _said(found, passes)]
        text.append("")
    return "\n".join(text).rstrip()
