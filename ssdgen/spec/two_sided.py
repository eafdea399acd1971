"""Two-sided masks: one one-sided layer up to the diagonal, another one above it.  layer -> matrix, numbers

    M_ij = L_ij (C_i . B_j) w_j  for j <= i          L_ij = a_i ... a_{j+1}
    M_ij = U_ij (C'_i . B'_j) w_j  for j > i         U_ij = a'_j ... a'_{i+1}

With the same decays on both sides M decays with the distance of two tokens. Above the diagonal stands the transpose of
the one-sided matrix of a' with keys and queries exchanged: what is linear in one pass forwards has its transpose in one
pass backwards, which is what the adjoint of a layer is (`gradient`). That is how `mamba2_ops` computes it; here it is
the recurrence over the tokens from the last one on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from . import layer as formulas
from .decompose import decay
from .dims import COL, ROW, entry
from .graph import Contract, Graph, Input, Map, Node
from .layer import Layer
from .oracle import Array, OracleInput, index_maps, oracle
from .semiseparable import Tokens
from .semiseparable import matrix as one_sided


def matrix(lower: Tokens, upper: Tokens, head: int) -> sympy.Matrix:
    """M of one head, seqlen x seqlen.  upper: the tokens as they are above the diagonal, but for their weights."""
    below = one_sided(lower, head)

    def element(i: int, j: int) -> Any:
        if j <= i:
            return below[i, j]
        kept = sympy.prod(upper.decay(head, k) for k in range(i + 1, j + 1))
        dot = sum(upper.operand("C", head, i, n) * upper.operand("B", head, j, n) for n in range(upper.dstate))
        return kept * dot * formulas.input_weight(lower.step(head, j))

    return sympy.Matrix(lower.seqlen, lower.seqlen, lambda i, j: element(int(i), int(j)))


def two_sided(layer: Layer, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Array:
    """y [b, L, H, P] in float64.

    layer: with a decay for every token (`masks.GATED`), and neither gate, bias, softplus nor state of its own.
    lower: arguments of `oracle`; upper: A, B and C above the diagonal.  Raises OracleInput.
    """
    options = layer.gate or layer.dt_bias or layer.dt_softplus or layer.initial_states
    if options or not layer.family.per_token:
        raise OracleInput("a two-sided layer has a decay for every token, and neither gate, bias, softplus nor state")
    # from the last token on: a token's decay lies between it and the one before, which then comes after it
    between = np.roll(np.asarray(upper["A"], np.float64), -1, axis=1)
    turned = {"A": between, **{name: upper[name] for name in "BC"}}
    turned |= {name: lower[name] for name in ("x", "dt", "seq_idx") if lower.get(name) is not None}
    turned = {name: np.flip(value, 1) for name, value in turned.items()}
    limits = {"dt_limit": lower.get("dt_limit", (0.0, np.inf))}
    above = np.flip(oracle(replace(layer, skip="none"), **turned, **limits).y, 1)
    # what a token gives to itself is there twice
    weight = np.clip(np.asarray(lower["dt"], np.float64), *limits["dt_limit"])
    found = {"x": np.asarray(lower["x"]), "B": np.asarray(upper["B"]), "C": np.asarray(upper["C"])}
    index = index_maps(layer, found, weight.shape[2])
    x, b, c = (found[name][:, :, index[name]] for name in ("x", "B", "C"))
    return oracle(layer, **lower).y + above - np.einsum("blhn,blhn,blh->blh", c, b, weight)[..., None] * x


def upper_graph(layer: Layer) -> Graph:
    """What a chunk adds above the diagonal, in a walk from the last chunk to the first; as `decompose.chunk_graph`.

    y[h, i, p] and state_out[h, p, n] from y_below, which is there, the operands, and the state of all later tokens:
    that of the tokens from the chunk's end on, decayed to the end. Running sums are those of the chunk from its start.
    """
    hx, hb, hc = (("h",) if layer.layout.per_head(operand) else () for operand in ("x", "B", "C"))
    hcb = ("h",) if hb or hc else ()
    cs_i, cs_j, cs_last = entry("dA_cs", "h", "i"), entry("dA_cs", "h", "j"), entry("dA_last", "h")
    seq_i, seq_j = entry("seq", "i"), entry("seq", "j")
    seq_first, seq_after = sympy.symbols("seq_first seq_after", real=True)
    weight = formulas.input_weight(entry("dt", "h", "j"))

    def bounded(name: str, axes: tuple[str, ...], free: sympy.Expr, same: sympy.Basic) -> list[Node]:
        whole = entry(f"{name}_whole", *axes)
        kept = sympy.Piecewise((whole, same), (0, True))
        return [Map(f"{name}_whole", axes, free), Map(name, axes, kept, "HAS_SEQ_IDX", whole)]

    # the plans know this condition alone
    above = sympy.Piecewise((0, ROW >= COL), (entry("CB", *hcb, "i", "j") * decay(cs_j - cs_i) * weight, True))
    nodes: list[Node] = [
        Input("dt", ("h", "j"), "weight of a token"),
        Input("dA_cs", ("h", "j"), "running sum of the log-decays of the chunk, base 2"),
        Input("dA_last", ("h",), "sum of all of them"),
        Input("x", (*hx, "j", "p"), "input"),
        Input("B", (*hb, "j", "n"), "expansion into the state"),
        Input("C", (*hc, "i", "n"), "contraction out of the state"),
        Input("y_below", ("h", "i", "p"), "what the mask up to the diagonal gives"),
        Input("seq", ("j",), "sequence that a token belongs to"),
        Input("seq_first", (), "sequence of the chunk's first token"),
        Input("seq_after", (), "sequence of the token after the chunk"),
        Input("state", ("h", "p", "n"), "state of all later tokens"),
        Contract("CB", (*hcb, "i", "j"), entry("C", *hc, "i", "n"), entry("B", *hb, "j", "n"), "n"),
        *bounded("scores", ("h", "i", "j"), above, sympy.Eq(seq_i, seq_j)),
        *bounded("left_decay", ("h", "i"), decay(cs_last - cs_i), sympy.Eq(seq_i, seq_after)),
        *bounded("right_decay", ("h", "j"), weight * decay(cs_j), sympy.Eq(seq_j, seq_first)),
        *bounded("centre_decay", ("h",), decay(cs_last), sympy.Eq(seq_first, seq_after)),
        Contract("y_state", ("h", "i", "p"), entry("C", *hc, "i", "n"), entry("state", "h", "p", "n"), "n"),
        Contract("y_diag", ("h", "i", "p"), entry("scores", "h", "i", "j"), entry("x", *hx, "j", "p"), "j"),
        Map(
            "y",
            ("h", "i", "p"),
            entry("left_decay", "h", "i") * entry("y_state", "h", "i", "p")
            + entry("y_diag", "h", "i", "p")
            + entry("y_below", "h", "i", "p"),
        ),
        Map("x_weighted", ("h", "j", "p"), entry("x", *hx, "j", "p") * entry("right_decay", "h", "j")),
        Contract("local_state", ("h", "p", "n"), entry("x_weighted", "h", "j", "p"), entry("B", *hb, "j", "n"), "j"),
        Map(
            "state_out",
            ("h", "p", "n"),
            entry("centre_decay", "h") * entry("state", "h", "p", "n") + entry("local_state", "h", "p", "n"),
        ),
    ]
    return Graph(f"chunk above the diagonal[{layer.layout.name}]", tuple(nodes))


__all__ = ["matrix", "two_sided", "upper_graph"]
