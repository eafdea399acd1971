"""vLLM's prefill call: the states and outputs of each sequence by itself, chunks wherever they begin."""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest
import torch

from ssdgen.runtime import sequences
from ssdgen.runtime.errors import DtypeError, ShapeError
from ssdgen.runtime.interface import mamba_chunk_scan_combined
from ssdgen.runtime.vllm import mamba_chunk_scan_combined_varlen as varlen

CUTS = [0, 3, 20, 21]
# the second sequence goes on in the middle of a chunk of 8: its first one is short
CHUNKS, OWNERS = [0, 3, 5, 13, 20, 21], [0, 1, 1, 1, 2]


def arguments(**change) -> dict:
    H, P, N = 4, 6, 5
    given = {
        "x": torch.randn(21, H, P),
        "dt": torch.randn(21, H),
        "A": -torch.rand(H) - 0.1,
        "B": torch.randn(21, 2, N),
        "C": torch.randn(21, 2, N),
        "chunk_size": 8,
        "cu_seqlens": torch.tensor(CUTS, dtype=torch.int32),
        "cu_chunk_seqlens": torch.tensor(CHUNKS, dtype=torch.int32),
        "last_chunk_indices": torch.tensor([0, 3, 4]),
        "seq_idx": torch.tensor(OWNERS, dtype=torch.int32),
        "out": torch.full((21, H, P), torch.nan),
        "D": torch.randn(H),
        "z": torch.randn(21, H, P),
        "dt_bias": torch.randn(H),
        "initial_states": torch.randn(3, H, P, N),
        "dt_softplus": True,
        "dt_limit": (0.001, 2.0),
    }
    return given | change


def alone(given: dict, start: int, end: int, sequence: int):
    """y and the last state of positions start to end, by the scan of one row."""
    cut = {name: given[name][None, start:end] for name in ("x", "dt", "B", "C")}
    z = None if given["z"] is None else given["z"][None, start:end]
    states = None if given["initial_states"] is None else given["initial_states"][sequence : sequence + 1]
    same = {name: given[name] for name in ("A", "chunk_size", "D", "dt_bias", "dt_softplus", "dt_limit")}
    return mamba_chunk_scan_combined(**cut, **same, z=z, initial_states=states, return_final_states=True)


@pytest.mark.parametrize("without", [(), ("initial_states", "z", "D")])
@pytest.mark.parametrize("intermediate", [False, True])
def test_each_sequence_is_as_if_alone(without: tuple[str, ...], intermediate: bool) -> None:
    given = arguments(**dict.fromkeys(without), return_intermediate_states=intermediate)
    states = varlen(**given)
    for sequence, (start, end) in enumerate(pairwise(CUTS)):
        y, last = alone(given, start, end, sequence)
        torch.testing.assert_close(given["out"][start:end], y[0], rtol=1e-4, atol=1e-4)
        found = states[given["last_chunk_indices"]] if intermediate else states
        torch.testing.assert_close(found[sequence], last[0], rtol=1e-4, atol=1e-4)
    if intermediate:
        assert states.shape[0] == len(OWNERS)
        for chunk, owner in enumerate(OWNERS):
            last = alone(given, CUTS[owner], CHUNKS[chunk + 1], owner)[1]
            torch.testing.assert_close(states[chunk], last[0], rtol=1e-4, atol=1e-4)


def test_dtypes_of_states() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert varlen(**arguments(state_dtype=dtype)).dtype is dtype
        assert varlen(**arguments(state_dtype=dtype, return_intermediate_states=True)).dtype is dtype


def test_nothing_is_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cuts of a new batch are trusted: reading them would wait for the device at every step."""
    monkeypatch.setattr(sequences, "_check_values", lambda *given: pytest.fail("cu_seqlens was read"))
    varlen(**arguments(return_intermediate_states=True))


def test_the_signature_is_vllms() -> None:
    assert list(inspect.signature(varlen).parameters) == [
        "x", "dt", "A", "B", "C", "chunk_size", "cu_seqlens", "cu_chunk_seqlens", "last_chunk_indices", "seq_idx",
        "out", "D", "z", "dt_bias", "initial_states", "dt_softplus", "dt_limit", "return_intermediate_states",
        "state_dtype",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"out": torch.empty(20, 4, 6)}, ShapeError, "out has shape"),
        ({"out": torch.empty(21, 4, 6, dtype=torch.float16)}, DtypeError, "out is torch.float16"),
        ({"last_chunk_indices": torch.tensor([0])}, ShapeError, "last_chunk_indices"),
        ({"initial_states": torch.randn(1, 4, 6, 5)}, ShapeError, "it must have 3 rows"),
    ],
)
def test_mistakes_are_named(change: dict, error: type[Exception], words: str) -> None:
    given = arguments(**change)
    with pytest.raises(error, match=words):
        varlen(**given)
    assert change.get("out") is not None or given["out"].isnan().all()
