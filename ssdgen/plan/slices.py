"""In which slices a backward pass goes through its rows and heads, one after the other.  -> backward_space, launchers

The states of a slice and their adjoints take the place of those of the slice before: less is kept at a time, and what
fits the L2 cache stays there.  Rows of the batch are independent, so they are cut first; then groups, which share
nothing but the sequence; then the heads of a group, whose slices each leave a part of d_B and d_C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# walks side by side on a multiprocessor: programs of one share it, and a program of two has it alone
WALKS = 2
# where the whole has no segments, with fewer for a slice the walks that make their states cost more than they bring
LEAST_SEGMENTS = 4
# chunks of a segment: with fewer its state costs more than a shorter walk brings
LEAST_CHUNKS = 4
# heads of a chunk that take as long to read and write as its part of d_B and d_C in float32, written and read again
PART = 2.3


@dataclass(frozen=True)
class Cut:
    """rows: of a slice, the last one may have fewer.  pieces: slices of the heads for the same rows, equally large."""

    rows: int
    pieces: int = 1


@dataclass(frozen=True)
class Slice:
    """(first, count) of its rows, heads and groups, and which of the slices that share out a group's heads it is."""

    rows: tuple[int, int]
    heads: tuple[int, int]
    groups: tuple[int, int]
    share: int = 0
    shares: int = 1


def pieces_of(nheads: int, ngroups: int) -> list[int]:
    """The counts in which heads can be cut: whole groups, or equally many heads of one."""
    heads = nheads // ngroups
    each = [count for count in range(1, ngroups + 1) if ngroups % count == 0]
    return each + [ngroups * count for count in range(2, heads + 1) if heads % count == 0]


def cut_into(wanted: int, batch: int, pieces: list[int]) -> Cut:
    """At least so many slices, as far as there are as many: of rows, then of heads.  batch, wanted: >= 1."""
    rows = next(rows for rows in _rows(batch) if -(-batch // rows) >= min(wanted, batch))
    each = -(-wanted // -(-batch // rows))
    return Cut(rows, next((count for count in pieces if count >= each), pieces[-1]))


def within(limit: int, least: Cut, batch: int, pieces: list[int], kept: Callable[[Cut], int]) -> Cut:
    """The first with no more than `limit` bytes kept, from `least` on to smaller slices; else that with the fewest."""
    ways = [Cut(rows, least.pieces) for rows in _rows(batch) if rows <= least.rows]
    ways += [Cut(1, count) for count in pieces if count > least.pieces]
    return next((way for way in ways if kept(way) <= limit), None) or min(ways, key=kept)


def segments_of_slice(walks: int, nchunks: int, own: int, multiprocessors: int) -> int:
    """In how many segments a slice of so many walks along nchunks goes, where its config says `own` (1: none).

    As many as give every multiprocessor its walks.  Where the config has none, only if the walks of the slice are at
    most one for every second multiprocessor.
    """
    wanted = min(WALKS * multiprocessors // max(1, walks), nchunks // LEAST_CHUNKS)
    return own if wanted <= own or (own == 1 and WALKS * multiprocessors < LEAST_SEGMENTS * walks) else wanted


def parts_of_slice(heads: int, shares: int, across: int, multiprocessors: int) -> int:
    """Programs that share out the heads of a slice in the least time, of those that share them out evenly.

    across: such programs side by side for each part, one on a multiprocessor: those beyond wait for all others to end.
    shares: slices that share out a group's heads; where one program makes all of a group it leaves no parts.
    """

    def time(parts: int) -> float:
        apart = PART * parts * across / multiprocessors if parts * shares > 1 else 0.0
        return -(-across * parts // multiprocessors) * (heads // parts) + apart

    return min((parts for parts in range(1, heads + 1) if heads % parts == 0), key=time)


def _rows(batch: int) -> list[int]:
    """Of slices among which rows are shared out as evenly as can be, from one of all of them on."""
    return list(dict.fromkeys(-(-batch // count) for count in range(1, batch + 1)))


def slices(cut: Cut, batch: int, nheads: int, ngroups: int) -> list[Slice]:
    """All of them.  Of those with the same rows each group has its first share before one has its second."""
    heads, shares = nheads // ngroups, max(1, cut.pieces // ngroups)
    groups, each = max(1, ngroups // cut.pieces), heads // shares
    found = []
    for row in range(0, batch, cut.rows):
        rows = row, min(cut.rows, batch - row)
        for share in range(shares):
            for group in range(0, ngroups, groups):
                first = group * heads + share * each
                found.append(Slice(rows, (first, groups * each), (group, groups), share, shares))
    return found
