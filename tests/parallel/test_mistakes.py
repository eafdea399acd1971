"""Mistakes are errors on every rank, and a rank that dies or stays away is no hang."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch.distributed as dist

from tests.parallel import mistakes, processes
from tests.parallel.processes import Raised


def check(outcome: Any, name: str, text: str) -> None:
    assert isinstance(outcome, Raised), outcome
    assert (outcome.name, text in outcome.text) == (name, True), outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", mistakes.DIFFERENT)
def test_ranks_that_disagree(found: dict[str, list[Any]], name: str) -> None:
    _, error, text = mistakes.DIFFERENT[name]
    for outcome in found[f"different {name}"]:
        check(outcome, error, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", mistakes.ALONE)
def test_a_mistake_on_one_rank(found: dict[str, list[Any]], name: str) -> None:
    _, error, text = mistakes.ALONE[name]
    for rank, outcome in enumerate(found[f"alone {name}"]):
        if rank == 1:
            check(outcome, error, text)
        else:
            check(outcome, "RankMismatchError", "rank 1 raised an error of its own")


@pytest.mark.slow
@pytest.mark.parametrize("name", mistakes.EVERYWHERE)
def test_a_mistake_on_all_ranks(found: dict[str, list[Any]], name: str) -> None:
    _, error, text = mistakes.EVERYWHERE[name]
    for outcome in found[f"everywhere {name}"]:
        check(outcome, error, text)


@pytest.mark.slow
def test_ranks_go_on_after_an_error(found: dict[str, list[Any]]) -> None:
    assert all(isinstance(outcome, float) for outcome in found["twice"]), found["twice"]


@pytest.mark.slow
def test_groups_that_cannot_be_used(found: dict[str, list[Any]]) -> None:
    for rank, outcome in enumerate(found["not a member"]):
        if rank < 2:
            assert not isinstance(outcome, Raised), outcome
        else:
            check(outcome, "GroupError", f"rank {rank} is not in the process group")
    for outcome in found["two dimensions"]:
        check(outcome, "GroupError", "the mesh has 2 dimensions, ('data', 'sequence')")


@pytest.mark.slow
def test_a_rank_that_stays_away(found: dict[str, list[Any]]) -> None:
    check(found["silent"][0], "CommunicationError", "rank 0 of 2 could not exchange sizes")


def _dies(group: dist.ProcessGroup) -> Any:
    """Rank 2 dies between the passes, after it has taken part in the first."""
    given = mistakes.operands()
    given["x"].requires_grad_()
    y = mistakes.mamba_chunk_scan_combined(**given, process_group=group)
    if dist.get_rank(group) == 2:
        os._exit(1)
    y.sum().backward()


@pytest.mark.slow
def test_a_rank_that_dies() -> None:
    start = time.monotonic()
    outcomes = processes.start(3, {"dies": (3, _dies)}, patience=8.0)["dies"]
    for outcome in outcomes[:2]:
        check(outcome, "CommunicationError", "another rank has died")
    assert outcomes[2] is None
    assert time.monotonic() - start < 60
