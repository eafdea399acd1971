"""The rounding of the forward pass on the CPU: exact where nothing is rounded, and each value adds what it should."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import reference, rounding, workload  # noqa: E402

SHAPE = workload.Shape("", 1, 192, 4, 32, 64, 1)


def test_without_rounding_it_is_the_layer(seed: int) -> None:
    args = workload.inputs(SHAPE, "cpu", seed)
    exact = torch.cat([y for _, y in reference.walk(args)], dim=1)[0]
    for chunk in rounding.CHUNKS:
        torch.testing.assert_close(rounding.layer(args, chunk, rounding.EXACT), exact, rtol=1e-10, atol=1e-10)


def test_the_diagonal_is_most_of_what_scores_add(seed: int) -> None:
    found = rounding.shares(workload.inputs(SHAPE, "cpu", seed), 64)
    # half a unit in the last place of eight bits, spread evenly
    assert found["y alone"] == pytest.approx(2**-9 / 3**0.5 * 1.47, rel=0.05)
    assert found["y alone"] < found["scores in two terms"] < found["diagonal apart"] < found["all"]
    alone = sum(found[f"{name} alone"] ** 2 for name in rounding.EXACT) ** 0.5
    assert alone == pytest.approx(found["all"], rel=0.02)
