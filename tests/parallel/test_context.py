"""A sequence cut over 2, 3 and 4 real processes equals one process: outputs, states and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel import shards
from tests.parallel.shards import PROBLEMS, SIZES

# sums of a hundred terms in another order; 16-bit operands are the same, and results are rounded once
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_ranks_equal_one_process(found: dict[str, list[Any]], name: str, size: int) -> None:
    problem = PROBLEMS[name]
    for rank in found[f"{name}-{size}"]:
        assert isinstance(rank, dict), rank
    joined, exact = shards.together(found[f"{name}-{size}"]), shards.whole(problem, size)
    assert set(joined) == set(exact)
    for key, value in exact.items():
        assert joined[key].dtype == value.dtype, key
        error = (joined[key].double() - value.double()).norm() / value.double().norm()
        assert error < TOLERANCE[problem.dtype], f"{key} is off by {float(error):.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", shards.SPIED)
def test_bytes_sent_do_not_depend_on_seqlen(found: dict[str, list[Any]], name: str) -> None:
    """Forward and backward: a row of integers, and a pair (total, state) each way in as many rounds as there are."""
    short, long = (found[f"bytes-{name}-{seqlen}"] for seqlen in shards.SEQLENS)
    assert short == long
    problem = shards.SPIED[name]
    pair = 8 * problem.batch * problem.nheads * (1 + 6 * 5)
    gathers = problem.gather_up_to >= 4
    for rank, (sent, received) in enumerate(short):
        # what a rank gives to a gather goes to three others
        rounds = {True: [3, 3, 3, 3], False: [2 + 0, 2 + 1, 1 + 2, 0 + 2]}[gathers][rank]
        both = 2 * 3 if gathers else rounds
        assert sent == 3 * 8 * 20 + both * pair, rank
        assert received == sent or not gathers


@pytest.mark.slow
def test_halves_with_a_communication_of_ones_own(found: dict[str, list[Any]]) -> None:
    """summary, joined and apply, with another collective, differentiated by torch alone."""
    joined = shards.together(found["halves"])
    exact = shards.whole(shards.HALVES, 4)
    for key, value in exact.items():
        torch.testing.assert_close(joined[key], value, rtol=1e-9, atol=1e-10, msg=key)
