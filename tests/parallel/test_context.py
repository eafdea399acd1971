"""A sequence cut over 2, 3 and 4 real processes equals one process: outputs, states and every gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.parallel import processes, shards
from tests.parallel.shards import UNEVEN, Problem

PROBLEMS = {
    "plain": Problem(full=False),
    "full": Problem(),
    "uneven": Problem(lengths=UNEVEN),
    "scan": Problem(lengths=UNEVEN, gather_up_to=1),
    "seq_idx": Problem(sequences="seq_idx"),
    "seq_idx_scan": Problem(lengths=UNEVEN, sequences="seq_idx", gather_up_to=1, full=False),
    "cu_seqlens": Problem(lengths=UNEVEN, sequences="cu_seqlens", batch=1),
    "one_group": Problem(nheads=3, ngroups=1, wide_skip=True),
    "one_head": Problem(nheads=1, ngroups=1),
    "three_groups": Problem(nheads=6, ngroups=3, full=False),
    "frozen": Problem(frozen=("A", "B", "dt", "D", "dt_bias", "initial_states")),
    "float32": Problem(dtype=torch.float32, lengths=UNEVEN),
    "bfloat16": Problem(dtype=torch.bfloat16),
}
# sums of a hundred terms in another order; 16-bit operands are the same, and results are rounded once
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2}
SIZES = (2, 3, 4)


@pytest.fixture(scope="module")
def found() -> dict[str, list]:
    cases = {f"{name}-{size}": (size, partial(shards.shard, PROBLEMS[name])) for name in PROBLEMS for size in SIZES}
    return processes.start(4, cases)


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_ranks_equal_one_process(found: dict[str, list], name: str, size: int) -> None:
    problem = PROBLEMS[name]
    for rank in found[f"{name}-{size}"]:
        assert isinstance(rank, dict), rank
    joined, exact = shards.together(found[f"{name}-{size}"]), shards.whole(problem, size)
    assert set(joined) == set(exact)
    for key, value in exact.items():
        assert joined[key].dtype == value.dtype, key
        error = (joined[key].double() - value.double()).norm() / value.double().norm()
        assert error < TOLERANCE[problem.dtype], f"{key} is off by {float(error):.1e}"
