"""Every mistake in the arguments of a decode step has its own error, and the state is untouched by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssdgen.runtime import storage
from ssdgen.runtime.decode import selective_state_update
from ssdgen.runtime.decode_checks import check_slots
from ssdgen.runtime.errors import (
    DeviceError,
    DtypeError,
    OperandError,
    OptionError,
    ShapeError,
    SlotError,
    SsdError,
    StrideError,
)
from ssdgen.runtime.replay import Replay
from tests.parity.decode import Case, draw

BASE = Case(batch=2, nheads=4, headdim=8, dstate=16, ngroups=2, options=("D", "z", "dt_bias"))
zeros = torch.zeros


def scaled(dtype: torch.dtype) -> dict[str, Any]:
    return {"state": zeros(2, 4, 8, 16).to(dtype), "state_scale": torch.ones(2, 4, 8)}


def slots(*values: int) -> dict[str, Any]:
    return {"state_batch_indices": torch.tensor(values, dtype=torch.int32)}


REPLAY = Replay.allocate(zeros(2, 4, 8, 16), 4, 2, torch.float32)
MISTAKES = {
    "state of 2 axes": ({"state": zeros(8, 16)}, ShapeError, ["state", "[8, 16]", "dstate"]),
    "state of another batch": ({"state": zeros(3, 4, 8, 16)}, ShapeError, ["3 rows", "x has 2", "state_batch_indices"]),
    "x without heads": ({"x": zeros(2, 32)}, ShapeError, ["x", "[2, 32]", "[batch, nheads, headdim]"]),
    "x of another headdim": ({"x": zeros(2, 4, 7)}, ShapeError, ["x", "[2, 4, 7]", "[2, 4, 8]"]),
    "no tokens": ({"x": zeros(2, 0, 4, 8)}, ShapeError, ["tokens"]),
    "dt of another batch": ({"dt": zeros(3, 4)}, ShapeError, ["dt", "[3, 4]", "[2, 4]", "[2, 4, 8]"]),
    "A of groups": ({"A": zeros(2)}, ShapeError, ["A", "[2]", "[4, 8, 16]"]),
    "B of other states": ({"B": zeros(2, 2, 15)}, ShapeError, ["B", "[2, 2, 15]", "dstate"]),
    "groups that do not divide": ({"B": zeros(2, 3, 16), "C": zeros(2, 3, 16)}, ShapeError, ["4", "3", "divisor"]),
    "C of other groups": ({"C": zeros(2, 1, 16)}, ShapeError, ["C", "[2, 1, 16]", "[2, 2, 16]"]),
    "D of one number": ({"D": zeros(1)}, ShapeError, ["D", "[nheads]"]),
    "z of tokens": ({"z": zeros(2, 1, 4, 8)}, ShapeError, ["z", "[2, 4, 8]"]),
    "slots of another batch": (slots(0), ShapeError, ["state_batch_indices", "[batch]"]),
    "scales of heads": (
        {**scaled(torch.int8), "state_scale": torch.ones(2, 4)},
        ShapeError,
        ["state_scale", "headdim"],
    ),
    "out of x's tokens": ({"out": zeros(2, 1, 4, 8)}, ShapeError, ["out", "[2, 4, 8]"]),
    "integer x": ({"x": zeros(2, 4, 8, dtype=torch.int32)}, DtypeError, ["x", "int32", "bfloat16"]),
    "float64 state": ({"state": zeros(2, 4, 8, 16).double()}, DtypeError, ["state", "float64", "int8"]),
    "16-bit integer state": ({"state": zeros(2, 4, 8, 16).short()}, DtypeError, ["state", "int16"]),
    "float slots": ({"state_batch_indices": zeros(2)}, DtypeError, ["state_batch_indices", "int32"]),
    "bf16 scales": (
        {**scaled(torch.int8), "state_scale": torch.ones(2, 4, 8).bfloat16()},
        DtypeError,
        ["state_scale", "float32"],
    ),
    "out of another dtype": ({"out": zeros(2, 4, 8).bfloat16()}, DtypeError, ["out", "bfloat16", "float32"]),
    "step states of another dtype": (
        {"step_states": zeros(2, 1, 4, 8, 16).bfloat16()},
        DtypeError,
        ["step_states", "bfloat16", "float32"],
    ),
    "x elsewhere": ({"x": zeros(2, 4, 8, device="meta")}, DeviceError, ["x", "meta"]),
    "no tensor": ({"B": [1.0]}, OperandError, ["B", "list", "torch.Tensor"]),
    "no state": ({"state": None}, OperandError, ["state", "NoneType"]),
    "int8 without scales": ({"state": zeros(2, 4, 8, 16).char()}, OptionError, ["int8", "give state_scale"]),
    "fp32 with scales": ({"state_scale": torch.ones(2, 4, 8)}, OptionError, ["float32", "leave out state_scale"]),
    "scales of no states": ({"step_scales": torch.ones(2, 1, 4, 8)}, OptionError, ["step_scales", "step_states"]),
    "limits the wrong way": ({"dt_limit": (1.0, 0.0)}, OptionError, ["dt_limit", "low <= high"]),
    "seed for fp32": ({"rng_seed": 3}, OptionError, ["rng_seed", "float32"]),
    "seed of two": ({**scaled(torch.int8), "rng_seed": torch.tensor([1, 2])}, OptionError, ["rng_seed", "one int64"]),
    "seed of 65 bits": ({**scaled(torch.int8), "rng_seed": 2**64}, OptionError, ["rng_seed", "64 bits"]),
    "seed of words": ({"rng_seed": "7"}, OperandError, ["rng_seed", "str"]),
    "transposed state": ({"state": zeros(2, 4, 16, 8).mT}, StrideError, ["state", "contiguous"]),
    "every other row": ({"state": zeros(2, 4, 16, 16)[:, :, ::2]}, StrideError, ["state", "strides"]),
    "expanded state": ({"state": zeros(1, 4, 8, 16).expand(2, 4, 8, 16)}, StrideError, ["state", "expanded"]),
    "strided scales": (
        {**scaled(torch.int8), "state_scale": torch.ones(2, 8, 4).mT},
        StrideError,
        ["state_scale", "contiguous"],
    ),
    "slot past the end": (slots(0, 2), SlotError, ["[1] is 2", "0 to 1", "padding"]),
    "slot named twice": (slots(1, 1), SlotError, ["[1]", "[0]", "both 1"]),
    "replay of a list": ({"replay": []}, OperandError, ["replay", "list", "allocate"]),
    "replay of other slots": (
        {"replay": Replay.allocate(zeros(3, 4, 8, 16), 4, 2)},
        ShapeError,
        ["replay.x", "[2, 4, 3, 8]"],
    ),
    "replay of other groups": ({"replay": Replay.allocate(zeros(2, 4, 8, 16), 4, 1)}, ShapeError, ["replay.B"]),
    "replay of every entry's dt": (
        {"replay": REPLAY, "dt": torch.rand(2, 4, 8)},
        OptionError,
        ["replay", "one dt and A for a head"],
    ),
}


@pytest.mark.parametrize(("change", "error", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistake(change: dict[str, Any], error: type[SsdError], words: list[str]) -> None:
    args = draw(BASE)
    state = change.get("state", args["state"])
    before = state.clone() if isinstance(state, torch.Tensor) else None
    with pytest.raises(error) as caught:
        selective_state_update(**{**args, **change})
    assert type(caught.value) is error and isinstance(caught.value, ValueError)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert before is None or torch.equal(state, before)


def test_negative_slots_are_padding_however_many() -> None:
    selective_state_update(**draw(BASE) | slots(-1, -1))
    selective_state_update(**draw(BASE) | slots(-7, 1))
    selective_state_update(**draw(BASE) | slots(1, 5), pad_slot_id=5)


def test_slots_are_looked_at_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU by the argument or the environment; here its tensors are played by those without contents."""
    with pytest.raises(SlotError):
        selective_state_update(**draw(BASE) | slots(1, 1), validate_slots=True)
    selective_state_update(**draw(BASE) | slots(1, 1), validate_slots=False)
    args = {name: t.to("meta") if isinstance(t, torch.Tensor) else t for name, t in draw(BASE).items()}
    args |= {"state_batch_indices": torch.zeros(2, dtype=torch.int32, device="meta"), "out": None}
    check_slots(args["state_batch_indices"], 2, -1, None)
    for wanted in (True, None):
        monkeypatch.setenv("SSDGEN_CHECK_SLOTS", "1")
        with pytest.raises(NotImplementedError):
            check_slots(args["state_batch_indices"], 2, -1, wanted)


def test_a_mistake_in_what_is_compiled() -> None:
    torch._dynamo.reset()
    args = draw(BASE)
    with pytest.raises(Exception, match="x has shape"):
        torch.compile(selective_state_update, fullgraph=True, backend="eager")(**args | {"x": args["x"][:, :2]})


def test_replay_has_two_steps_at_least() -> None:
    for steps in (1, 66, 2.0):
        with pytest.raises(OptionError, match="steps is"):
            Replay.allocate(zeros(2, 4, 8, 16), steps)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must have heads"):
        Replay.allocate(zeros(2, 8, 16), 4)


@pytest.mark.parametrize("dtype", [torch.int8, storage.FLOAT8])
def test_scales_follow_the_state(dtype: torch.dtype) -> None:
    """The largest number of each row is the format's largest, whatever the scale was before."""
    args = draw(BASE) | {"state": zeros(2, 4, 8, 16).to(dtype), "state_scale": torch.full((2, 4, 8), 3.0)}
    args["dt_softplus"] = True
    selective_state_update(**args)
    assert (args["state"].float().abs().amax(-1) == storage.LARGEST[dtype]).all()
