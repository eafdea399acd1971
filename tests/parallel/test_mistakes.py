"""Mistakes are errors on every rank, and a rank that dies or stays away is no hang."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ssdgen.mamba2_ops import Mamba2, errors, parallel, tensor_parallel
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


# of two ranks: rank 1 does something else, and says so itself where it can know
OF_TWO = {
    **{f"halo that differs, {name}": case[-2:] for name, case in mistakes.HALO.items()},
    **{f"layer, {name}": case[-2:] for name, case in mistakes.LAYER.items()},
    **{f"split, {name}": case[-2:] for name, case in mistakes.SPLIT.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TWO)
def test_parts_and_layers_that_disagree(found: dict[str, list[Any]], name: str) -> None:
    error, text = OF_TWO[name]
    first, second = found[name]
    check(second, error, text)
    check(first, "RankMismatchError", text if error == "RankMismatchError" else "rank 1 raised an error of its own")


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


# ---- without any rank


def _summary(**change: Any) -> parallel.Summary:
    sizes = {"size": (1, 2, 4, 3), "dtype": torch.float32, "device": "cpu", **change}
    state = torch.zeros(sizes["size"], dtype=sizes["dtype"], device=sizes["device"])
    return parallel.Summary(state[..., 0, 0], state)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"size": (1, 2, 4, 5)}, errors.ShapeError, "summaries are [1, 2, 4, 3] and [1, 2, 4, 5]"),
        ({"dtype": torch.float64}, errors.DtypeError, "summaries are torch.float32 and torch.float64"),
        ({"device": "meta"}, errors.DeviceError, "summaries are on cpu and meta"),
    ],
)
def test_summaries_that_do_not_join(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        _summary().joined(_summary(**change))
    assert text in str(raised.value)


@pytest.mark.parametrize("before", [torch.zeros(2, 5), torch.zeros(3), 0])
def test_sequences_before_a_shard_that_are_not_one_a_row(before: Any) -> None:
    given = mistakes.operands(batch=2)
    ids = torch.zeros(2, 5, dtype=torch.int32)
    halves = [given[name] for name in ("x", "dt", "A", "B")]
    with pytest.raises(errors.ShapeError, match=r"it must be a tensor \[batch\] = \[2\], as seq_idx"):
        parallel.summary(*halves, seq_idx=ids, seq_before=before)
    with pytest.raises(errors.ShapeError, match=r"it must be a tensor \[batch\] = \[2\], as seq_idx"):
        parallel.apply(*halves, given["C"], 16, entering=None, seq_idx=ids, seq_before=before)


def test_a_layer_that_is_not_split_has_no_whole_state() -> None:
    layer = Mamba2(16, d_state=6, headdim=4)
    for call in (tensor_parallel.whole_state, lambda layer: tensor_parallel.load_whole_state(layer, {})):
        with pytest.raises(errors.OptionError, match="this Mamba2 is not split"):
            call(layer)


def test_a_group_before_there_are_any() -> None:
    assert not dist.is_initialized()
    with pytest.raises(errors.GroupError, match="before torch.distributed.init_process_group was called"):
        mistakes.mamba_chunk_scan_combined(**mistakes.operands(), process_group=object())
