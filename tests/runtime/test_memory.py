"""The limit of what a backward pass keeps: read, turned into slices, and the same gradients in slices."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from ssdgen.mamba2_ops import memory
from ssdgen.mamba2_ops.errors import SettingError, SsdWarning

MIB = 1 << 20


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSDGEN_MEMORY_LIMIT", raising=False)
    memory._warn.cache_clear()


def test_no_limit_no_slices() -> None:
    assert memory.slices(8, 1 << 60) == 1


@pytest.mark.parametrize(
    ("limit", "kept", "slices"),
    [("64M", 64 * MIB, 1), ("63M", 64 * MIB, 2), ("32MiB", 64 * MIB, 2), ("16 MB", 64 * MIB, 4), ("9m", 64 * MIB, 8)],
)
def test_as_few_slices_as_the_limit_allows(limit: str, kept: int, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = memory.slices(8, kept)
    assert found == slices
    rows = -(-8 // found)
    assert rows * kept // 8 <= memory._bytes(limit)


def test_rows_one_at_a_time_where_nothing_less_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", "1K")
    with pytest.warns(SsdWarning, match="one row of the batch keeps 8 MiB"):
        assert memory.slices(8, 64 * MIB) == 8


@pytest.mark.parametrize("text", ["much", "-1", "0", "0.0G", "5X", "1 2"])
def test_a_limit_that_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", text)
    with pytest.raises(SettingError, match="512M"):
        memory.slices(8, MIB)


@pytest.mark.interpreter
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are not interpreted in this process")
@pytest.mark.parametrize("schedule", ["walk", "chunks"])
def test_gradients_in_slices_are_those_of_the_whole(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssdgen.mamba2_ops.launchers import backward as launcher
    from tests.parity.cases import Case, draw
    from tests.parity.test_backward import EVERYTHING, adjoints, arguments

    case = Case(3, 20, 2, 16, 16, 1, "float32", EVERYTHING)
    given = arguments(draw(case), *adjoints(case, True))
    config = {"schedule": schedule, "chunk": 16, "state_dtype": "float32", "kernels": {}}
    needs = frozenset({"x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"})
    whole = launcher.backward(config, **given, needs=needs)
    # two chunks of two heads and 16 by 16 states, in float32, kept twice: rows of 16 KiB
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", "33K")
    assert memory.slices(3, 3 * 16 * 1024) == 2
    sliced = launcher.backward(config, **given, needs=needs)
    assert sliced.keys() == whole.keys()
    for name, value in whole.items():
        assert sliced[name].dtype == value.dtype
        torch.testing.assert_close(sliced[name], value, rtol=1e-5, atol=1e-5, msg=name)
