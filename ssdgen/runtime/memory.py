"""What is kept for a backward pass, and how much memory it may take itself.  -> autograd; launchers, which cut slices

    SSDGEN_KEEP_STATES=1        a forward pass with gradients keeps the states that enter its chunks
    SSDGEN_MEMORY_LIMIT=512M    bytes for what a backward pass keeps, with K, M, G or T (powers of 1024)

States that the forward pass keeps need not be made again, which is 2 to 5% of a training step on an H200.  They take
batch * seqlen / 64 * nheads * headdim * dstate numbers of each layer until its backward pass: 320 MiB in bf16 of 16384
tokens with 80 heads of 64 and a dstate of 128.  With activation checkpointing that is of one block at a time.

What is kept are the states that enter the chunks and the adjoints of those that leave them, and parts of d_B and d_C
where programs share out the heads of a group.  Less is kept at a time in slices (slices.py), and launches are more.
"""

from __future__ import annotations

import os
import re
import warnings
from functools import cache

import torch

from .errors import SettingError, SsdWarning

_NAME, _KEEP = "SSDGEN_MEMORY_LIMIT", "SSDGEN_KEEP_STATES"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def keeps_states() -> bool:
    """Whether a forward pass keeps the states of its chunks for the backward pass.  Errors: SettingError."""
    text = os.environ.get(_KEEP, "0")
    if text not in ("0", "1"):
        raise SettingError(
            f"{_KEEP} is {text!r}; give 1 to keep the states of chunks, 0 to make them again, or unset it"
        )
    return text == "1"


def is_checkpointed() -> bool:
    """Whether what a backward pass keeps is dropped and made again for it: inside torch.utils.checkpoint."""
    # torch has no public way to ask; without this one nothing is wrong, only computed once more
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    found = hooks(False) if hooks else None
    return found is not None and found[0].__module__ == "torch.utils.checkpoint"


def limit() -> int:
    """Bytes; 0 without a limit.  Errors: SettingError for a limit that is no size."""
    text = os.environ.get(_NAME)
    return _bytes(text) if text else 0


@cache
def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if not found or not (limit := int(float(found[1]) * _UNITS[found[2]])):
        raise SettingError(f"{_NAME} is {text!r}; give bytes above 0, as in 512M or 2G, or unset it")
    return limit


@cache
def warn(limit: int, least: int) -> None:
    """Say once that even the smallest slices keep more."""
    warnings.warn(
        f"{_NAME} allows {limit / (1 << 20):.3g} MiB, and the smallest slices of this backward pass keep "
        f"{least / (1 << 20):.3g}: it goes in those",
        SsdWarning,
        stacklevel=6,
    )
