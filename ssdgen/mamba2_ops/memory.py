"""How much memory a backward pass may take for what it keeps, and in how many slices it then goes.  -> launchers

    SSDGEN_MEMORY_LIMIT=512M    bytes for the states that a backward pass keeps, with K, M, G or T (powers of 1024)

What is kept are the states that enter the chunks and the adjoints of those that leave them; both go with the rows of a
batch, which are independent of each other.  So a batch goes in as many slices as the limit asks for, one after the
other: less is kept at a time, and launches are more.
"""

from __future__ import annotations

import os
import re
import warnings
from functools import cache

from .errors import SettingError, SsdWarning

_NAME = "SSDGEN_MEMORY_LIMIT"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def is_limited() -> bool:
    """Whether there is a limit at all: what would be kept need not be worked out where there is none."""
    return bool(os.environ.get(_NAME))


def slices(batch: int, kept: int) -> int:
    """Slices of a batch of which all together keep `kept` bytes; 1 without a limit.

    batch: rows, >= 1.  Errors: SettingError for a limit that is no size.  Warns (SsdWarning) once for a limit that even
    one row at a time exceeds.
    """
    text = os.environ.get(_NAME)
    if not text:
        return 1
    limit = _bytes(text)
    rows = min(batch, limit * batch // max(1, kept))
    if rows < 1:
        _warn(text, -(-kept // batch))
        rows = 1
    return -(-batch // rows)


@cache
def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if not found or not (limit := int(float(found[1]) * _UNITS[found[2]])):
        raise SettingError(f"{_NAME} is {text!r}; give bytes above 0, as in 512M or 2G, or unset it")
    return limit


@cache
def _warn(text: str, least: int) -> None:
    warnings.warn(
        f"{_NAME} is {text}, and one row of the batch keeps {least / (1 << 20):.0f} MiB: rows go one at a time",
        SsdWarning,
        stacklevel=6,
    )
