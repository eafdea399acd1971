"""The spaces of passes that are one kernel: axes with reasons, configs there and back, what is legal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from ssdgen import gpus
from ssdgen.plan.conv_space import TileSpace, UpdateSpace, WalkSpace
from ssdgen.plan.decode_space import StepSpace
from ssdgen.plan.kernel_space import KernelSpace, powers
from ssdgen.plan.norm_space import RowsSpace
from ssdgen.plan.problem import Problem

CONVS = [Problem(8, 2048, 5376, 1, 4), Problem(1, 7, 3, 1, 2, dtype="float32"), Problem(1, 131072, 10240, 1, 4)]
NORMS = [Problem(1, 16384, 1, 5120, 1), Problem(1, 3, 8, 640, 1), Problem(1, 70000, 2, 7, 1, dtype="float32")]
STEPS = [Problem(256, 1, 80, 64, 128, dtype="int8"), Problem(1, 1, 3, 12, 20, dtype="float32")]
SPACES: list[tuple[KernelSpace, list[Problem]]] = [
    *((WalkSpace(backward=each), CONVS) for each in (False, True)),
    *((TileSpace(backward=each), CONVS) for each in (False, True)),
    (UpdateSpace(), CONVS),
    *((RowsSpace(backward=each), NORMS) for each in (False, True)),
    (StepSpace(), STEPS),
]
CASES = [
    pytest.param(space, problem, id=f"{space.kernel}{'_backward' if getattr(space, 'backward', False) else ''}-{at}")
    for space, problems in SPACES
    for at, problem in enumerate(problems)
]
GPUS = [gpus.find(name) for name in ("h200", "rtx3090", "mi300x")]


def configs(space: KernelSpace, problem: Problem, gpu: gpus.Gpu) -> Iterator[dict]:
    """Every config of a space, legal or not."""
    axes = space.axes(space.schedule, problem, gpu)
    for values in product(*(axis.values for axis in axes)):
        yield space.config(space.schedule, {axis.name: value for axis, value in zip(axes, values, strict=True)})


@pytest.mark.parametrize(("space", "problem"), CASES)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_space(space: KernelSpace, problem: Problem, gpu: gpus.Gpu) -> None:
    axes = space.axes(space.schedule, problem, gpu)
    assert len({axis.name for axis in axes}) == len(axes)
    for axis in axes:
        assert axis.values and list(axis.values) == sorted(set(axis.values)) and len(axis.why) > 20
    every = list(configs(space, problem, gpu))
    reasons = [space.legal(config, problem, gpu) for config in every]
    assert None in reasons or space.starts(problem, gpu) == ()
    assert all(reason is None or len(reason) > 20 for reason in reasons)
    for config in (*every[:: max(1, len(every) // 50)], space.minimal(space.schedule, problem)):
        flat = space.flatten(config)
        assert space.config(flat.pop("schedule"), flat) == config
    starts = space.starts(problem, gpu)
    assert all(config in every and space.legal(config, problem, gpu) is None for config in starts)
    # a plain config that is legal by itself, whatever the bounds say
    assert space.legal(space.minimal(space.schedule, problem), problem, gpu) is None


@pytest.mark.parametrize("space", [space for space, _ in SPACES], ids=lambda space: space.kernel)
def test_a_schedule_that_is_not_there(space: KernelSpace) -> None:
    for ask in (
        lambda: space.axes("no", CONVS[0], GPUS[0]),
        lambda: space.config("no", {}),
        lambda: space.minimal("no", CONVS[0]),
    ):
        with pytest.raises(ValueError, match=f"unknown schedule 'no'; there is {space.schedule}"):
            ask()


def test_what_is_not_worth_compiling_says_why() -> None:
    walk, rows = WalkSpace(), RowsSpace(backward=True)

    def reason(space: KernelSpace, problem: Problem, **numbers: int) -> str | None:
        config = {"schedule": space.schedule, "kernels": {space.kernel: numbers}}
        return space.legal(config, problem, GPUS[0])

    assert reason(walk, CONVS[0], block_d=1024, part=64, num_warps=1) == (
        "a thread would load 64 bytes of a token, not 4 to 16"
    )
    assert reason(rows, NORMS[0], block_t=32, tiles=1, num_warps=4, programs=132) == (
        "a thread would have 2048 channels of each operand, not 2 to 24"
    )
    assert reason(rows, NORMS[1], block_t=1, tiles=1, num_warps=4, programs=132) == (
        "132 programs of 1 rows are more than 3 rows"
    )
    step = {"block_p": 16, "num_warps": 2, "tiles": 4}
    assert reason(StepSpace(), STEPS[0], **step) is None
    assert "of one head" in (reason(StepSpace(), STEPS[0], **step, heads=2) or "")
    assert "do not divide headdim 64" in (reason(StepSpace(), STEPS[0], **{**step, "block_p": 32}) or "")
    wide = Problem(1, 1, 80, 64, 128, dtype="float32")
    assert "registers" in (reason(StepSpace(), wide, **{**step, "num_warps": 1}) or "")
    assert "several warps" in (reason(UpdateSpace(), CONVS[0], block_d=128, num_warps=2) or "")
    # two tiles of 640 channels are 640, one is 1024: at four rows and one warp only one of them fits a thread
    assert reason(RowsSpace(), NORMS[1], block_t=2, tiles=2, num_warps=1) is None
    assert reason(RowsSpace(), NORMS[1], block_t=4, tiles=1, num_warps=1) is not None


def test_fingerprints_tell_spaces_apart() -> None:
    assert len({space.fingerprint() for space, _ in SPACES}) == len(SPACES)


def test_a_sum_that_starts_early_is_an_axis_of_passes_that_end_with_one() -> None:
    """On GPUs that can; a config without it says what it said before, and the fingerprint is that of before."""
    for space, problem in ((space, problems[0]) for space, problems in SPACES):
        offered = {axis.name: axis.values for axis in space.axes(space.schedule, problem, GPUS[0])}
        name = f"{space.kernel}.sum_early"
        assert offered.get(name) == ((False, True) if getattr(space, "backward", False) else None)
        if name in offered:
            (elsewhere,) = (a for a in space.axes(space.schedule, problem, GPUS[1]) if a.name == name)
            assert elsewhere.values == (False,)
            plain = space.minimal(space.schedule, problem)
            flat = {**space.flatten(plain), name: False}
            assert space.config(flat.pop("schedule"), flat) == plain
            early = space.config(space.schedule, {**flat, name: True})
            assert early["kernels"][space.kernel]["sum_early"] is True
            assert space.legal(early, problem, GPUS[0]) == space.why_not(early["kernels"][space.kernel], problem)


def test_powers() -> None:
    assert powers(1, 8) == (1, 2, 4, 8) and powers(32, 32) == (32,) and powers(16, 100) == (16, 32, 64)
