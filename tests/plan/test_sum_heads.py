"""The kernel that adds up what chunks have left for a head, whatever is asked for and the sizes of its blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssdgen.plan.interpret import run
from ssdgen.plan.schedules.sum_heads import kernel

HEADS, HEADDIM = 3, 5
FLAGS = ("NEEDS_A", "NEEDS_DT_BIAS", "D_BY_HEAD", "D_BY_CHANNEL")


@pytest.mark.parametrize(("nparts", "nrows"), [(1, 1), (7, 2), (8, 9)])
@pytest.mark.parametrize("wanted", [*((flag,) for flag in FLAGS), FLAGS[:3], ("NEEDS_A", "D_BY_CHANNEL")])
def test_it_is_the_sum(nparts: int, nrows: int, wanted: tuple[str, ...], seed: int) -> None:
    flags = {flag: flag in wanted for flag in FLAGS}
    flags["NEEDS_D"] = flags["D_BY_HEAD"] or flags["D_BY_CHANNEL"]
    draw = np.random.default_rng(seed).standard_normal
    given = {"d_A": draw((nparts, HEADS)), "d_dt_bias": draw((nparts, HEADS)), "d_D": draw((nrows, HEADS, HEADDIM))}
    expected: dict[str, Any] = {
        "d_A_sum": given["d_A"].sum(0) if flags["NEEDS_A"] else None,
        "d_dt_bias_sum": given["d_dt_bias"].sum(0) if flags["NEEDS_DT_BIAS"] else None,
        "d_D_sum": given["d_D"].sum((0, 2)) if flags["D_BY_HEAD"] else None,
        "d_D_rows": given["d_D"].sum(0) if flags["D_BY_CHANNEL"] else None,
    }
    made = {name: None if value is None else np.full_like(value, np.nan) for name, value in expected.items()}
    sizes = {"nheads": HEADS, "nparts": nparts, "nrows": nrows}
    constants = {"HEADDIM": HEADDIM, "BLOCK_T": 4, "BLOCK_R": 2, "BLOCK_P": 8}
    run(kernel(), {**given, **made}, sizes, constants, flags, {})
    for name, value in expected.items():
        if value is not None:
            np.testing.assert_allclose(made[name], value, rtol=1e-12)
