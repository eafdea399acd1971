"""Discretisations: by how much the input of a token counts, in its own output and later.  -> layer, decompose

A step of the recurrence adds beta_t x_{t-1} B_{t-1}^T + gamma_t x_t B_t^T to the state.  Without beta a token counts by
its own step alone.  With it a token's input is added twice: at its own step, and at the next one, which decays the
state first.  Both reach every later output by the same decays, so that they are one weight there, dt, and another one,
own, in the output of the token itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Discretisation:
    """made: the weights and decays of the steps come to a chunk as they are; else a chunk makes them from raw steps.

    own: the output of a token has a weight of its own for the token's input.
    """

    name: str
    made: bool
    own: bool
    about: str


EULER = Discretisation("euler", made=False, own=False, about="an input counts by its own step: Mamba-2")
TRAPEZOIDAL = Discretisation(
    "trapezoidal", made=True, own=True, about="an input counts by its own step and by the next one: Mamba-3"
)
