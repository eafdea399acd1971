"""A problem: the sizes that a plan, a record and a search are made for.  -> space, tune, pack"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """Sizes of one call.  dtype: as torch names it ("bfloat16"), of x, B, C and z; in a decode step of the state."""

    batch: int
    seqlen: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int = 1
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; a problem needs at least 1")
        if self.nheads % self.ngroups:
            raise ValueError(f"nheads {self.nheads} is not divisible by ngroups {self.ngroups}; choose a divisor")

    @property
    def element_bytes(self) -> int:
        return {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}[self.dtype]

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)
