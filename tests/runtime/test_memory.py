"""The limit of what a backward pass keeps, as a setting.  What follows: tests/parity/test_backward_slices.py."""

from __future__ import annotations

import warnings

import pytest

from ssdgen.mamba2_ops import memory
from ssdgen.mamba2_ops.errors import SettingError, SsdWarning

MIB = 1 << 20


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSDGEN_MEMORY_LIMIT", raising=False)
    memory.warn.cache_clear()


def test_no_limit_is_none() -> None:
    assert memory.limit() == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [("64M", 64 * MIB), ("32MiB", 32 * MIB), ("16 MB", 16 * MIB), ("1.5g", 1536 * MIB), ("7", 7), ("2K", 2048)],
)
def test_a_limit_is_a_size(text: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", text)
    assert memory.limit() == found


@pytest.mark.parametrize("text", ["much", "-1", "0", "0.0G", "5X", "1 2"])
def test_a_limit_that_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", text)
    with pytest.raises(SettingError, match="512M"):
        memory.limit()


def test_what_no_slices_keep_to_is_said_once() -> None:
    with pytest.warns(SsdWarning, match="allows 1 MiB, and the smallest slices of this backward pass keep 8"):
        memory.warn(MIB, 8 * MIB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.warn(MIB, 8 * MIB)
