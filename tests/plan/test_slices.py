"""Slices of rows and heads: they cover everything once, are as few as asked for, and share nothing but a group."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdgen import gpus
from ssdgen.plan import backward_space as space
from ssdgen.plan.problem import Problem
from ssdgen.plan.slices import Cut, cut_into, parts_of_slice, pieces_of, segments_of_slice, slices, within

H100 = gpus.find("h100")
MODEL = Problem(8, 2048, 80, 64, 128)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40))
def test_slices_cover_every_head_of_every_row_once(batch: int, ngroups: int, each: int, wanted: int) -> None:
    nheads = ngroups * each
    pieces = pieces_of(nheads, ngroups)
    cut = cut_into(wanted, batch, pieces)
    found = slices(cut, batch, nheads, ngroups)
    covered = [
        (row, head) for part in found for row in range(*_range(part.rows)) for head in range(*_range(part.heads))
    ]
    assert sorted(covered) == sorted(product(range(batch), range(nheads)))
    assert len(found) >= min(wanted, batch * nheads) or cut == Cut(1, pieces[-1])
    for part in found:
        heads, groups = range(*_range(part.heads)), range(*_range(part.groups))
        assert {head // each for head in heads} == set(groups)
        assert part.shares == 1 or (len(groups) == 1 and len(heads) * part.shares == each)


def _range(part: tuple[int, int]) -> tuple[int, int]:
    return part[0], part[0] + part[1]


@pytest.mark.parametrize(
    ("wanted", "cut"), [(1, Cut(8)), (2, Cut(4)), (3, Cut(3)), (8, Cut(1)), (9, Cut(1, 2)), (24, Cut(1, 4))]
)
def test_rows_first(wanted: int, cut: Cut) -> None:
    assert cut_into(wanted, 8, pieces_of(80, 1)) == cut


def test_groups_before_the_heads_of_one() -> None:
    assert pieces_of(6, 2) == [1, 2, 6] and pieces_of(12, 4) == [1, 2, 4, 12] and pieces_of(7, 1) == [1, 7]
    parts = slices(Cut(1, 4), 1, 8, 2)
    # the first share of each group, then the second
    assert [(part.groups[0], part.share) for part in parts] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_as_few_as_a_limit_allows() -> None:
    def kept(cut: Cut) -> int:
        return 100 * cut.rows // cut.pieces

    pieces = pieces_of(80, 1)
    for limit, cut in ((800, Cut(8)), (799, Cut(4)), (300, Cut(3)), (100, Cut(1)), (60, Cut(1, 2)), (0, Cut(1, 80))):
        assert within(limit, Cut(8), 8, pieces, kept) == cut
    # never larger ones than were asked for
    assert within(800, Cut(2), 8, pieces, kept) == Cut(2)
    # what they share out may take more than they save
    assert within(0, Cut(8), 8, pieces, lambda cut: kept(cut) + 30 * cut.pieces) == Cut(1, 2)


@given(st.integers(1, 400), st.integers(1, 3000), st.integers(1, 20), st.integers(1, 160))
def test_segments_give_every_multiprocessor_its_walks(walks: int, nchunks: int, own: int, sms: int) -> None:
    count = segments_of_slice(walks, nchunks, own, sms)
    assert count >= own
    if count > own:
        # no more than run at once, and none so short that its state is what it costs
        assert count * walks <= 2 * sms and nchunks // count >= 4
        assert (count + 1) * walks > 2 * sms or nchunks // (count + 1) < 4
    elif own == 1:
        assert 2 * walks > sms or nchunks < 8 or 2 * sms < 2 * walks
    else:
        assert (own + 1) * walks > 2 * sms or nchunks // (own + 1) < 4


@pytest.mark.parametrize(
    ("walks", "nchunks", "own", "count"),
    [
        # 80 heads of 16384 tokens in four slices, in two, and whole; eight slices of 2048 tokens
        *((20, 256, 3, 13), (40, 256, 3, 6), (80, 256, 3, 3), (10, 32, 1, 8)),
        # a row of 32 heads in two tiles each; of 64 heads; of 80, where walks of their own cost more than they bring
        *((64, 64, 1, 4), (64, 64, 1, 4), (80, 32, 1, 1), (128, 64, 1, 1)),
    ],
)
def test_segments_of_slices(walks: int, nchunks: int, own: int, count: int) -> None:
    assert segments_of_slice(walks, nchunks, own, 132) == count


@pytest.mark.parametrize(
    ("heads", "shares", "across", "parts"),
    [
        # one slice, and slices of four, three, two and one rows of 32 chunks
        *((80, 1, 256, 1), (80, 1, 128, 1), (80, 1, 96, 4), (80, 1, 64, 2), (80, 1, 32, 4)),
        # a half, a quarter and an eighth of the heads of one row, and of one of 256 chunks
        *((40, 2, 32, 4), (20, 4, 32, 4), (10, 8, 32, 2), (20, 4, 256, 1)),
    ],
)
def test_parts_of_slices(heads: int, shares: int, across: int, parts: int) -> None:
    assert parts_of_slice(heads, shares, across, 132) == parts


def test_the_axis_ends_where_states_are_few() -> None:
    def offered(problem: Problem, name: str) -> tuple:
        return next(axis.values for axis in space.axes("chunks", problem, H100) if axis.name == name)

    assert offered(MODEL, "slices") == (1, 2, 4, 8, 16)
    assert offered(Problem(1, 2048, 80, 64, 128), "slices") == (1, 2, 4)
    assert offered(Problem(1, 512, 24, 64, 64), "slices") == (1,)
    # two slices of seven heads are seven, and so are eight
    assert offered(Problem(1, 65536, 7, 64, 128), "slices") == (1, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"slices": 0}, "slices is 0"),
        ({"slices": "2"}, "slices is '2'"),
        ({"slices": 16}, "walks of 40 programs"),
        ({"slices": 8, "parts": 8}, None),
        ({"slices": 16, "parts": 16, "segment": 256}, "16 parts do not share out the 40 heads"),
        ({"slices": 16, "segment": 512}, None),
        ({"slices": 2, "segment": 64}, "nothing is kept"),
    ],
    ids=str,
)
def test_what_is_not_legal_says_why(changes: dict, reason: str | None) -> None:
    start = space.starts(MODEL, H100)[0]
    found = space.legal({**start, **changes}, MODEL, H100)
    assert found is None if reason is None else found is not None and reason in found


def test_a_config_without_them_has_one() -> None:
    (start, *_) = space.starts(MODEL, H100)
    assert "slices" not in start and space.flatten(start)["slices"] == 1
    flat = {**space.flatten(start), "slices": 4}
    found = space.config(flat.pop("schedule"), flat)
    assert found == {**start, "slices": 4} and space.flatten(found)["slices"] == 4
    assert any(config.get("slices") == 2 for config in space.starts(MODEL, H100))


@pytest.mark.parametrize(
    ("sizes", "count", "segment", "parts"),
    [
        ((1, 16384, 80, 64, 128, 1), 4, 1024, 1),
        ((1, 2048, 80, 64, 128, 1), 4, 256, 4),
        ((8, 2048, 80, 64, 128, 1), 2, None, 1),
        ((8, 2048, 80, 64, 128, 1), 4, None, 2),
        ((4, 4096, 32, 128, 256, 2), 4, 1024, None),
    ],
    ids=str,
)
def test_a_search_begins_with_what_suits_a_slice(
    sizes: tuple, count: int, segment: int | None, parts: int | None
) -> None:
    problem = Problem(*sizes)
    start = space.starts(problem, H100)[0]
    found = space.in_slices(start, count, problem, H100)
    assert (found["slices"], found.get("segment"), found.get("parts")) == (count, segment, parts)
    assert space.legal(found, problem, H100) is None
    # segments have walks of their own, as the others have them
    kernels = found["kernels"]
    assert ("segment_state" in kernels) == (segment is not None)
    assert kernels["chunk_states"]["consumers"] and found["kernels"].keys() >= start["kernels"].keys()


def test_plain_walks_of_a_slice_of_heads_are_specialised() -> None:
    problem = Problem(1, 16384, 80, 64, 128)
    start = space.starts(problem, H100)[0]
    plain = {name: {"block_p": 64, "num_warps": 4, "num_stages": 2} for name in ("chunk_states", "chunk_adjoints")}
    found = space.in_slices({**start, "kernels": {**start["kernels"], **plain}}, 4, problem, H100)
    assert found["kernels"]["chunk_states"]["consumers"] == found["kernels"]["segment_adjoint"]["consumers"] == 1
