"""Decode kernels against float64 and the PyTorch path: interpreted, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import decode_fallback, decode_paths, paths, storage
from ssdgen.mamba2_ops.launchers import decode as launcher
from ssdgen.plan.schedules.step_tiles import AHEAD, TILES, Tiles
from tests.parity.decode import CASES, EVERYTHING, MODEL, Case, check, draw, replayed

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
CUTS = [*((tiles, 0) for tiles in TILES), *AHEAD]
ON_GPU = [
    *(Case(batch, 0, 80, 64, 128, 1, "bfloat16", state, MODEL) for batch, state in ((1, "float32"), (5, "bfloat16"))),
    Case(5, 0, 80, 64, 128, 1, "bfloat16", "int8", (*MODEL, "seed")),
    Case(5, 3, 8, 64, 256, 8, "bfloat16", "bfloat16", EVERYTHING),
    Case(3, 0, 8, 80, 96, 2, "bfloat16", "bfloat16", (*EVERYTHING, "seed")),
    Case(2, 0, 0, 5120, 16, 0, "bfloat16", "float32", ("D", "z", "dt_bias", "dt_softplus")),
]


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interpreted on a CPU, with the default config; the PyTorch path must not stand in."""
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    ops.select.forget()
    monkeypatch.setattr(decode_fallback, "step", lambda *_, **__: pytest.fail("the PyTorch path ran"))
    yield
    ops.select.forget()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_recurrence(case: Case, device: str) -> None:
    check(case, ops.selective_state_update, device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_GPU, ids=str)
def test_models(case: Case) -> None:
    check(case, ops.selective_state_update, "cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state", ["float32", "int8"])
def test_replay(state: str, device: str) -> None:
    """y is that of steps that write the state each time; an 8-bit state is rounded less often, so y is nearer."""
    case = Case(dstate=20, state=state, options=("D", "z", "dt_bias", "dt_softplus", "slots"))
    ys, expected, args, replay = replayed(ops, case, 4, 6, device)
    slots = args["state_batch_indices"].long()
    assert replay.count[slots[slots >= 0]].tolist() == [2, 2]
    limit = 1e-5 if state == "float32" else 2e-2
    assert float((ys - expected).norm() / expected.norm()) < limit
    if state == "float32":
        replay.flush(args["state"], args["A"])
        torch.testing.assert_close(args["state"], args["plain"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [Case(options=(*MODEL, "slots")), Case(state="int8", options=EVERYTHING[:6])], ids=str)
def test_heads_after_heads(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results where a program goes through the heads of a group, and their kernels are those that ran."""
    ran = run_with(monkeypatch, heads=2)
    check(case, ops.selective_state_update, device)
    assert ran == ["state_step_heads"]


@pytest.mark.parametrize("device", DEVICES)
def test_replay_of_heads_after_heads(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps the second writes the state, and the third reads what it wrote."""
    ran = run_with(monkeypatch, heads=2)
    case = Case(batch=2, headdim=4, options=("D", "z", "dt_bias", "dt_softplus", "slots"))
    ys, expected, _, replay = replayed(ops, case, 2, 3, device)
    assert replay.count.sum() == 1 and {"replay_step_heads", "state_step_heads"} <= set(ran)
    assert float((ys - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tiles", "ahead"), CUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case(headdim=16, options=(*MODEL, "slots", "z")),
        Case(headdim=16, options=("expanded", "strided", *EVERYTHING[:6])),
        Case(headdim=16, state="int8", dstate=32, options=EVERYTHING[:6]),
        Case(headdim=16, state="float8", options=("seed", "D_headdim")),
    ],
    ids=str,
)
def test_tiles_of_a_program(case: Case, tiles: int, ahead: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D of heads and of channels."""
    ran = run_with(monkeypatch, tiles=tiles, ahead=ahead, num_warps=2)
    check(case, ops.selective_state_update, device)
    assert ran == [Tiles(tiles, units=case.state in ("int8", "float8"), ahead=ahead).name]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-25])
def test_a_first_token_in_units(scale: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of zeros have any scale, and none is divided by as it is."""
    run_with(monkeypatch, tiles=2)
    case = Case(headdim=16, dstate=32, state="int8", options=MODEL)
    args, plain = draw(case, device), draw(replace(case, state="float32"), device)
    args["state"].zero_(), args["state_scale"].fill_(scale), plain["state"].zero_()
    same = {name: args[name] for name in ("x", "dt", "B", "C", "A", "D", "dt_bias")}
    y, expected = ops.selective_state_update(**args), ops.selective_state_update(**{**plain, **same})
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    stored = args["state"].float() * args["state_scale"][..., None]
    assert float((stored - plain["state"]).norm() / plain["state"].norm()) < 1e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("tiles", "ahead"), CUTS)
@pytest.mark.parametrize("state", ["float32", "int8"])
def test_replay_in_tiles(
    state: str, tiles: int, ahead: int, early: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps than are kept, with three kept inputs: a product has more rows than that."""
    ran = run_with(monkeypatch, tiles=tiles, ahead=ahead, num_warps=2, early=early)
    case = Case(headdim=16, dstate=32, state=state, options=("D", "z", "dt_bias", "dt_softplus", "slots"))
    ys, expected, args, replay = replayed(ops, case, 4, 6, device)
    assert {"replay_scores", Tiles(tiles, units=state == "int8", ahead=ahead).name} == set(ran)
    slots = args["state_batch_indices"].long()
    assert replay.count[slots[slots >= 0]].tolist() == [2, 2]
    assert float((ys - expected).norm() / expected.norm()) < (1e-5 if state == "float32" else 2e-2)
    if state == "float32":
        replay.flush(args["state"], args["A"])
        torch.testing.assert_close(args["state"], args["plain"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ngroups", [2, 6])
def test_a_replay_in_tiles_of_heads_that_no_power_of_two_divides(
    ngroups: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three heads of a group, and one."""
    ran = run_with(monkeypatch, tiles=2, early=True)
    case = Case(nheads=6, ngroups=ngroups, headdim=24, dstate=16, options=("D", "dt_bias", "dt_softplus"))
    ys, expected, _, replay = replayed(ops, case, 3, 5, device)
    assert "replay_scores" in ran and replay.count.unique().tolist() == [2]
    assert float((ys - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("case", "tiles"),
    [(Case(headdim=6), 4), (Case(headdim=16, tokens=2), 2), (Case(headdim=16, dstate=20), 2)],
    ids=str,
)
@pytest.mark.interpreter
def test_tiles_that_a_call_cannot_have(case: Case, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not divide headdim, with several tokens or two tiles of dstate: the plain kernel runs."""
    ran = run_with(monkeypatch, tiles=tiles)
    check(case, ops.selective_state_update)
    assert len(ran) == 1 and ran[0] in ("state_step", "state_step_2n")


def run_with(monkeypatch: pytest.MonkeyPatch, **numbers: Any) -> list[str]:
    """Have every step run with these numbers; what is launched first is noted."""
    config = {"schedule": "step", "kernels": {"state_step": {"block_p": 4, "num_warps": 1, **numbers}}}
    monkeypatch.setattr(decode_paths, "decode_config_for", lambda *_: config)
    ran: list[str] = []
    plan = launcher._plan

    def noting(*args: Any, **options: Any) -> Any:
        found = plan(*args, **options)
        ran.append(found.launches[0].kernel.__name__)
        return found

    monkeypatch.setattr(launcher, "_recipes", type(launcher._recipes)())
    monkeypatch.setattr(launcher, "_plan", noting)
    return ran


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state", ["float16", "int8", "float8"])
def test_random_bits_are_those_of_the_pytorch_path(state: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed rounds the same way everywhere, but where fp32 itself rounds another way."""
    case = Case(batch=2, headdim=4, dstate=40, state=state, options=("seed", "slots"))
    kernel, plain = draw(case, device), draw(case)
    ops.selective_state_update(**kernel)
    monkeypatch.undo()
    monkeypatch.setattr(paths, "HAVE_TRITON", False)
    ops.selective_state_update(**plain)
    found, expected = (each["state"].cpu().view(torch.uint8) for each in (kernel, plain))
    assert (found != expected).float().mean() < (0 if device == "cpu" else 1e-2) + 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_repeats_itself_whatever_the_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows, warps, heads, tiles in ((4, 1, 1, 0), (16, 4, 1, 0), (8, 1, 2, 0), (8, 2, 1, 2)):
        numbers = {"block_p": rows, "num_warps": warps, "heads": heads, "tiles": tiles}
        config = {"schedule": "step", "kernels": {"state_step": numbers}}
        monkeypatch.setattr(decode_paths, "decode_config_for", lambda *_, config=config: config)
        args = draw(Case(headdim=16, dstate=32, state="int8", options=("seed",)), device)
        ops.selective_state_update(**args)
        found.append(args["state"])
    # the sum over dstate does not enter the state
    assert all(torch.equal(found[0], other) for other in found[1:])
    other = draw(Case(headdim=16, dstate=32, state="int8", options=("seed",)), device)
    ops.selective_state_update(**other | {"rng_seed": 5})
    assert not torch.equal(found[0], other["state"])


@pytest.mark.gpu
@pytest.mark.parametrize("state", ["float8", "int8"])
@pytest.mark.parametrize("options", [MODEL, EVERYTHING], ids=["model", "everything"])
def test_instructions_for_8_bits_do_what_the_portable_ones_do(
    options: tuple[str, ...], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(3, 0, 8, 64, 128, 2, "bfloat16", state, options)
    found = []
    for portable in (False, True):
        if portable:
            monkeypatch.setattr(launcher, "format_on", lambda _, dtype: storage.FORMATS[dtype])
            monkeypatch.setattr(launcher, "_recipes", type(launcher._recipes)())
        args = draw(case, "cuda")
        found.append((ops.selective_state_update(**args), args["state"].view(torch.uint8), args["state_scale"]))
    for native, portable in zip(*found, strict=True):
        assert torch.equal(native, portable)


@pytest.mark.gpu
@pytest.mark.parametrize("replayed", [False, True])
def test_in_a_graph(replayed: bool) -> None:
    """A captured step, replayed with other inputs and another seed in the same memory."""
    case = Case(4, 0, 8, 64, 128, 1, "bfloat16", "int8", (*MODEL, "slots"))
    args = draw(case, "cuda")
    seed = torch.tensor([1], device="cuda")
    twin = {name: t.clone() if isinstance(t, torch.Tensor) else t for name, t in args.items()}
    caches = [ops.Replay.allocate(a["state"], 3, 1) if replayed else None for a in (args, twin)]
    step = lambda a, cache: ops.selective_state_update(**a, rng_seed=seed, replay=cache)  # noqa: E731
    step(args, caches[0]), step(twin, caches[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(args, caches[0])
    for number in range(5):
        seed.fill_(number)
        x = torch.randn_like(args["x"])
        args["x"].copy_(x), twin["x"].copy_(x)
        graph.replay()
        assert torch.equal(y, step(twin, caches[1]))
        assert torch.equal(args["state"], twin["state"])


@pytest.mark.gpu
def test_compiled() -> None:
    torch._dynamo.reset()
    args = draw(Case(4, 0, 8, 64, 128, 1, "bfloat16", "bfloat16", ("expanded", *MODEL)), "cuda")
    twin = {name: t.clone() if name == "state" else t for name, t in args.items()}
    compiled = torch.compile(lambda **a: ops.selective_state_update(**a), fullgraph=True)
    torch.testing.assert_close(compiled(**args), ops.selective_state_update(**twin))
    torch.testing.assert_close(args["state"], twin["state"])


@pytest.mark.gpu
def test_slots_are_checked_on_a_gpu_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    args = draw(Case(options=("slots",)), "cuda")
    args["state_batch_indices"][:] = 1
    with pytest.raises(ops.SlotError):
        ops.selective_state_update(**args, validate_slots=True)
    monkeypatch.setenv("SSDGEN_CHECK_SLOTS", "1")
    with pytest.raises(ops.SlotError):
        ops.selective_state_update(**args)
