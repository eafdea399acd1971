"""The ranks of one launch: which GPU each takes, and a word from the first to all.  environment -> session"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import TuneError

# tuning takes minutes, in which the other ranks have nothing to say
PATIENCE = timedelta(hours=12)


class OtherRankError(TuneError):
    """The first rank could not tune; the message is its own."""


@dataclass(frozen=True)
class Ranks:
    """rank of this process, of count; local: its place among those of this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


def here() -> Ranks:
    """What a launcher such as torchrun says in the environment; one rank where there is none.  Errors: TuneError."""
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))]
        return Ranks(*numbers, int(os.environ.get("LOCAL_RANK", 0)))
    except ValueError as error:
        raise TuneError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}); unset them, or use torchrun"
        ) from None


def take_own_gpu() -> None:
    """Leave this rank the GPU of its place and no other.  Before torch looks for GPUs.  Errors: TuneError."""
    if "LOCAL_RANK" not in os.environ:
        return
    local, visible = here().local, os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
        return
    names = visible.split(",")
    # a launcher may have given each rank one already
    if len(names) == 1:
        return
    if local >= len(names):
        raise TuneError(
            f"rank {local} of this machine has no GPU: CUDA_VISIBLE_DEVICES names {len(names)}; start fewer ranks"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = names[local]


def group() -> dist.ProcessGroup:
    """All ranks, speaking over the network and not from GPU to GPU.  Called by every rank.

    The job's own group may be one of GPUs, with a time limit for a training step.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def share(make: Callable[[], str], ranks: dist.ProcessGroup) -> str:
    """What `make` returns in the first rank, in every rank.  ranks: of `group`.

    Errors: what `make` raises, in the first rank; OtherRankError with the same words in the others.
    """
    told: dict[str, str] = {}
    failed: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told = {"text": make()}
        # whatever it is: the others wait for a word
        except Exception as error:
            told, failed = {"error": str(error) or type(error).__name__}, error
    told = json.loads(_broadcast(json.dumps(told), ranks))
    if failed is not None:
        raise failed
    if "error" in told:
        raise OtherRankError(f"rank 0: {told['error']}")
    return told["text"]


def _broadcast(text: str, ranks: dist.ProcessGroup) -> str:
    """The first rank's text in all ranks: its length, then its bytes."""
    own = text.encode()
    size = torch.tensor([len(own)])
    dist.broadcast(size, src=0, group=ranks)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if dist.get_rank() == 0:
        data = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    dist.broadcast(data, src=0, group=ranks)
    return bytes(data.tolist()).decode()
