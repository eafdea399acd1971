"""How an extent is cut into tiles that the tensor core takes.  -> lower, launchers, space"""

from __future__ import annotations

SMALLEST = 16  # the least extent of a matrix operand that every supported tensor core takes
LARGEST = 256  # the widest tile of a dimension that is kept in registers

EQUAL = (1, 3, 5)  # tiles of one size that a long row may be cut into

CONSUMER_ROWS = 64  # rows that a group of four warps multiplies: a chunk, and a tile of headdim


def next_power_of_two(extent: int) -> int:
    return 1 << max(0, extent - 1).bit_length()


def cut(extent: int, largest: int = LARGEST) -> tuple[int, ...]:
    """Tile sizes that cover `extent`: one power of two, or two when that pads less (96 = 64 + 32, 80 = 64 + 16).

    Every tile is at least 16 wide; a tile that overhangs is masked.  Raises ValueError beyond two tiles of `largest`.
    """
    if extent > 2 * largest:
        raise ValueError(f"extent {extent} is larger than two tiles of {largest}; split it over programs instead")
    whole = max(SMALLEST, next_power_of_two(extent))
    if whole <= largest and whole in (extent, SMALLEST):
        return (whole,)
    first = whole // 2
    second = max(SMALLEST, next_power_of_two(extent - first))
    return (first, second) if first + second < whole or whole > largest else (whole,)


def equal_tile(extent: int, count: int) -> int:
    """Size of `count` equal tiles that cover `extent`: a power of two, at least 16."""
    return max(SMALLEST, next_power_of_two(-(-extent // count)))


def equal_count(extent: int, most: int) -> int:
    """How many equal tiles, of EQUAL and at most so many, cover `extent` with the least padding; few if as little."""
    return min((n for n in EQUAL if n <= most), key=lambda n: (n * equal_tile(extent, n), n))


def consumer_tiles(dstate: int) -> tuple[int, int]:
    """(extent, number) of the equal tiles of dstate that a consumer keeps in registers: two above 128."""
    count = 1 if dstate <= LARGEST // 2 else 2
    return max(SMALLEST, next_power_of_two(-(-dstate // count))), count


def power_tiles(extent: int) -> tuple[int, ...]:
    """Tiles that cover `extent` where no matrix unit asks for a width: one power of two, or two.

    Only the second of two may overhang: 96 = 64 + 32, 100 = 64 + 64, 5 = 4 + 1.
    """
    whole = next_power_of_two(extent)
    return (whole,) if whole == extent else (whole // 2, next_power_of_two(extent - whole // 2))
