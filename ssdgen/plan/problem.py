"""A problem: the sizes that a plan, a record and a search are made for.  -> space, tune, pack"""

from __future__ import annotations

from dataclasses import asdict, dataclass

# layouts with kernels of their own; in the others every x, or every x, B and C, has a head, which are Mamba-2's kernels
OTHER_LAYOUTS = ("multi-contract", "multi-expand")


@dataclass(frozen=True, order=True)
class Problem:
    """Sizes of one call.

    dtype: as torch names it ("bfloat16"), of x, B, C and z; in a decode step of the state.
    layout: one of OTHER_LAYOUTS, whose decays are given for every token, or "" for Mamba-2's own.
    """

    batch: int
    seqlen: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int = 1
    dtype: str = "bfloat16"
    layout: str = ""

    def __post_init__(self) -> None:
        if self.layout not in ("", *OTHER_LAYOUTS):
            raise ValueError(f"layout is {self.layout!r}; it must be one of {', '.join(OTHER_LAYOUTS)}, or empty")
        for name in ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; a problem needs at least 1")
        if self.nheads % self.ngroups:
            raise ValueError(f"nheads {self.nheads} is not divisible by ngroups {self.ngroups}; choose a divisor")

    @property
    def element_bytes(self) -> int:
        return {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}[self.dtype]

    def to_json(self) -> dict[str, int | str]:
        """The fields; without a layout it is Mamba-2's, so that files stay as they were before there were others."""
        return {name: value for name, value in asdict(self).items() if name != "layout" or value}
