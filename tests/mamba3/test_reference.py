"""The PyTorch path, printed from the graphs, is the oracle; what does not fit is said."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.mamba3 import calls  # noqa: E402
from tests.spec.mamba3_cases import draw  # noqa: E402


@pytest.mark.parametrize("options", ({}, {"states": False, "skip": False, "gate": False}, {"rates": 3}), ids=str)
def test_float64_is_the_oracle(options: dict[str, Any], seed: int):
    calls.compare(draw(seed, seqlen=21, **options), seed, torch.float64, 16, "exact")


def test_float32(seed: int):
    calls.compare(draw(seed, seqlen=37), seed, torch.float32, 32, "float32")


def test_packed_sequences_are_calls_of_their_own(seed: int):
    arrays = draw(seed, batch=1, seqlen=20, states=False)
    many = draw(seed + 1, batch=3)
    states = {name: many[name] for name in ("angle", "state", "B_before", "x_before")}
    given = calls.tensors({**arrays, **states}, torch.float64)
    cuts = torch.tensor([0, 3, 4, 20])
    found = calls.call(given, cu_seqlens=cuts)
    for number, (start, stop) in enumerate(zip((0, 3, 4), (3, 4, 20), strict=True)):
        part = {
            name: tensor
            if name in ("B_bias", "C_bias", "D")
            else tensor[number : number + 1]
            if name in states
            else tensor[:, start:stop]
            for name, tensor in given.items()
        }
        alone = calls.call(part)
        torch.testing.assert_close(found[0][:, start:stop], alone[0])
        for whole, own in zip(found[1:], alone[1:], strict=True):
            torch.testing.assert_close(whole[number : number + 1], own)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 11, 4)}, "ShapeError", r"V has shape \[2, 11, 4\]; it must be"),
        ({"step": torch.zeros(2, 11, 3)}, "ShapeError", r"DT has shape \[2, 3, 11\]; .* must be \[2, 4, 11\]"),
        ({"rate": torch.zeros(2, 11, 4, 4)}, "ShapeError", "N must be even and R from 1 to N / 2"),
        ({"B": torch.zeros(2, 11, 3, 6)}, "ShapeError", "3 groups and V 4 heads; groups must divide heads"),
        ({"C": torch.zeros(2, 11, 2, 6).half()}, "DtypeError", "Q is torch.float16 and V torch.float32"),
        ({"z": torch.zeros(2, 11, 4, 3, device="meta")}, "DeviceError", "Z is on meta and V on cpu; move it there"),
        ({"x_before": None}, "OperandError", r"Input_States\[3\] is NoneType"),
    ],
)  # fmt: skip
def test_what_does_not_fit(change: dict[str, Any], error: str, message: str, seed: int):
    given = calls.tensors(draw(seed), torch.float32)
    with pytest.raises(getattr(calls.package(), error), match=message):
        calls.call({**given, **change})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk": 48}, "OptionError", "chunk_size is 48; it must be 16, 32, 64 or 128"),
        ({"cu_seqlens": torch.tensor([0, 11])}, "ShapeError", "the batch is 2; give"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], error: str, message: str, seed: int):
    with pytest.raises(getattr(calls.package(), error), match=message):
        calls.call(calls.tensors(draw(seed), torch.float32), **options)


def test_sequences_must_fill_the_row(seed: int):
    given = calls.tensors(draw(seed, batch=1, states=False), torch.float32)
    with pytest.raises(calls.package().SequenceError, match=r"\[0, 5\]; it must rise from 0 to the length, 11"):
        calls.call(given, cu_seqlens=torch.tensor([0, 5]))


@pytest.mark.parametrize("states", (True, False))
def test_one_token(states: bool, seed: int):
    calls.compare_step(draw(seed, states=states), torch.float64, "exact")


def test_a_token_that_has_tokens(seed: int):
    given = calls.tensors(draw(seed), torch.float32)
    with pytest.raises(calls.package().ShapeError, match="V has shape .* it must have 3 dimensions, none for tokens"):
        calls.step({**given, "x": given["x"][:, :, None]})
