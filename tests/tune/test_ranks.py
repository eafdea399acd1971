"""What a launcher says of a process, and which GPU it takes for that."""

from __future__ import annotations

import os

import pytest

from ssdgen.tune import ranks
from ssdgen.tune.errors import TuneError
from ssdgen.tune.ranks import Ranks


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_rank_and_every_gpu() -> None:
    assert ranks.here() == Ranks(0, 1, 0)
    ranks.take_own_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("visible", "local", "own"),
    [(None, "2", "2"), ("4,5,6", "1", "5"), ("GPU-a,GPU-b", "1", "GPU-b"), ("7", "1", "7"), ("", "1", "1")],
)
def test_each_rank_takes_the_gpu_of_its_place(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local: str, own: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "16")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    ranks.take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own and ranks.here() == Ranks(9, 16, int(local))


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(TuneError, match="rank 2 of this machine has no GPU: CUDA_VISIBLE_DEVICES names 2"):
        ranks.take_own_gpu()


def test_what_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TuneError, match="must be numbers"):
        ranks.here()
