"""How ranks join their pairs, as the package has it, is how the description joins runs of tokens."""

from __future__ import annotations

import math

import sympy
import torch

from ssdgen.mamba2_ops.settings import combine
from ssdgen.spec import chain


def test_pairs_are_joined_as_the_description_says() -> None:
    random = torch.Generator().manual_seed(5)
    totals = -torch.rand(2, 2, 3, generator=random, dtype=torch.float64) * 3
    # a sequence boundary, and a sum that came out slightly positive
    totals[0, 0, 1], totals[1, 1, 0], totals[1, 0, 2] = -math.inf, -math.inf, 1e-9
    states = torch.randn(2, 2, 3, 4, 5, generator=random, dtype=torch.float64)
    total, state = combine(totals[0], states[0], totals[1], states[1])
    for row in range(2):
        for head in range(3):
            first, second = (
                chain.Summary(_number(totals[run, row, head]), sympy.Matrix(states[run, row, head].tolist()))
                for run in range(2)
            )
            exact = chain.combine(first, second)
            assert math.isclose(float(exact.total), float(total[row, head]))
            found = torch.tensor([[float(entry) for entry in line] for line in exact.state.tolist()]).double()
            torch.testing.assert_close(state[row, head], found, rtol=1e-6, atol=1e-6)


def _number(total: torch.Tensor) -> sympy.Expr:
    return -sympy.oo if total == -math.inf else sympy.Float(float(total))
