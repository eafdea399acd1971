"""Every mistake in the arguments has its own error, raised before anything is computed."""

from __future__ import annotations

import gc
import timeit
from math import inf, nan

import pytest
import torch

from ssdgen.runtime import sequences
from ssdgen.runtime.checks import check_forward
from ssdgen.runtime.errors import (
    DeviceError,
    DtypeError,
    OperandError,
    OptionError,
    SequenceError,
    ShapeError,
    SsdError,
)
from ssdgen.runtime.interface import mamba_chunk_scan_combined
from ssdgen.runtime.problem import Problem

BATCH, SEQLEN, NHEADS, HEADDIM, DSTATE, NGROUPS = 2, 7, 4, 8, 16, 2


def arguments(batch: int = BATCH, dtype: torch.dtype = torch.float32) -> dict:
    """Correct arguments of the public call."""
    return {
        "x": torch.zeros(batch, SEQLEN, NHEADS, HEADDIM, dtype=dtype),
        "dt": torch.zeros(batch, SEQLEN, NHEADS, dtype=dtype),
        "A": -torch.ones(NHEADS),
        "B": torch.zeros(batch, SEQLEN, NGROUPS, DSTATE, dtype=dtype),
        "C": torch.zeros(batch, SEQLEN, NGROUPS, DSTATE, dtype=dtype),
        "chunk_size": 64,
    }


def packed(*values: int, dtype: torch.dtype = torch.int32) -> dict:
    return {"cu_seqlens": torch.tensor(values, dtype=dtype)}


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str | None = None) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


def check(**kwargs) -> Problem:
    """The check alone, with the public call's defaults."""
    defaults = dict.fromkeys(("D", "z", "dt_bias", "initial_states", "seq_idx", "cu_seqlens", "state_dtype"))
    return check_forward(**(defaults | {"dt_limit": (0.0, inf), "return_varlen_states": False} | kwargs))


STATES = (BATCH, NHEADS, HEADDIM, DSTATE)
MISTAKES = {
    "x of 3 dimensions": ({"x": zeros(2, 7, 32)}, ShapeError, ["x", "[2, 7, 32]", "headdim"]),
    "seqlen 0": ({"x": zeros(2, 0, 4, 8)}, ShapeError, ["x", "[2, 0, 4, 8]", "at least 1"]),
    "dt of another batch": ({"dt": zeros(3, 7, 4)}, ShapeError, ["dt", "[3, 7, 4]", "[2, 7, 4]"]),
    "dt of another seqlen": ({"dt": zeros(2, 6, 4)}, ShapeError, ["dt", "[2, 6, 4]", "seqlen"]),
    "dt of other heads": ({"dt": zeros(2, 7, 5)}, ShapeError, ["dt", "[2, 7, 5]", "nheads"]),
    "A of other heads": ({"A": zeros(5)}, ShapeError, ["A", "[5]", "[nheads]", "[4]"]),
    "A of 2 dimensions": ({"A": zeros(4, 16)}, ShapeError, ["A", "[4, 16]", "[4]"]),
    "B of another batch": ({"B": zeros(3, 7, 2, 16)}, ShapeError, ["B", "[3, 7, 2, 16]", "[2, 7, ngroups"]),
    "B of another seqlen": ({"B": zeros(2, 8, 2, 16)}, ShapeError, ["B", "[2, 8, 2, 16]", "seqlen"]),
    "B without groups": ({"B": zeros(2, 7, 16)}, ShapeError, ["B", "[2, 7, 16]", "ngroups"]),
    "C of other groups": ({"C": zeros(2, 7, 4, 16)}, ShapeError, ["C has 4 groups, B has 2", "agree"]),
    "C of other states": ({"C": zeros(2, 7, 2, 8)}, ShapeError, ["C has 8 states, B has 16", "agree"]),
    "C of another seqlen": ({"C": zeros(2, 6, 2, 16)}, ShapeError, ["C", "[2, 6, 2, 16]", "that of B"]),
    "dstate 0": ({"B": zeros(2, 7, 2, 0), "C": zeros(2, 7, 2, 0)}, ShapeError, ["dstate"]),
    "groups that do not divide": (
        {"B": zeros(2, 7, 3, 16), "C": zeros(2, 7, 3, 16)},
        ShapeError,
        ["nheads 4", "ngroups 3", "divisible", "choose"],
    ),
    "no groups": ({"B": zeros(2, 7, 0, 16), "C": zeros(2, 7, 0, 16)}, ShapeError, ["ngroups 0"]),
    "D of other heads": ({"D": zeros(5)}, ShapeError, ["D", "[5]", "[nheads] = [4]", "[4, 8]"]),
    "D of another headdim": ({"D": zeros(4, 4)}, ShapeError, ["D", "[4, 4]", "[4, 8]"]),
    "z of another shape": ({"z": zeros(2, 7, 4, 4)}, ShapeError, ["z", "[2, 7, 4, 4]", "[2, 7, 4, 8]"]),
    "dt_bias of other heads": ({"dt_bias": zeros(5)}, ShapeError, ["dt_bias", "[5]", "[4]"]),
    "states of other rows": ({"initial_states": zeros(3, *STATES[1:])}, ShapeError, ["initial_states", "batch = 2"]),
    "states transposed": ({"initial_states": zeros(2, 4, 16, 8)}, ShapeError, ["[2, 4, 16, 8]", "[rows, 4, 8, 16]"]),
    "states without rows": ({"initial_states": zeros(0, *STATES[1:])}, ShapeError, ["[0, 4, 8, 16]", "batch = 2"]),
    "seq_idx of another shape": ({"seq_idx": zeros(7, dtype=torch.int32)}, ShapeError, ["seq_idx", "[7]", "[2, 7]"]),
    "cu_seqlens with a batch": (packed(0, 7), ShapeError, ["cu_seqlens", "batch 2", "batch 1"]),
    "B of another dtype": (
        {"B": zeros(2, 7, 2, 16, dtype=torch.bfloat16)},
        DtypeError,
        ["B is torch.bfloat16"],
    ),
    "C of another dtype": ({"C": zeros(2, 7, 2, 16, dtype=torch.float16)}, DtypeError, ["C is torch.float16", ".to("]),
    "z of another dtype": ({"z": zeros(2, 7, 4, 8, dtype=torch.float16)}, DtypeError, ["z is torch.float16"]),
    "integer x": ({"x": zeros(2, 7, 4, 8, dtype=torch.int32)}, DtypeError, ["x is torch.int32", "bfloat16, float16"]),
    "integer dt": ({"dt": zeros(2, 7, 4, dtype=torch.int32)}, DtypeError, ["dt is torch.int32", "allowed"]),
    "double A": ({"A": zeros(4, dtype=torch.float64)}, DtypeError, ["A is torch.float64", "float64 x"]),
    "integer D": ({"D": zeros(4, dtype=torch.int64)}, DtypeError, ["D is torch.int64"]),
    "complex dt_bias": ({"dt_bias": zeros(4, dtype=torch.complex64)}, DtypeError, ["dt_bias is torch.complex64"]),
    "integer states": ({"initial_states": zeros(*STATES, dtype=torch.int8)}, DtypeError, ["initial_states", "int8"]),
    "floating seq_idx": ({"seq_idx": zeros(2, 7)}, DtypeError, ["seq_idx is torch.float32", "int32, int64"]),
    "dt elsewhere": (
        {"dt": zeros(2, 7, 4, device="meta")},
        DeviceError,
        ["dt is on meta", "x is on cpu"],
    ),
    "A elsewhere": ({"A": zeros(4, device="meta")}, DeviceError, ["A is on meta"]),
    "B elsewhere": ({"B": zeros(2, 7, 2, 16, device="meta")}, DeviceError, ["B is on meta"]),
    "C elsewhere": ({"C": zeros(2, 7, 2, 16, device="meta")}, DeviceError, ["C is on meta"]),
    "D elsewhere": ({"D": zeros(4, device="meta")}, DeviceError, ["D is on meta"]),
    "z elsewhere": ({"z": zeros(2, 7, 4, 8, device="meta")}, DeviceError, ["z is on meta"]),
    "dt_bias elsewhere": ({"dt_bias": zeros(4, device="meta")}, DeviceError, ["dt_bias is on meta"]),
    "states elsewhere": ({"initial_states": zeros(*STATES, device="meta")}, DeviceError, ["initial_states is on meta"]),
    "seq_idx elsewhere": (
        {"seq_idx": zeros(2, 7, dtype=torch.int32, device="meta")},
        DeviceError,
        ["seq_idx is on meta"],
    ),
    "chunk_size 0": ({"chunk_size": 0}, OptionError, ["chunk_size is 0", "at least 1"]),
    "chunk_size -64": ({"chunk_size": -64}, OptionError, ["chunk_size is -64"]),
    "chunk_size a float": ({"chunk_size": 64.0}, OptionError, ["chunk_size is 64.0", "integer"]),
    "limits reversed": ({"dt_limit": (1.0, 0.5)}, OptionError, ["dt_limit", "(1.0, 0.5)", "low <= high"]),
    "limits NaN": ({"dt_limit": (nan, 1.0)}, OptionError, ["dt_limit", "nan"]),
    "one limit": ({"dt_limit": 0.5}, OptionError, ["dt_limit is 0.5", "two numbers"]),
    "varlen states of nothing": ({"return_varlen_states": True}, OptionError, ["return_varlen_states", "cu_seqlens"]),
    "integer states asked": ({"state_dtype": torch.int32}, OptionError, ["state_dtype is torch.int32", "float32"]),
    "double states asked": ({"state_dtype": torch.float64}, OptionError, ["state_dtype is torch.float64"]),
    "x a list": ({"x": [1.0]}, OperandError, ["x is a list", "torch.Tensor"]),
    "no A": ({"A": None}, OperandError, ["A is a NoneType", "must be a torch.Tensor"]),
    "D a number": ({"D": 1.0}, OperandError, ["D is a float", "torch.Tensor or None"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_error(name: str) -> None:
    change, error, parts = MISTAKES[name]
    with pytest.raises(error) as caught:
        mamba_chunk_scan_combined(**(arguments() | change))
    assert isinstance(caught.value, SsdError) and isinstance(caught.value, ValueError)
    for part in parts:
        assert part in str(caught.value)


PACKED_MISTAKES = {
    "one entry": (packed(0), ShapeError, ["cu_seqlens", "[1]", "at least one sequence"]),
    "2 dimensions": ({"cu_seqlens": zeros(1, 2, dtype=torch.int32)}, ShapeError, ["cu_seqlens", "[1, 2]"]),
    "floating": ({"cu_seqlens": torch.tensor([0.0, 7.0])}, DtypeError, ["cu_seqlens is torch.float32"]),
    "elsewhere": ({"cu_seqlens": zeros(2, dtype=torch.int32, device="meta")}, DeviceError, ["cu_seqlens is on meta"]),
    "not from 0": (packed(1, 7), SequenceError, ["starts at 1", "must start at 0"]),
    "decreasing": (packed(0, 5, 3, 7), SequenceError, ["not increasing", "entry 2 is 3", "before 5"]),
    "an empty sequence": (packed(0, 3, 3, 7), SequenceError, ["not increasing", "entry 2 is 3", "without tokens"]),
    "too short": (packed(0, 3, 6), SequenceError, ["ends at 6", "seqlen 7"]),
    "too long": (packed(0, 3, 8), SequenceError, ["ends at 8", "seqlen 7"]),
    "states of other rows": (
        packed(0, 3, 7) | {"initial_states": zeros(3, *STATES[1:])},
        ShapeError,
        ["initial_states", "rows = 2 (one for each packed sequence) or 1"],
    ),
}


@pytest.mark.parametrize("name", PACKED_MISTAKES)
def test_each_mistake_in_packing_has_its_error(name: str) -> None:
    change, error, parts = PACKED_MISTAKES[name]
    with pytest.raises(error) as caught:
        mamba_chunk_scan_combined(**(arguments(batch=1) | change))
    for part in parts:
        assert part in str(caught.value)


def test_what_is_allowed_passes() -> None:
    sizes = {"seqlen": 7, "nheads": 4, "headdim": 8, "dstate": 16, "ngroups": 2}
    assert check(**arguments()) == Problem(2, **sizes, dtype="float32")
    assert check(**arguments(dtype=torch.bfloat16), state_dtype=torch.bfloat16).dtype == "bfloat16"
    assert check(**arguments(batch=0)).batch == 0
    assert check(**(arguments() | {"A": torch.ones(4)}))  # positive A
    assert check(**arguments(), D=zeros(4, 8), dt_limit=[0, 1], seq_idx=zeros(2, 7, dtype=torch.int64))
    for rows in (1, 3):
        states = zeros(rows, *STATES[1:])
        problem = check(**arguments(batch=1), **packed(0, 1, 5, 7), initial_states=states, return_varlen_states=True)
        assert problem.sequences == 3


def test_any_stride_passes() -> None:
    wide = torch.zeros(2, 7, 4, 8 + 16).transpose(1, 2).contiguous().transpose(1, 2)
    assert check(**(arguments() | {"x": wide[..., :8], "dt": wide[..., 0]}))


class Counted:
    """How often contents were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        real = sequences._check_values

        def counted(values, seqlen):
            self.reads += 1
            real(values, seqlen)

        monkeypatch.setattr(sequences, "_check_values", counted)


def test_contents_are_read_once_per_tensor_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)
    for _ in range(3):
        check(**arguments(batch=1), cu_seqlens=cu_seqlens)
    assert counted.reads == 1
    cu_seqlens[1] = 4
    check(**arguments(batch=1), cu_seqlens=cu_seqlens)
    assert counted.reads == 2
    cu_seqlens[1] = 0
    with pytest.raises(SequenceError):
        check(**arguments(batch=1), cu_seqlens=cu_seqlens)
    # right for another length does not make it right for this one
    longer = torch.tensor([0, 8], dtype=torch.int32)
    sequences.check_sequences(longer, 8)
    with pytest.raises(SequenceError):
        check(**arguments(batch=1), cu_seqlens=longer)


def test_a_tensor_of_inference_mode_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    with torch.inference_mode():
        cu_seqlens = torch.tensor([0, 3, 7])
        for _ in range(3):
            check(**arguments(batch=1), cu_seqlens=cu_seqlens)
    assert counted.reads == 1


def test_nothing_is_remembered_of_a_dead_tensor() -> None:
    before = len(sequences._seen)
    cu_seqlens = torch.tensor([0, 7])
    sequences.check_sequences(cu_seqlens, 7)
    assert len(sequences._seen) == before + 1
    del cu_seqlens
    gc.collect()
    assert len(sequences._seen) == before


def test_contents_can_be_taken_on_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_ASSUME_VALID", "1")
    counted = Counted(monkeypatch)
    wrong = torch.tensor([0, 9])
    sequences.check_sequences(wrong, 7)
    assert counted.reads == 0
    # trust is not remembered
    monkeypatch.delenv("SSDGEN_ASSUME_VALID")
    with pytest.raises(SequenceError):
        sequences.check_sequences(wrong, 7)


@pytest.mark.gpu
def test_nothing_is_read_while_a_graph_is_captured() -> None:
    wrong = torch.tensor([0, 9], device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        sequences.check_sequences(wrong, 7)
    with pytest.raises(SequenceError):
        sequences.check_sequences(wrong, 7)


def test_the_check_is_cheap() -> None:
    """About 3 us; the limit only catches a check that became another kind of thing."""
    kwargs = arguments() | {"D": zeros(4), "dt_bias": zeros(4), "initial_states": zeros(*STATES)}
    assert min(timeit.repeat(lambda: check(**kwargs), number=500, repeat=5)) / 500 < 50e-6
