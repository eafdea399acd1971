"""Configs of the decode step side by side, where it is short of a target.  -> decode --variants

    python benchmarks/decode.py --variants [--budget SECONDS] [--out FILE]

One process, the same timer and the same copy for all; each is checked before it is timed.  A case is a format of the
state, a batch, and whether inputs are replayed; the fastest of its configs counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode, timing
from ssdgen.mamba2_ops import Replay, decode_paths, selective_state_update

Config = dict[str, Any]

# |y with a replay - y without|, over |y|: states are rounded at other steps
REPLAY_LIMITS = {"bfloat16": 1e-2, "int8": 3e-2}


NAMES = ("block_p", "num_warps", "heads", "tiles", "early", "maxnreg")
Numbers = tuple[int, int, int, int, bool, int]


@dataclass(frozen=True)
class Case:
    """numbers: in the order of NAMES, the most promising first."""

    state: str
    batch: int
    replay: bool
    numbers: tuple[Numbers, ...]

    @property
    def name(self) -> str:
        return f"{self.state}{' replay' if self.replay else ''}, batch {self.batch}"


_DEFAULT: Numbers = (64, 4, 1, 0, False, 0)
_LARGE: tuple[Numbers, ...] = (
    (16, 2, 1, 4, False, 0),
    (16, 1, 1, 4, False, 0),
    (8, 1, 1, 4, False, 0),
    (32, 2, 1, 2, False, 0),
    (16, 1, 1, 2, False, 0),
    (16, 2, 1, 2, False, 0),
    (32, 4, 1, 2, False, 0),
    (16, 4, 1, 4, False, 0),
    (16, 2, 1, 4, False, 96),
    (16, 1, 1, 1, False, 0),
    (32, 2, 1, 1, False, 0),
    (64, 4, 1, 1, False, 0),
    # the best of those that have one tile, and of those that go through heads
    (16, 2, 1, 0, False, 0),
    (32, 2, 4, 0, False, 0),
    (64, 4, 4, 0, False, 0),
    _DEFAULT,
)
_SMALL: tuple[Numbers, ...] = (
    (4, 1, 1, 1, False, 0),
    (8, 1, 1, 1, False, 0),
    (8, 2, 1, 1, False, 0),
    (16, 2, 1, 1, False, 0),
    (16, 4, 1, 1, False, 0),
    (2, 1, 1, 1, False, 0),
    (4, 2, 1, 1, False, 0),
    (8, 4, 1, 1, False, 0),
    (4, 1, 1, 2, False, 0),
    (4, 1, 1, 1, True, 0),
    (8, 2, 1, 1, True, 0),
    (8, 1, 1, 0, False, 0),
    (8, 2, 1, 0, False, 0),
    (4, 1, 1, 0, False, 0),
)
_REPLAY: tuple[Numbers, ...] = (
    (16, 2, 1, 4, True, 0),
    (16, 2, 1, 4, False, 0),
    (8, 1, 1, 4, True, 0),
    (8, 1, 1, 4, False, 0),
    (16, 2, 1, 4, True, 128),
    (32, 2, 1, 2, True, 0),
    (16, 4, 1, 4, True, 0),
    (16, 2, 1, 2, True, 0),
    (16, 1, 1, 2, True, 0),
    (32, 4, 1, 2, True, 0),
    (8, 1, 1, 2, True, 0),
    (16, 1, 1, 1, True, 0),
    (16, 1, 1, 4, True, 0),
    (16, 1, 1, 0, False, 0),
    (32, 2, 1, 0, False, 0),
)
CASES = (
    Case("bfloat16", 128, True, _REPLAY),
    Case("int8", 256, False, _LARGE),
    Case("bfloat16", 1, False, _SMALL),
    Case("float32", 1, False, _SMALL),
    Case("bfloat16", 256, False, _LARGE),
    Case("bfloat16", 128, False, _LARGE[-4:] + _LARGE[:6]),
    Case("int8", 1, False, _SMALL),
    Case("float8", 256, False, _LARGE[:6] + _LARGE[-4:]),
    Case("int8", 128, True, _REPLAY[:8]),
)


def run(
    timer: timing.ColdGpuTimer, document: dict[str, Any], out: Path, budget: float, say: Callable[[str], None]
) -> bool:
    """Measure every case until the budget is spent, writing what is there; False if a config is wrong."""
    begin = time.monotonic()
    document["variants"] = []
    with torch.no_grad():
        for case in CASES:
            for numbers in case.numbers:
                if time.monotonic() - begin > budget:
                    say("the time budget was spent: variants are left out")
                    break
                row = {"case": case.name, "numbers": dict(zip(NAMES, numbers, strict=True))}
                try:
                    row |= measure(case, config_of(numbers), timer)
                # a config that needs too much is no reason to lose the others
                except RuntimeError as error:
                    row["failed"] = str(error).splitlines()[0]
                document["variants"].append(row)
                out.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
            torch.cuda.empty_cache()
    return all(row.get("passed", True) for row in document["variants"])


def config_of(numbers: Numbers) -> Config:
    return {"schedule": "step", "kernels": {"state_step": dict(zip(NAMES, numbers, strict=True))}}


def measure(case: Case, config: Config, timer: timing.ColdGpuTimer) -> dict[str, Any]:
    with using(config):
        if case.replay:
            error = replay_error(case, config)
            row: dict[str, Any] = {"y": error, "passed": error <= REPLAY_LIMITS[case.state]}
            return row | (decode.replay_us(case.batch, case.state, timer) if row["passed"] else {})
        args = decode.draw(case.batch, case.state)
        off = decode.errors(selective_state_update, args)
        passed = off["y"] <= decode.Y_LIMIT and off["state"] <= decode.STATE_LIMITS[case.state]
        row = {"y": off["y"], "state_error": off["state"], "passed": passed}
        return row | ({"gpu_us": timer(partial(selective_state_update, **args))} if passed else {})


@contextmanager
def using(config: Config) -> Iterator[None]:
    """Have every step run with this config, whatever is recorded."""
    before = decode_paths.decode_config_for
    decode_paths.decode_config_for = lambda *_: config
    try:
        yield
    finally:
        decode_paths.decode_config_for = before


def replay_error(case: Case, config: Config, batch: int = 4) -> float:
    """|y with a replay - y of the default config without one|, over |y|, of more steps than are kept."""
    args, plain = (decode.draw(batch, case.state, seed=5) for _ in range(2))
    cache = Replay.allocate(args["state"], decode.STEPS, decode.NGROUPS)
    generator = torch.Generator("cuda").manual_seed(13)
    gap = size = 0.0
    for _ in range(decode.STEPS + 2):
        shapes = {name: plain[name].shape for name in ("x", "B", "C")}
        token = {name: torch.randn(s, device="cuda", generator=generator).bfloat16() for name, s in shapes.items()}
        with using(config_of(_DEFAULT)):
            y = selective_state_update(**{**plain, **token}).float()
        ours = selective_state_update(**{**args, **token}, replay=cache).float()
        gap, size = gap + float((ours - y).square().sum()), size + float(y.square().sum())
    return (gap / size) ** 0.5


def table(document: dict[str, Any]) -> str:
    """The fastest configs of each case, and what the targets ask for."""
    lines = [f"{document['gpu']}, {document['copy_tbs']:.2f} TB/s copied"]
    best: dict[str, float] = {}
    for case in CASES:
        rows = [row for row in document["variants"] if row["case"] == case.name]
        done = sorted((row for row in rows if "gpu_us" in row), key=lambda row: row["gpu_us"])
        for row in (*done, *(row for row in rows if row not in done)):
            numbers = " ".join(f"{name}={value}" for name, value in row["numbers"].items())
            end = f"{row['gpu_us']:8.2f} us" if row in done else f"  {row.get('failed', 'WRONG')}"
            parts = f"  between {row['between_us']:.1f}, write {row['write_us']:.1f}" if "between_us" in row else ""
            lines.append(f"{case.name:26} {numbers:58} {end}{parts}")
        if done:
            best[case.name] = done[0]["gpu_us"]
    for slow, quick, wanted in (
        ("bfloat16, batch 256", "int8, batch 256", 1.7),
        ("bfloat16, batch 128", "bfloat16 replay, batch 128", 1.5),
    ):
        if slow in best and quick in best:
            lines.append(f"{quick}: {best[slow] / best[quick]:.2f} times {slow}; wanted {wanted}")
    ones = [f"{case.state} {best[case.name]:.2f} us" for case in CASES if case.batch == 1 and case.name in best]
    if ones:
        lines.append(f"batch 1: {', '.join(ones)}; wanted 3.5")
    return "\n".join(lines)
