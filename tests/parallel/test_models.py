"""Models on ranks equal one process: FSDP2 with the sequence cut, heads split, both at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel import models
from tests.parallel.processes import Raised

# decays are exponentials in float32 in a layer of float64 too
TOLERANCE = 2e-6


def compare(name: str, found: torch.Tensor, exact: torch.Tensor) -> None:
    error = (found.double() - exact.double()).norm() / exact.double().norm()
    assert found.shape == exact.shape and error < TOLERANCE, f"{name} is off by {float(error):.1e}"


def ranks_of(found: dict[str, list[Any]], case: str) -> list[dict[str, torch.Tensor]]:
    for rank in found[case]:
        assert isinstance(rank, dict), rank
    return found[case]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mixer", "boundaries"), [("fsdp", "one group", False), ("fsdp boundaries", "groups", True)]
)
def test_fsdp_and_the_sequence_on_one_mesh(
    found: dict[str, list[Any]], case: str, mixer: str, boundaries: bool
) -> None:
    ranks, exact = ranks_of(found, case), models.whole(mixer, layers=2, boundaries=boundaries)
    for name, value in exact.items():
        if name in ("output", "input"):
            compare(name, torch.cat([rank[name] for rank in ranks], dim=1), value)
        else:
            for rank in ranks:
                compare(name, rank[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", models.MIXERS)
def test_heads_over_ranks(found: dict[str, list[Any]], mixer: str) -> None:
    """Output, a step of decoding and gradients; two all-reduces are counted on the ranks."""
    exact = models.whole(mixer)
    one = models.model(mixer)[0]
    with torch.no_grad():
        exact["step"] = one.step(models.tokens()[0][:, :1], *one.allocate_inference_cache(2, 40))[0]
    for rank in ranks_of(found, f"split {mixer}"):
        assert set(rank) == set(exact)
        for name, value in exact.items():
            compare(name, rank[name], value)


@pytest.mark.slow
def test_heads_and_the_sequence(found: dict[str, list[Any]]) -> None:
    ranks, exact = ranks_of(found, "both"), models.whole("groups")
    for name, value in exact.items():
        if name in ("output", "input"):
            # ranks 0 and 1 have the first half
            compare(name, torch.cat([ranks[0][name], ranks[2][name]], dim=1), value)
            compare(name, torch.cat([ranks[1][name], ranks[3][name]], dim=1), value)
        else:
            for rank in ranks:
                compare(name, rank[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.REFUSED)
def test_sizes_that_ranks_cannot_share(found: dict[str, list[Any]], name: str) -> None:
    for outcome in found[f"refused {name}"]:
        assert isinstance(outcome, Raised), outcome
        assert outcome.name == "ShapeError" and models.REFUSED[name][1] in outcome.text, outcome
