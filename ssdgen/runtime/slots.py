"""The contents of slot indices: read on the host at most once per tensor, then remembered.  checks -> slots"""

from __future__ import annotations

import os
import weakref

import torch
from torch import Tensor

from .errors import SlotError

PADDING = -1  # a row of the batch that has no slot: its result is zero, and nothing is written for it

# id of a tensor -> (the tensor, its version, the number of slots that it was found right for)
_seen: dict[int, tuple[weakref.ref, int, int]] = {}


def check_slots(indices: Tensor, slots: int, name: str, of: str) -> None:
    """Check that every index is a slot, 0 to slots - 1, or PADDING, and that no slot comes twice.

    indices: [batch], int32 or int64.  name, of: what it and the tensor of slots are called in the message.
    Errors: SlotError, naming the entry.

    The contents are read once per tensor object and in-place version, which on a GPU waits for the device.  Nothing is
    read while a CUDA graph is captured, for a tensor without contents, or with SSDGEN_ASSUME_VALID=1: an index that is
    no slot is then taken for padding, and rows that share a slot leave one of their states there.
    """
    if type(indices) not in (Tensor, torch.nn.Parameter) or indices.is_meta:
        return
    version = -1 if indices.is_inference() else indices._version
    entry = _seen.get(id(indices))
    if entry is not None and entry[0]() is indices and entry[1:] == (version, slots):
        return
    if os.environ.get("SSDGEN_ASSUME_VALID") == "1":
        return
    if indices.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    _check_values(indices.tolist(), slots, name, of)
    key = id(indices)

    def forget(dead: weakref.ref) -> None:
        # another tensor may have the id by now
        if (entry := _seen.get(key)) is not None and entry[0] is dead:
            del _seen[key]

    _seen[key] = (weakref.ref(indices, forget), version, slots)


def _check_values(values: list[int], slots: int, name: str, of: str) -> None:
    first: dict[int, int] = {}
    for row, slot in enumerate(values):
        if slot == PADDING:
            continue
        if not 0 <= slot < slots:
            raise SlotError(f"{name}[{row}] is {slot}; {of} has slots 0 to {slots - 1}, and {PADDING} marks padding")
        if slot in first:
            raise SlotError(
                f"{name}[{row}] is {slot}, as {name}[{first[slot]}] is; rows of one call need slots of their own"
            )
        first[slot] = row
