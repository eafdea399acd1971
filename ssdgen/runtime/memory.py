"""How much memory a backward pass may take for what it keeps.  -> launchers, which cut it into slices

    SSDGEN_MEMORY_LIMIT=512M    bytes for what a backward pass keeps, with K, M, G or T (powers of 1024)

What is kept are the states that enter the chunks and the adjoints of those that leave them, and parts of d_B and d_C
where programs share out the heads of a group.  Less is kept at a time in slices (slices.py), and launches are more.
"""

from __future__ import annotations

import os
import re
import warnings
from functools import cache

from .errors import SettingError, SsdWarning

_NAME = "SSDGEN_MEMORY_LIMIT"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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
