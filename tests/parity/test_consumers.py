"""Kernels that are specialised by warps, which Hopper alone runs: every option, sizes that overhang, repeated runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.parity import configs
from tests.parity.cases import ALONE, TOGETHER, Case, draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]

BASE = Case(2, 257, 3, 64, 64, 1, "bfloat16", ("D", "dt_bias", "dt_softplus"))


def config(
    consumers: int,
    segment: int = 0,
    joined: bool = False,
    stages: int = 2,
    maxnreg: int = 0,
    terms: int | str = 2,
    ahead: bool = False,
    aside: bool = False,
) -> dict[str, Any]:
    numbers = {"consumers": consumers, "num_stages": stages, "maxnreg": maxnreg, "terms": terms, "ahead": ahead}
    found: dict[str, Any] = {"schedule": "single_pass", "chunk": 64, "prepared": True, "aside": aside}
    found["kernels"] = {"single_pass": numbers, "segment_state": numbers}
    if segment:
        found |= {"schedule": "segments", "segment": segment, "joined": joined, "state_dtype": "float32"}
    return found


SCHEDULES = {
    "walk": config(2),
    "two programs": config(1, maxnreg=128),
    "joined": config(2, segment=64, joined=True),
    "passed": config(2, segment=128),
    "one term": config(2, terms=1),
    "joined in one term": config(1, segment=64, joined=True, terms=1),
    "two programs, ahead": config(1, maxnreg=128, ahead=True),
    "joined in one term, ahead": config(1, segment=64, joined=True, terms=1, ahead=True),
    "joined, steps aside": config(1, segment=64, joined=True, ahead=True, aside=True),
    "ahead, steps aside": config(1, maxnreg=128, ahead=True, aside=True),
    "diagonal apart": config(2, terms="apart"),
    "diagonal apart, ahead": config(1, maxnreg=128, terms="apart", ahead=True),
    "joined, diagonal apart, steps aside": config(1, segment=64, joined=True, terms="apart", ahead=True, aside=True),
    "one term, ahead, steps aside": config(1, segment=128, stages=3, terms=1, ahead=True, aside=True),
}


# headdim, dstate
OVERHANGING = [(64, 16), (64, 96), (80, 128), (128, 256), (256, 200)]


def overhanging(headdim: int, dstate: int, consumers: int) -> list[tuple[dict[str, Any], Case]]:
    case = replace(BASE, headdim=headdim, dstate=dstate, batch=1)
    hows = [config(consumers, stages=1), config(consumers, 64, True, stages=1), config(consumers, stages=1, terms=1)]
    hows += [config(consumers, stages=1, terms="apart")]
    ahead = [config(consumers, ahead=True, aside=aside) for aside in (False, True)]
    ahead += [config(consumers, terms="apart", ahead=True, aside=True)]
    hows += ahead if dstate <= 128 else []
    return [(how, case) for how in hows]


# with them every kernel that ships is launched
CALLS = [
    *((how, BASE) for how in SCHEDULES.values()),
    *(call for sizes in OVERHANGING for consumers in (1, 2) for call in overhanging(*sizes, consumers)),
]


def launched(how: dict[str, Any], case: Case) -> list[str]:
    """The kernels that a config launches, in order."""
    return [launch.kernel.__name__ for launch in configs.launches(how, draw(case).on("meta")).launches]


def verify(how: dict[str, Any], case: Case) -> None:
    """Right, and by the kernels that were meant."""
    names = launched(how, case)
    assert any("consumer" in name for name in names), names
    configs.verify(how, case, "cuda")


@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("options", [options for options in (*ALONE, *TOGETHER) if options], ids="-".join)
def test_every_option(options: tuple[str, ...], how: str) -> None:
    # of 8 heads every row of a wider projection is aligned, as descriptors want it
    verify(SCHEDULES[how], replace(BASE, nheads=8 if "strided" in options else 3, options=options))


@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("seqlen", [1, 7, 63, 64, 65, 128, 300])
def test_every_length(seqlen: int, how: str) -> None:
    configs.verify(SCHEDULES[how], replace(BASE, seqlen=seqlen), "cuda")


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize(("headdim", "dstate"), OVERHANGING)
def test_sizes_that_overhang(headdim: int, dstate: int, consumers: int) -> None:
    for how, case in overhanging(headdim, dstate, consumers):
        verify(how, case)


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize(("nheads", "ngroups"), [(1, 1), (6, 2), (6, 6), (10, 2), (9, 3)])
def test_heads_that_do_not_pair_up(nheads: int, ngroups: int, consumers: int) -> None:
    verify(config(consumers), replace(BASE, nheads=nheads, ngroups=ngroups))
    verify(config(consumers, 64, True), replace(BASE, nheads=nheads, ngroups=ngroups))
    verify(config(consumers, ahead=True), replace(BASE, nheads=nheads, ngroups=ngroups))
    verify(config(consumers, 64, True, ahead=True, aside=True), replace(BASE, nheads=nheads, ngroups=ngroups))
    verify(config(consumers, terms="apart", ahead=True, aside=True), replace(BASE, nheads=nheads, ngroups=ngroups))


def test_fp16() -> None:
    verify(config(2, stages=3), replace(BASE, dtype="float16", options=("D", "dt_softplus", "initial_states")))


@pytest.mark.parametrize(
    "case",
    [
        replace(BASE, dtype="float32"),
        replace(BASE, headdim=24),
        replace(BASE, headdim=64, dstate=300),
        replace(BASE, batch=1, options=("cu_seqlens", "D")),
    ],
    ids=str,
)
def test_what_they_do_not_take_runs_elsewhere(case: Case) -> None:
    assert not any("consumer" in name for name in launched(config(2), case))
    configs.verify(config(2), case, "cuda")


def test_runs_repeat_bit_by_bit() -> None:
    """Many programs, many times: a missing barrier shows as a difference now and then."""
    call = draw(Case(2, 1024, 32, 64, 128, 1, "bfloat16", ("D", "dt_softplus"))).on("cuda")
    for how in SCHEDULES.values():
        first = configs.run(how, call)
        for _ in range(50):
            again = configs.run(how, call)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None)
