"""The decode step in PyTorch: the recurrence in float64, options, slots, states of each token, replay, one operator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ssdgen.runtime import decode, interface, storage
from ssdgen.runtime.decode import selective_state_update
from ssdgen.runtime.replay import Replay
from tests.parity.decode import CASES, EVERYTHING, MODEL, Case, check, draw, replayed

OPS = SimpleNamespace(selective_state_update=selective_state_update, Replay=Replay)


@pytest.mark.parametrize(
    "case",
    [*CASES, Case(dtype="bfloat16", state="bfloat16", options=MODEL), Case(dtype="float64", state="float64")],
    ids=str,
)
def test_is_the_recurrence(case: Case) -> None:
    check(case, selective_state_update)


@pytest.mark.parametrize("headdim_D", [False, True])
def test_goes_on_where_prefill_ended(headdim_D: bool) -> None:
    """A prompt, then token by token, is the whole sequence at once."""
    case = Case(tokens=6, dtype="float64", state="float64", options=("D_headdim" if headdim_D else "D", "z", "dt_bias"))
    args = {name: t for name, t in draw(case).items() if name != "state"}
    scan = interface.mamba_chunk_scan_combined
    whole, end = scan(**args, chunk_size=64, return_final_states=True)
    prompt = {name: t[:, :4] if name in ("x", "dt", "B", "C", "z") else t for name, t in args.items()}
    _, state = scan(**prompt, chunk_size=64, return_final_states=True, state_dtype=torch.float64)
    for t in (4, 5):
        token = {name: value[:, t] if name in ("x", "dt", "B", "C", "z") else value for name, value in args.items()}
        y = selective_state_update(state, **token)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, end)


def test_a_slot_past_the_end_is_padding_where_nobody_checks() -> None:
    args = draw(Case(options=("slots",)))
    args["state_batch_indices"][0] = len(args["state"])
    before = args["state"].clone()
    y = selective_state_update(**args, validate_slots=False)
    assert not y[:2].any() and y[2].any()
    slot = int(args["state_batch_indices"][2])
    assert [k for k in range(len(before)) if not torch.equal(before[k], args["state"][k])] == [slot]
    # another number may stand for padding
    args["state_batch_indices"][0] = 0
    assert not selective_state_update(**args, pad_slot_id=slot)[2].any()


def test_out_is_written_and_returned() -> None:
    args = draw(Case(options=("z",)))
    again = {**args, "state": args["state"].clone()}
    out = torch.full_like(args["x"], float("nan"))
    assert selective_state_update(**args, out=out) is out
    assert torch.equal(out, selective_state_update(**again))


def test_a_batch_of_nothing() -> None:
    args = draw(Case())
    empty = {name: t[:0] if name in ("x", "dt", "B", "C") else t for name, t in args.items()}
    y = selective_state_update(**empty | {"state_batch_indices": torch.zeros(0, dtype=torch.int32)})
    assert y.shape == (0, 4, 12)


def test_a_rejected_draft_is_taken_back() -> None:
    """Of four tokens two are accepted: the state is that after two, as if the others had never been."""
    args = draw(Case(tokens=4, options=("step_states", "read_only", *MODEL)))
    plain = {name: t[:, :2] if name in ("x", "dt", "B", "C") else t for name, t in args.items()}
    plain |= {"state": args["state"].clone(), "step_states": None, "update_state": True}
    selective_state_update(**args)
    args["state"].copy_(args["step_states"][:, 1])
    selective_state_update(**plain)
    torch.testing.assert_close(args["state"], plain["state"])


@pytest.mark.parametrize("steps", [2, 4])
def test_replay_is_the_same_steps(steps: int) -> None:
    case = Case(options=("D", "z", "dt_bias", "dt_softplus", "slots"))
    ys, expected, args, replay = replayed(OPS, case, steps, 7)
    torch.testing.assert_close(ys, expected)
    slots = args["state_batch_indices"].long()
    assert replay.count[slots[slots >= 0]].tolist() == [7 % steps] * 2
    if 7 % steps:
        assert not torch.allclose(args["state"], args["plain"])
    replay.flush(args["state"], args["A"])
    torch.testing.assert_close(args["state"], args["plain"])
    assert not replay.count.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, storage.FLOAT8])
def test_random_rounding_has_no_bias_and_repeats_itself(dtype: torch.dtype) -> None:
    state = torch.randn(2, 3, 4, 40, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(24).reshape(2, 3, 4)
    total, rounds = torch.zeros_like(state), 300
    nearest = storage.restore(*storage.store(state, dtype, None), torch.float32)
    for seed in range(rounds):
        bits = storage.noise(dtype, torch.tensor(seed), rows, 40, 0)
        stored, scale = storage.store(state, dtype, bits)
        assert torch.equal(stored.view(torch.uint8), storage.store(state, dtype, bits)[0].view(torch.uint8))
        total += storage.restore(stored, scale, torch.float32)
    mean_error, error = (total / rounds - state).norm(), (nearest - state).norm()
    # the mean of 300 errors of a fair coin is 17 times smaller than one of them; to nearest it would not shrink
    assert mean_error < 0.2 * error


def test_philox_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known answer of Random123 for ten rounds, counter and key of ones."""
    monkeypatch.setattr(storage, "ROUNDS", 10)
    ones = torch.tensor(0xFFFFFFFF)
    words = storage._philox(torch.tensor(-1), ones, ones, 0xFFFFFFFF, 0xFFFFFFFF)
    assert [hex(int(word)) for word in words] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


def test_seeds_and_places_have_bits_of_their_own() -> None:
    rows = torch.arange(8).reshape(2, 2, 2)
    bits = {s: storage.noise(torch.int8, torch.tensor(s), rows, 32, 0) for s in (1, 2, 2**33 + 1)}
    assert len({tuple(each.flatten().tolist()) for each in bits.values()}) == 3
    assert len({tuple(row.tolist()) for row in bits[1].flatten(0, 2)}) == 8
    assert not torch.equal(bits[1], storage.noise(torch.int8, torch.tensor(1), rows, 32, 1))


def test_a_nan_stays_where_it_is() -> None:
    state = torch.ones(1, 1, 2, 4)
    state[..., 0, 1] = float("nan")
    for dtype in (torch.bfloat16, torch.float16, torch.int8, storage.FLOAT8):
        bits = storage.noise(dtype, torch.tensor(3), torch.zeros(1, 1, 2, dtype=torch.int64), 4, 0)
        found = storage.restore(*storage.store(state, dtype, bits), torch.float32)
        assert found[0, 0, 0].isnan().any() and not found[0, 0, 1].isnan().any()


OPERATOR = [
    Case(options=("expanded", *MODEL)),
    Case(tokens=2, state="int8", dstate=32, options=EVERYTHING),
    Case(nheads=0, ngroups=0, state="bfloat16", options=("seed",)),
]


@pytest.mark.parametrize("case", OPERATOR, ids=str)
def test_compiled_whole(case: Case) -> None:
    torch._dynamo.reset()
    args = draw(case)
    again = {name: t.clone() if "state" in name or "scale" in name else t for name, t in args.items()}

    def step(**given):
        # something before and after, so that the operator stands inside of a graph
        return selective_state_update(**{**given, "x": 2 * given["x"]}).sin()

    y = step(**args)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(**again)
    torch.testing.assert_close(found, y)
    for name in ("state", "state_scale", "step_states"):
        if name in args:
            torch.testing.assert_close(again[name].float(), args[name].float())


def test_compiled_with_a_replay() -> None:
    torch._dynamo.reset()
    args = draw(Case(options=("expanded", *MODEL)))
    twin = {**args, "state": args["state"].clone()}
    replays = [Replay.allocate(each["state"], 3, 2, torch.float32) for each in (args, twin)]
    compiled = torch.compile(
        lambda replay, **given: selective_state_update(**given, replay=replay), fullgraph=True, backend="aot_eager"
    )
    for _ in range(4):
        torch.testing.assert_close(compiled(replays[0], **args), selective_state_update(**twin, replay=replays[1]))
    torch.testing.assert_close(args["state"], twin["state"])
    assert replays[0].count.tolist() == [1, 1, 1]


def test_opcheck() -> None:
    args = draw(Case(state="bfloat16", options=("seed", "slots", *MODEL)))
    given = [args["state"], torch.empty_like(args["x"]), *[None] * 7]
    given += [args.get(name) for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state_batch_indices")]
    torch.library.opcheck(decode.decode_step, (*given, torch.tensor([3]), True, 0.0, float("inf"), -1, True))
