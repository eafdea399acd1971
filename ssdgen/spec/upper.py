"""One step of the block decomposition above the diagonal of a two-sided mask, as a graph.  layer -> graph of a chunk

What it means stands in `two_sided` and docs/maths.md.
"""

from __future__ import annotations

import sympy

from . import layer as formulas
from .decompose import decay
from .dims import COL, ROW, entry
from .graph import Contract, Graph, Input, Map, Node
from .layer import Layer


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
