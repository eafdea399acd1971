"""The kernel that adds up parts: columns of a weight, the bias after them, whatever the sizes of its blocks."""

from __future__ import annotations

import numpy as np
import pytest

from ssdgen.plan.interpret import run
from ssdgen.plan.schedules.sum_parts import kernel

DIM, SUMS = 5, 5


@pytest.mark.parametrize(("nparts", "width"), [(1, 4), (7, 4), (8, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_it_is_the_sum(nparts: int, width: int, bias: bool, early: bool, seed: int) -> None:
    parts = np.random.default_rng(seed).standard_normal((nparts, SUMS, DIM))
    # rows that nobody asked for are never read
    parts[:, width + bias :] = np.nan
    made = {"d_weight": np.full((DIM, width), np.nan), "d_bias": np.full(DIM, np.nan) if bias else None}
    sizes = {"nparts": nparts, "sums": SUMS, "dim": DIM, "width": width, "columns": width + bias}
    run(kernel(early), {"parts": parts, **made}, sizes, {"BLOCK_T": 4, "BLOCK_D": 2}, {"HAS_BIAS": bias}, {})
    np.testing.assert_allclose(made["d_weight"], parts.sum(0)[:width].T, rtol=1e-12)
    if bias:
        np.testing.assert_allclose(made["d_bias"], parts.sum(0)[width], rtol=1e-12)
