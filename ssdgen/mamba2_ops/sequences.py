"""The contents of cu_seqlens: read on the host at most once per tensor, then remembered.  checks -> sequences

And the same cuts as seq_idx, made on the device.
"""

from __future__ import annotations

import os
import weakref

import torch

from .errors import SequenceError

# a subclass is a tracer's, or a wrapper around tensors that lie elsewhere
_WITH_CONTENTS = (torch.Tensor, torch.nn.Parameter)

# id of a tensor -> (the tensor, its version, the seqlen it was found right for)
_seen: dict[int, tuple[weakref.ref, int, int]] = {}


def check_sequences(cu_seqlens: torch.Tensor, seqlen: int) -> None:
    """Check that cu_seqlens starts at 0, increases strictly and ends at seqlen.

    cu_seqlens: [number of sequences + 1], int32 or int64; sequence s is positions cu_seqlens[s] to cu_seqlens[s + 1].
    Errors: SequenceError, naming the entry.

    The contents are read once per tensor object and in-place version: on a GPU that is one wait for the device, and
    the layers of a model that share the tensor share it.  Tensors made in inference mode carry no version: those are
    read once per object.  Nothing is read while a CUDA graph is captured, for a tensor without contents (meta, or one
    of a tracer's), or with SSDGEN_ASSUME_VALID=1; wrong contents then give wrong numbers.
    """
    if type(cu_seqlens) not in _WITH_CONTENTS:
        return
    version = -1 if cu_seqlens.is_inference() else cu_seqlens._version
    entry = _seen.get(id(cu_seqlens))
    if entry is not None and entry[0]() is cu_seqlens and entry[1] == version and entry[2] == seqlen:
        return
    if os.environ.get("SSDGEN_ASSUME_VALID") == "1" or cu_seqlens.is_meta:
        return
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    _check_values(cu_seqlens.tolist(), seqlen)
    _remember(cu_seqlens, version, seqlen)


def trust(cu_seqlens: torch.Tensor, seqlen: int) -> None:
    """Take the contents as right without reading them: whoever made them answers for it.  As `check_sequences`."""
    if type(cu_seqlens) in _WITH_CONTENTS:
        _remember(cu_seqlens, -1 if cu_seqlens.is_inference() else cu_seqlens._version, seqlen)


def _check_values(values: list[int], seqlen: int) -> None:
    if values[0] != 0:
        raise SequenceError(f"cu_seqlens starts at {values[0]}; it must start at 0")
    for index in range(1, len(values)):
        if values[index] <= values[index - 1]:
            raise SequenceError(
                f"cu_seqlens is not increasing: entry {index} is {values[index]}, the one before {values[index - 1]}; "
                "leave out sequences without tokens"
            )
    if values[-1] != seqlen:
        raise SequenceError(
            f"cu_seqlens ends at {values[-1]}, x has seqlen {seqlen}; it must end there: cut the padding off, "
            "or give it a sequence of its own"
        )


def _remember(tensor: torch.Tensor, version: int, seqlen: int) -> None:
    key = id(tensor)

    def forget(dead: weakref.ref) -> None:
        # another tensor may have the id by now
        if (entry := _seen.get(key)) is not None and entry[0] is dead:
            del _seen[key]

    _seen[key] = (weakref.ref(tensor, forget), version, seqlen)


def seq_idx_of(cu_seqlens: torch.Tensor, seqlen: int) -> torch.Tensor:
    """The sequence that each position belongs to, [1, seqlen], int32.  Waits for nothing.

    cu_seqlens: [number of sequences + 1], int32 or int64, checked before.
    """
    positions = torch.arange(seqlen, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    ends = cu_seqlens[1:].contiguous()
    return torch.searchsorted(ends, positions, right=True, out_int32=True).unsqueeze(0)
