"""The verdict on whole models and their tables.  rows -> end_to_end"""

from __future__ import annotations

from typing import Any

from benchmarks import report

OURS, PEER = "ssdgen", "mamba_ssm"
STAGES = ("training", "inference")

# error of logits under bf16 against fp32: at most so much, and at most so much more than the peer's
LOGITS, SLACK = 0.1, 1.25
# of the loss, nats, and of the gradients' norm, relative: two bf16 runs of random weights differ by less
LOSS, GRADIENTS = 5e-3, 0.03
# of logits from bf16 weights, between the sides: each is as far from fp32 as LOGITS allows at most
APART = 0.1


def agree(checks: dict[str, dict[str, float]]) -> bool:
    """Whether our results are right, and the peer's the same."""
    mine = checks[OURS]
    theirs = checks.get(PEER, mine)
    # written so that a NaN is wrong
    return (
        mine["logits"] <= min(LOGITS, SLACK * theirs["logits"])
        and abs(mine["loss"] - theirs["loss"]) <= LOSS
        and abs(mine["gradients"] / theirs["gradients"] - 1) <= GRADIENTS
    )


def compare(row: dict[str, Any]) -> dict[str, Any]:
    """The row with tokens/s of each side and, where the results are right, ratios to the peer."""
    sides = row.get("sides", {})
    for found in sides.values():
        if "step_us" in found:
            tokens = row["batch"] * row["seqlen"]
            for name in ("step", "graph"):
                if f"{name}_us" in found:
                    found[f"{name}_tokens_s"] = 1e6 * tokens / found[f"{name}_us"]
        if "prompt_ms" in found:
            found["prompt_tokens_s"] = 1e3 * row["prompt"] / found["prompt_ms"]
            found["decode_tokens_s"] = 1e6 / found["token_us"]
    if row.get("passed") and PEER in sides:
        mine, theirs = sides[OURS], sides[PEER]
        times = ("step_us", "graph_us", "prompt_ms", "token_us")
        row["ratios"] = {name: theirs[name] / mine[name] for name in times if name in mine and name in theirs}
    return row


def _value(found: dict[str, Any], name: str) -> str:
    return f"{found[name]:.0f}" if name in found else "-"


def _lines(rows: list[dict[str, Any]], columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    """Rows of sizes.  columns: (head, value of a side, ratio)."""
    heads = ["model", "who", *(head for column in columns for head in (column[0], "x")), "results"]
    lines = [tuple(heads)]
    for row in rows:
        for name, found in row.get("sides", {}).items():
            ratios = row.get("ratios", {}) if name == OURS else {}
            cells = [
                cell
                for _, value, ratio in columns
                for cell in (_value(found, value), f"{ratios[ratio]:.2f}" if ratio in ratios else "")
            ]
            lines.append((row["size"], name, *cells, "agree" if row["passed"] else "WRONG"))
        if "sides" not in row:
            said = row.get("failed") or row["skipped"]
            lines.append((row["size"], said, *[""] * (2 * len(columns)), ""))
    return report.aligned(lines)


def _classes(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds and share of a training step by what kernels are for."""
    found = [(row["size"], name, side["classes"]) for row in rows for name, side in row.get("sides", {}).items()]
    if not found:
        return []
    kinds = list(dict.fromkeys(kind for _, _, classes in found for kind in classes))
    lines = [("kernels, ms", *(f"{size} {name}" for size, name, _ in found))]
    for kind in kinds:
        cells = (classes.get(kind) for _, _, classes in found)
        lines.append((kind, *(f"{part['us'] / 1e3:.1f} ({part['share']:.0%})" if part else "" for part in cells)))
    return ["", *report.aligned(lines)]


def table(document: dict[str, Any]) -> str:
    text = [f"{document['gpu']}; peer: {document['peer']}"]
    for stage in STAGES:
        rows = [row for row in document["rows"] if row["stage"] == stage]
        if not rows:
            continue
        if stage == "training":
            columns = (("tokens/s", "step_tokens_s", "step_us"), ("in a graph", "graph_tokens_s", "graph_us"))
            text += ["", "training: forward, backward, AdamW", *_lines(rows, columns), *_classes(rows)]
        else:
            columns = (("prompt tokens/s", "prompt_tokens_s", "prompt_ms"), ("us/token", "token_us", "token_us"))
            text += ["", "inference, batch 1, decoding in a graph", *_lines(rows, columns)]
    return "\n".join(text)
