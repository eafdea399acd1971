"""What slices that a limit of memory asks for run with: segments and parts that suit them, and the same gradients."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops import backward_slices, select
from ssdgen.mamba2_ops.launching import Launch, Plan, Sizes
from ssdgen.mamba2_ops.match import Gpu
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.mamba2_ops.slices import Cut, cut_into, pieces_of
from tests.parity.cases import Case
from tests.parity.test_backward import CHUNKS, EVERYTHING, WALK, on_devices, run, verify
from tests.parity.test_backward_consumers import BASE, config, walked
from tests.parity.test_backward_slices import count, interpreted, kept, launches

H200 = Gpu("NVIDIA H200", "sm90", 132)
# b,L,H,P,N,G, and limits of what is kept, MB, at which heads or rows are cut
SIZES = {
    (1, 16384, 80, 64, 128, 1): (420, 324, 200, 151),
    (1, 2048, 80, 64, 128, 1): (60, 51, 45, 33),
    (1, 131072, 80, 64, 128, 1): (3000, 2585, 1199),
    (4, 4096, 32, 128, 256, 2): (493, 341, 230),
    (4, 4096, 64, 64, 64, 1): (90, 75, 66),
    (8, 2048, 24, 64, 128, 1): (80, 65, 50),
}
LIMITS = [(sizes, limit) for sizes, limits in SIZES.items() for limit in limits]
WALKS = ("chunk_states", "chunk_adjoints", "reverse_walk")


@pytest.fixture
def on_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_slices, "_multiprocessors", lambda device: H200.sms)


def planned(sizes: tuple[int, ...], limit_mb: int = 0) -> Plan:
    """The launches that the records of an H200 ask for, under a limit."""
    how = select.choose(Problem(*sizes, "bfloat16"), H200, "backward").config
    return launches(how, Case(*sizes, "bfloat16", ("D", "dt_bias", "dt_softplus")), limit=limit_mb * 10**6)


def walks(launch: Launch) -> int:
    """Side by side: of each consumer of a program where warps are specialised."""
    consumers = re.search(r"_(\d)consumers?$", launch.kernel.__name__)
    return prod(launch.grid) * (int(consumers[1]) if consumers else 1)


def fewest_walks(plan: Plan) -> int:
    return min(walks(launch) for launch in plan.launches if launch.kernel.__name__.startswith(WALKS))


@pytest.mark.usefixtures("on_an_h200")
@pytest.mark.parametrize("sizes", [sizes for sizes in SIZES if sizes[0] * sizes[1] > 2048], ids=str)
def test_walks_of_slices_fill_as_those_of_the_whole_do(sizes: tuple[int, ...]) -> None:
    """One for every second multiprocessor at least, or nothing is left for a segment more."""
    assert fewest_walks(planned(sizes)) > H200.sms // 2
    for limit in SIZES[sizes]:
        plan = planned(sizes, limit)
        assert count(plan, "chunk_states") > 1
        left = limit * 10**6 - kept(plan)
        assert fewest_walks(plan) > H200.sms // 2 or left < 2 * between(plan), limit


def between(plan: Plan) -> int:
    """Bytes of what enters and leaves one segment more."""
    sizes = plan.tensors["x"].shape  # type: ignore[union-attr]
    return 2 * 2 * sizes[0] * sizes[2] * sizes[3] * plan.tensors["B"].shape[3]  # type: ignore[union-attr]


@pytest.mark.usefixtures("on_an_h200")
def test_one_long_row() -> None:
    """Four slices of 20 heads: 13 segments for two walks on a multiprocessor where the whole has three."""
    plan = planned((1, 16384, 80, 64, 128, 1), 324)
    for name in ("chunk_states", "chunk_adjoints"):
        assert [walks(each) for each in plan.launches if each.kernel.__name__.startswith(name)] == 4 * [260]
    assert count(plan, "segment_state") == count(plan, "both_passing") == 1
    assert plan.scratch["summary"][0][1] == 13
    # eight slices have ten heads each, and the limit has room for 12 segments
    assert planned((1, 16384, 80, 64, 128, 1), 151).scratch["summary"][0][1] == 12


@pytest.mark.usefixtures("on_an_h200")
@pytest.mark.parametrize(("sizes", "limit"), LIMITS, ids=str)
def test_what_lies_between_segments_is_within_the_limit(sizes: tuple[int, ...], limit: int) -> None:
    assert kept(planned(sizes, limit)) <= limit * 10**6


@pytest.mark.usefixtures("on_an_h200")
def test_parts_go_by_the_rows_of_a_slice() -> None:
    """96 chunks leave a quarter of 132 multiprocessors idle: four parts of each take three turns of 20 heads."""
    plan = planned((8, 2048, 80, 64, 128, 1), 333)
    grids = [each.grid for each in plan.launches if each.kernel.__name__.startswith("chunk_gradients")]
    assert grids == [(4, 32, 3), (4, 32, 3), (4, 32, 2)]


def test_without_a_limit_a_config_is_what_it_says() -> None:
    case = Case(1, 16384, 80, 64, 128, 1, "bfloat16", ("D",))
    how = {**config(2, segment=5504), "slices": 4}
    assert launches(how, case).scratch["summary"][0][1] == 3


# ---- the gradients stay those of the whole

ROWS = Case(batch=2, seqlen=149, nheads=2, headdim=16, dstate=16, options=EVERYTHING)
# a row of ten chunks, states and adjoints, and what enters and leaves two segments of all rows
LIMIT = 2 * 4 * (10 * 2 + 2 * 2 * 2) * 256


@on_devices
@pytest.mark.parametrize("how", [CHUNKS, WALK], ids=["chunks", "walk"])
@pytest.mark.parametrize("segment", [0, 80])
def test_every_gradient_with_segments_of_slices(
    how: dict[str, Any], segment: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed sequences, states at both ends, a gate: rows one by one, in two segments where the config has none."""
    monkeypatch.setattr(backward_slices, "_multiprocessors", lambda device: 8)
    how = {**how, "segment": segment} if segment else how
    plan = launches(how, ROWS, limit=LIMIT)
    assert count(plan, "chunk_states") == 2 and plan.scratch["summary"][0][1] == 2 and kept(plan) <= LIMIT
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", str(LIMIT))
    verify(how, ROWS, device)
    if segment:
        return
    first, second = (run(how, ROWS, device)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


SPECIALISED = {
    "chunks": config(2),
    "chunks-1consumer": config(1, maxnreg=128),
    "walk": walked(),
    "left": walked(left=1),
}
HEADS = {
    "heads": (replace(BASE, batch=1, nheads=8), 2),
    "heads of groups": (replace(BASE, batch=1, nheads=8, ngroups=2), 4),
    "rows": (replace(BASE, batch=2, nheads=2), 2),
}


@pytest.mark.parametrize("how", SPECIALISED.values(), ids=SPECIALISED)
@pytest.mark.parametrize(("case", "wanted"), HEADS.values(), ids=HEADS)
def test_plans_interpreted_with_segments_of_slices(
    case: Case, wanted: int, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every launch in float64, on the parts of tensors that it would get: the gradients of the whole."""
    case = replace(case, seqlen=8 * 64 - 3, dstate=16)
    whole = interpreted(how, case)

    def in_slices(self: backward_slices.Slicing, sizes: Sizes, *_: Any) -> Cut:
        # states this small are less than the parts of d_B and d_C: no limit asks for these slices
        sizes.names.update(fill=True, room=1 << 30)
        return cut_into(wanted, case.batch, pieces_of(case.nheads, case.ngroups))

    monkeypatch.setattr(backward_slices, "_multiprocessors", lambda device: 16)
    monkeypatch.setattr(backward_slices.Slicing, "cut", in_slices)
    plan = launches(how, case)
    assert count(plan, "chunk_states") == wanted and plan.scratch["summary"][0][1] == 2
    cut = interpreted(how, case)
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(cut[name], value, rtol=1e-9, atol=1e-9, msg=name)
