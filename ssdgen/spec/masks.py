"""Mask families of structured masked attention: each is one formula, the log-decay of a step.  -> layer, graph, kernels

A new family is one more `MaskFamily` in `FAMILIES`: the decomposition, the oracle, the kernels and the roofline follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

DT, A = sympy.symbols("dt A", real=True)


@dataclass(frozen=True)
class MaskFamily:
    """How much of the state survives one step: a_t = exp(log_decay).

    log_decay: expression in `DT` (step size after its transform, per token and head) and `A` (per head).
    per_token: `A` is a number for every token and head; the step size then is the weight of the token's input alone.
    """

    name: str
    log_decay: sympy.Expr
    about: str
    per_token: bool = False

    def rate(self, token: str) -> tuple[str, ...]:
        """Axes of `A` in a graph whose tokens lie along the axis `token`."""
        return ("h", token) if self.per_token else ("h",)

    @property
    def decays(self) -> bool:
        """False when every entry of the mask is one, so that no running sum is needed."""
        return self.log_decay != 0

    @property
    def uses_a(self) -> bool:
        return A in self.log_decay.free_symbols


SSD = MaskFamily("ssd", DT * A, "input-dependent decay exp(dt A): Mamba-2")
CONSTANT = MaskFamily("constant", A, "constant decay exp(A) per head: retention")
NONE = MaskFamily("none", sympy.Integer(0), "all ones: causal linear attention")
# the log-decay is an operand, limited to what decays: all families are cases of it. It has no package of its own: the
# public call `ssd` runs it on the kernels of a family that decays
GATED = MaskFamily(
    "gated", sympy.Min(A, 0), "a decay of its own for every token and head: gated linear attention", per_token=True
)

FAMILIES = {family.name: family for family in (SSD, CONSTANT, NONE)}
