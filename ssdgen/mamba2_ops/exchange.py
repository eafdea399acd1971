"""What a rank needs of all ranks before it: the state that enters its shard.  context_parallel -> exchange -> torch

Every rank has the pair (total, state) of its shard (docs/maths.md, *Two levels*).  Pairs join by `settings.combine`,
which is associative, so those of all earlier ranks can be joined in any bracketing:

  few ranks    every rank gets every pair, and joins those before it: one collective
  many ranks   in round k a rank sends what it has joined to the rank 2^k after it: log2(size) rounds of one pair

The adjoint of the state passes from the last rank to the first by the same pairs and the same rule, with the adjoint of
the state that enters a shard in place of the state that leaves it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .ranks import Ranks, talking
from .settings import combine

# up to so many ranks get every pair; among more, rounds take less time (docs/scaling.md)
GATHER_UP_TO = 4

Pair = tuple[Tensor, Tensor]


def start(ranks: Ranks, total: Tensor, state: Tensor, *, reverse: bool = False) -> Gather | Scan:
    """Begin to exchange pairs; `finish` of what is returned waits.  All ranks call it in the same order.

    total: [batch, nheads], log2 of the decay over the shard; state: [batch, nheads, headdim, dstate], same dtype.
    reverse: from the last rank to the first.
    """
    return (Gather if ranks.size <= GATHER_UP_TO else Scan)(ranks, total, state, reverse)


def _packed(total: Tensor, state: Tensor) -> Tensor:
    """A pair as one message, [batch, nheads, 1 + headdim * dstate]."""
    return torch.cat((total.unsqueeze(-1), state.flatten(2)), dim=-1)


def _unpacked(message: Tensor, shape: torch.Size) -> Pair:
    return message[..., 0], message[..., 1:].unflatten(-1, shape[2:])


class Gather:
    """Every rank gets every pair."""

    def __init__(self, ranks: Ranks, total: Tensor, state: Tensor, reverse: bool) -> None:
        self._ranks, self._shape, self._reverse = ranks, state.shape, reverse
        message = _packed(total, state)
        self._pairs = message.new_empty(ranks.size, *message.shape)
        with talking(ranks, "states"):
            self._work = dist.all_gather(list(self._pairs.unbind(0)), message, group=ranks.group, async_op=True)

    def finish(self) -> Tensor | None:
        """The state that enters this rank's shard, [batch, nheads, headdim, dstate]; None on the first rank."""
        with talking(self._ranks, "states"):
            self._work.wait()
        rank, last = self._ranks.rank, self._ranks.size - 1
        before = None
        for earlier in range(last, rank, -1) if self._reverse else range(rank):
            pair = _unpacked(self._pairs[earlier], self._shape)
            before = pair if before is None else combine(*before, *pair)
        return None if before is None else before[1]


class Scan:
    """Rounds between ranks at distances 1, 2, 4, ...: afterwards every rank has joined the pairs of all before it."""

    def __init__(self, ranks: Ranks, total: Tensor, state: Tensor, reverse: bool) -> None:
        self._ranks, self._own, self._reverse = ranks, (total, state), reverse
        # place in the order that is walked
        self._at = ranks.size - 1 - ranks.rank if reverse else ranks.rank
        self._before: Pair | None = None
        self._distance = 1
        self._begin()

    def _peer(self, at: int) -> int:
        return self._ranks.place(self._ranks.size - 1 - at if self._reverse else at)

    def _begin(self) -> None:
        """Send what is joined up to this rank, with its own pair, and receive the same of an earlier rank."""
        group, joined = self._ranks.group, self._own
        self._received, operations = None, []
        # held until the round is over
        self._message = _packed(*(joined if self._before is None else combine(*self._before, *joined)))
        if self._at + self._distance < self._ranks.size:
            operations.append(dist.P2POp(dist.isend, self._message, self._peer(self._at + self._distance), group))
        if self._at >= self._distance:
            self._received = torch.empty_like(self._message)
            operations.append(dist.P2POp(dist.irecv, self._received, self._peer(self._at - self._distance), group))
        with talking(self._ranks, "states"):
            self._works = dist.batch_isend_irecv(operations) if operations else []

    def finish(self) -> Tensor | None:
        """As `Gather.finish`."""
        while True:
            with talking(self._ranks, "states"):
                for work in self._works:
                    work.wait()
            if self._received is not None:
                pair = _unpacked(self._received, self._own[1].shape)
                self._before = pair if self._before is None else combine(*pair, *self._before)
            self._distance *= 2
            if self._distance >= self._ranks.size:
                return None if self._before is None else self._before[1]
            self._begin()
