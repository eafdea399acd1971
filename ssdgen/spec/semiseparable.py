"""The layer as a dense matrix and as a recurrence, in symbols: two of its forms, for few tokens.  layer -> expressions

    Y = M X,  M_ij = L_ij (C_i . B_j) dt_j,  L_ij = a_i ... a_{j+1} for j <= i, else 0.

Every block strictly below the diagonal has rank <= dstate. The third form, the chain of blocks, is in `chain`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from . import layer as formulas
from .dims import HEAD, NGROUPS, NHEADS
from .functions import softplus
from .layer import Layer


@dataclass(frozen=True)
class Tokens:
    """Symbolic operands of `layer` for a few tokens of one batch entry.

    sequence: which sequence each token belongs to; all to one where the layer has no boundaries.
    """

    layer: Layer
    seqlen: int
    nheads: int = 1
    ngroups: int = 1
    headdim: int = 1
    dstate: int = 1
    sequence: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.nheads % self.ngroups:
            raise ValueError(f"nheads {self.nheads} is not divisible by ngroups {self.ngroups}; choose a divisor")
        if bool(self.sequence) != self.layer.boundaries or len(self.sequence) not in (0, self.seqlen):
            raise ValueError(
                f"sequence is {self.sequence} for {self.seqlen} tokens; a layer with boundaries needs one per token, "
                "another layer none"
            )

    def operand(self, name: str, head: int, t: int, at: int) -> sympy.Expr:
        """Entry of x, B or C that head `head` uses for token t: the layout's index map says which."""
        sizes = {HEAD: head, NHEADS: self.nheads, NGROUPS: self.ngroups}
        return _symbol(name, int(self.layer.layout.index(name).subs(sizes)), t, at)

    def dt_raw(self, head: int, t: int) -> sympy.Symbol:
        return _symbol("dt", head, t, positive=not self.layer.dt_bias)

    def dt_bias(self, head: int) -> sympy.Symbol:
        return _symbol("dt_bias", head)

    def a(self, head: int, t: int | None = None) -> sympy.Symbol:
        """Decay rate of a head, or of its token t where the family has one per token."""
        return _symbol("A", head, *(() if t is None else (t,)), negative=True)

    def d(self, head: int, p: int) -> sympy.Symbol:
        return _symbol("D", head, p) if self.layer.skip == "headdim" else _symbol("D", head)

    def z(self, head: int, t: int, p: int) -> sympy.Symbol:
        return _symbol("z", head, t, p)

    def initial(self, head: int, p: int, n: int) -> sympy.Expr:
        return _symbol("state", head, p, n) if self.layer.initial_states else sympy.Integer(0)

    def sequence_of(self, t: int) -> int:
        """Sequence of token t; the token before the first counts as its own."""
        return self.sequence[max(t, 0)] if self.sequence else 0

    def step(self, head: int, t: int) -> sympy.Expr:
        """Step size after its transform, with the limits 0 and infinity."""
        dt: sympy.Expr = self.dt_raw(head, t)
        dt = formulas.add_bias(dt, self.dt_bias(head)) if self.layer.dt_bias else dt
        dt = formulas.rectify(dt) if self.layer.dt_softplus else dt
        return formulas.clamp(dt, sympy.Integer(0), sympy.oo)

    def decay(self, head: int, t: int) -> sympy.Expr:
        """a_t: what is left of the state at token t, 0 where a sequence starts."""
        if self.sequence_of(t) != self.sequence_of(t - 1):
            return sympy.Integer(0)
        rate = self.a(head, t if self.layer.family.per_token else None)
        return sympy.exp(sympy.Min(self.layer.log_decay(self.step(head, t), rate), 0))

    def output(self, y: sympy.Expr, head: int, t: int, p: int) -> sympy.Expr:
        """What leaves the layer for the sum y: skip and gate, where the layer has them."""
        if self.layer.skip != "none":
            y = formulas.skip(y, self.d(head, p), self.operand("x", head, t, p))
        return formulas.gate(y, self.z(head, t, p)) if self.layer.gate else y


@dataclass(frozen=True)
class Outcome:
    """Result for every head.  y: by (head, t, p); state: the last one, P x N, by head."""

    y: Mapping[tuple[int, int, int], sympy.Expr]
    state: Mapping[int, sympy.Matrix]


def matrix(tokens: Tokens, head: int) -> sympy.Matrix:
    """M of one head, seqlen x seqlen: what an input of token j adds to the output of token i, before skip and gate."""

    def element(i: int, j: int) -> sympy.Expr:
        if j > i:
            return sympy.Integer(0)
        kept = sympy.prod(tokens.decay(head, k) for k in range(j + 1, i + 1))
        dot = sum(tokens.operand("C", head, i, n) * tokens.operand("B", head, j, n) for n in range(tokens.dstate))
        return kept * dot * formulas.input_weight(tokens.step(head, j))

    return sympy.Matrix(tokens.seqlen, tokens.seqlen, lambda i, j: element(int(i), int(j)))


def recurrence(tokens: Tokens) -> Outcome:
    """h_t = a_t h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t."""
    y, states = {}, {}
    for head in range(tokens.nheads):
        state = initial_state(tokens, head)
        for t in range(tokens.seqlen):
            x = sympy.Matrix([tokens.operand("x", head, t, p) for p in range(tokens.headdim)])
            b, c = (sympy.Matrix([tokens.operand(name, head, t, n) for n in range(tokens.dstate)]) for name in "BC")
            state = tokens.decay(head, t) * state + formulas.input_weight(tokens.step(head, t)) * x * b.T
            for p, value in enumerate(state * c):
                y[head, t, p] = tokens.output(value, head, t, p)
        states[head] = state
    return Outcome(y, states)


def initial_state(tokens: Tokens, head: int) -> sympy.Matrix:
    """State that the first token sees, P x N."""
    return sympy.Matrix(tokens.headdim, tokens.dstate, lambda p, n: tokens.initial(head, int(p), int(n)))


def same(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Exact equality: both as polynomials in the entries and in one unknown per decay."""
    return sympy.expand(polynomial(left) - polynomial(right)) == 0


def polynomial(expr: Any) -> Any:
    """The expression with every exp(u + v) as a product of one unknown per term, whatever base it was written in."""
    expr = expr.replace(lambda e: e.is_Pow and e.base == 2, lambda e: sympy.exp(sympy.expand(e.exp * sympy.log(2))))
    return expr.replace(lambda e: isinstance(e, sympy.exp), lambda e: _unknowns(e.args[0]))


def _unknowns(exponent: sympy.Expr) -> sympy.Expr:
    factors = []
    for term in sympy.Add.make_args(sympy.expand(exponent)):
        count, what = term.as_coeff_Mul()
        factors.append(sympy.Symbol(f"exp({what})", positive=True) ** count)
    return sympy.Mul(*factors)


def rank(block: sympy.Matrix) -> int:
    """Rank for general entries, found exactly at a random rational point: never more, and almost surely no less."""
    draw = random.Random(0)
    plain = block.applyfunc(polynomial)
    # a softplus of an entry is as free as the entry
    unknowns = sorted(
        {*plain.atoms(softplus), *plain.free_symbols}, key=lambda e: (isinstance(e, sympy.Symbol), str(e))
    )
    return plain.xreplace({unknown: sympy.Rational(draw.randint(2, 997), 991) for unknown in unknowns}).rank()


def _symbol(name: str, *index: int, **assumptions: bool) -> sympy.Symbol:
    return sympy.Symbol(f"{name}[{','.join(map(str, index))}]", **{"real": True, **assumptions})
