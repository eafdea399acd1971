"""The shapes that are measured and their inputs.  -> reference, forward"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """One call: b, L, H, P, N, G of the project's letters."""

    name: str
    batch: int
    seqlen: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.batch, self.seqlen, self.nheads, self.headdim, self.dstate, self.ngroups)


# Same (headdim, dstate) side by side: the peer compiles and tunes itself once for each such pair.
SHAPES = (
    Shape("2.7b_b8_2k", 8, 2048, 80, 64, 128, 1),
    Shape("2.7b_b1_2k", 1, 2048, 80, 64, 128, 1),
    Shape("2.7b_b1_16k", 1, 16384, 80, 64, 128, 1),
    Shape("2.7b_b1_128k", 1, 131072, 80, 64, 128, 1),
    Shape("130m_b8_2k", 8, 2048, 24, 64, 128, 1),
    Shape("nemotron-h_b4_4k", 4, 4096, 128, 64, 128, 8),
    Shape("zamba2_b4_4k", 4, 4096, 64, 64, 64, 1),
    Shape("falcon-h1_b4_4k", 4, 4096, 32, 128, 256, 2),
)


def select(names: str) -> tuple[Shape, ...]:
    """Shapes by name, by a prefix of names, or as six numbers "b,L,H,P,N,G"; several are separated by spaces.

    Raises ValueError naming what was given and the shapes that are known.
    """
    chosen: list[Shape] = []
    for name in names.split():
        numbers = name.split(",")
        if len(numbers) == 6 and all(number.isdigit() for number in numbers):
            chosen.append(Shape(name, *(int(number) for number in numbers)))
        elif found := [shape for shape in SHAPES if shape.name.startswith(name)]:
            chosen.extend(found)
        else:
            known = " ".join(shape.name for shape in SHAPES)
            raise ValueError(f"unknown shape {name!r}; give six numbers b,L,H,P,N,G or one of: {known}")
    return tuple(dict.fromkeys(chosen))


def inputs(shape: Shape, device: str, seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random arguments of the public call: x, dt, B, C in `dtype`; A, D, dt_bias in fp32.  No zeros anywhere.

    A is drawn from -[1, 16], softplus(dt_bias) log-uniformly from [0.001, 0.1]: where training starts.
    """
    b, seqlen, h, p, n, g = shape.sizes
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=device, generator=generator)

    def uniform(*sizes: int) -> torch.Tensor:
        return torch.rand(*sizes, device=device, generator=generator)

    step = 0.001 * 100.0 ** uniform(h)
    return {
        "x": normal(b, seqlen, h, p).to(dtype),
        "dt": (0.5 * normal(b, seqlen, h)).to(dtype),
        "A": -1 - 15 * uniform(h),
        "B": normal(b, seqlen, g, n).to(dtype),
        "C": normal(b, seqlen, g, n).to(dtype),
        "D": normal(h),
        "dt_bias": torch.log(torch.expm1(step)),
    }
