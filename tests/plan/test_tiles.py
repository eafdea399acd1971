"""Tiles cover an extent, fit the tensor cores and pad as little as two tiles can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdgen.plan.tiles import SMALLEST, cut, next_power_of_two

EXTENTS = st.integers(1, 512)


@pytest.mark.parametrize(
    ("extent", "tiles"),
    [
        (1, (16,)),
        (16, (16,)),
        (17, (32,)),
        (33, (32, 16)),
        (64, (64,)),
        (80, (64, 16)),
        (96, (64, 32)),
        (97, (128,)),
        (128, (128,)),
        (160, (128, 32)),
        (256, (256,)),
        (257, (256, 16)),
        (512, (256, 256)),
    ],
)
def test_known_extents(extent: int, tiles: tuple[int, ...]):
    assert cut(extent) == tiles


@given(EXTENTS)
def test_tiles_cover_and_fit(extent: int):
    tiles = cut(extent)
    assert sum(tiles) >= extent
    assert all(SMALLEST <= tile <= 256 and tile == next_power_of_two(tile) for tile in tiles)
    # the first of two never overhangs, and the second has something to do
    assert len(tiles) == 1 or tiles[0] < extent


@given(EXTENTS)
def test_no_other_two_tiles_pad_less(extent: int):
    powers = [2**k for k in range(4, 9)]
    possible = [one for one in powers if one >= extent]
    possible += [one + other for one in powers for other in powers if one + other >= extent]
    assert sum(cut(extent)) == min(possible)


@given(EXTENTS)
def test_one_tile_where_two_do_not_pad_less(extent: int):
    whole = max(SMALLEST, next_power_of_two(extent))
    assert len(cut(extent)) == 1 or sum(cut(extent)) < whole or whole > 256


@given(st.integers(1, 1024), st.sampled_from([16, 32, 64, 128]))
def test_no_tile_is_larger_than_allowed(extent: int, largest: int):
    if extent > 2 * largest:
        with pytest.raises(ValueError, match=f"extent {extent} is larger than two tiles of {largest}"):
            cut(extent, largest)
    else:
        tiles = cut(extent, largest)
        assert max(tiles) <= largest
        assert len(tiles) <= 2
        assert sum(tiles) >= extent


@given(st.integers(1, 10**6))
def test_next_power_of_two(extent: int):
    power = next_power_of_two(extent)
    assert power >= extent > power // 2
    assert power & (power - 1) == 0
