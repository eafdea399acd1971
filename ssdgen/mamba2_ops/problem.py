"""The sizes of one call.  checks -> Problem -> select"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Sizes of one call.

    batch: rows of x, 0 allowed.  dtype: that of x, B, C and z, as torch names it ("bfloat16").
    sequences: number of packed sequences (cu_seqlens), or 0 where nothing is packed.
    layout: the head layout, where it is not the package's own (`settings.LAYOUT`).
    """

    batch: int
    seqlen: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int
    dtype: str
    sequences: int = 0
    layout: str = ""

    @property
    def rows(self) -> int:
        """Independent recurrences per head: packed sequences count like rows of a batch."""
        return self.sequences or self.batch

    @property
    def row_length(self) -> int:
        """Tokens per independent recurrence, on average, at least 1."""
        return max(1, self.seqlen // self.sequences) if self.sequences else self.seqlen

    def bucket(self) -> tuple[int, int, int, int, int, int, str, int, str]:
        """The fields with batch, seqlen and sequences rounded, so that many problems share one look-up.

        A new length or batch never needs a new kind of look-up: below 2**20 there are 40 buckets of each.
        """
        return (
            _round(self.batch),
            _round(self.seqlen),
            self.nheads,
            self.headdim,
            self.dstate,
            self.ngroups,
            self.dtype,
            _round(self.sequences),
            self.layout,
        )

    def bucketed(self) -> Problem:
        """The one problem that stands for all of the bucket."""
        return Problem(*self.bucket())

    def __str__(self) -> str:
        packed = f" in {self.sequences} sequences" if self.sequences else ""
        return (
            f"batch {self.batch}, seqlen {self.seqlen}{packed}, nheads {self.nheads}, headdim {self.headdim}, "
            f"dstate {self.dstate}, ngroups {self.ngroups}, {self.dtype}" + (self.layout and f", {self.layout}")
        )


def _round(value: int) -> int:
    """The nearest of 0, 1, 2, 3, 4, 6, 8, 12, 16, ...: powers of two and one and a half times them."""
    if value < 4:
        return value
    power = value.bit_length() - 1
    eighths = value * 8 >> power  # 8 to 15: how far from 2**power (8) to 2**(power + 1) (16)
    # the bounds are the geometric means, sqrt(1.5) and sqrt(3), in eighths
    if eighths < 10:
        return 1 << power
    return 3 << (power - 1) if eighths < 14 else 2 << power
