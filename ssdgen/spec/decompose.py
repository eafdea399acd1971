"""One step of the block decomposition, as a contraction graph.  layer -> graph of a chunk

The chunk's diagonal block, right factor, centre factor and left factor (docs/maths.md), with the running sums of the
log-decay kept in base 2, so that a decay is one `exp2`.  The same graph serves a chunk and a segment of chunks: the
pair (total log-decay, state) is what a block hands to the next one at either level.
"""

from __future__ import annotations

from functools import lru_cache

import sympy

from . import layer as formulas
from .dims import COL, ROW, entry
from .graph import Contract, Cumsum, Graph, Input, Last, Map, Node, Sum
from .layer import Layer

DIAGONAL = ("CB", "scores", "y_diag")
RIGHT = ("right_decay", "x_weighted", "local_state")
CENTRE = ("centre_decay", "state_out")
LEFT = ("left_decay", "y_state")
# what a token may read: all up to itself or, where its own input has a weight of its own, all before it
CAUSAL = (sympy.Ge(ROW, COL), sympy.Gt(ROW, COL))


def decay(log2_decay: sympy.Expr) -> sympy.Expr:
    """2 ** log2_decay, the exponent clamped to <= 0: a difference of running sums can come out slightly positive."""
    return sympy.Pow(2, sympy.Min(log2_decay, 0), evaluate=log2_decay == 0)


def _head(layer: Layer, operand: str) -> tuple[str, ...]:
    return ("h",) if layer.layout.per_head(operand) else ()


def _keep(value: sympy.Expr, condition: sympy.Basic) -> sympy.Expr:
    return sympy.Piecewise((value, condition), (0, True))


def chunk_graph(layer: Layer, apart: bool = False) -> Graph:
    """The graph of one chunk: y[h, i, p] and state_out[h, p, n] from the operands and the entering state[h, p, n].

    apart: the diagonal of C B^T stands apart from the scores, as nothing decays there: it is a number for each token,
    by which its input is multiplied as by D.  Raises ValueError where it stands apart anyhow.
    """
    if apart and layer.discretisation.own:
        raise ValueError(f"{layer.discretisation.name} has a weight of its own on the diagonal; leave out apart")
    return _made(layer, apart, (decay, _keep, *formulas.pointwise()))


@lru_cache(maxsize=64)
def _made(layer: Layer, apart: bool, _: tuple[object, ...]) -> Graph:
    """The graph, made once for a layer and what its formulas are now: they belong to the key, whoever replaces one."""
    hx, hb, hc = (_head(layer, operand) for operand in ("x", "B", "C"))
    hcb = ("h",) if hb or hc else ()
    dt, seq_before = entry("dt", "h", "j"), sympy.Symbol("seq_before", real=True)
    own = layer.discretisation.own or apart
    read = CAUSAL[1] if own else CAUSAL[0]
    seq_i, seq_j, seq_last = entry("seq", "i"), entry("seq", "j"), sympy.Symbol("seq_last", real=True)

    nodes: list[Node] = [
        *_given(layer),
        Input("x", (*hx, "j", "p"), "input"),
        Input("B", (*hb, "j", "n"), "expansion into the state"),
        Input("C", (*hc, "i", "n"), "contraction out of the state"),
        Input("D", ("h", "p"), "skip weight"),
        Input("z", ("h", "i", "p"), "gate"),
        Input("seq", ("j",), "sequence that a token belongs to"),
        Input("seq_before", (), "sequence of the token before the chunk"),
        Input("seq_last", (), "sequence of the chunk's last token"),
        Input("state", ("h", "p", "n"), "state that enters the chunk"),
        Input("total", ("h",), "log2 of the decay from the start of the segment to the chunk"),
        *_steps(layer),
    ]

    decays = layer.family.decays
    if decays:
        nodes += [
            Cumsum("dA_cs", ("h", "j"), entry("log_decay", "h", "j"), "j"),
            Last("dA_last", ("h",), entry("dA_cs", "h", "j"), "j"),
        ]
    cs_i, cs_j, cs_last = (
        (entry("dA_cs", "h", "i"), entry("dA_cs", "h", "j"), entry("dA_last", "h"))
        if decays
        else (sympy.Integer(0),) * 3
    )

    def bounded(name: str, axes: tuple[str, ...], free: sympy.Expr, same: sympy.Basic) -> list[Node]:
        """A factor and, when there are sequence boundaries, the same factor cut where `same` is false."""
        whole = entry(f"{name}_whole", *axes)
        return [Map(f"{name}_whole", axes, free), Map(name, axes, _keep(whole, same), "HAS_SEQ_IDX", whole)]

    weight = formulas.input_weight(dt)
    cb = entry("CB", *hcb, "i", "j")
    nodes += [
        Contract("CB", (*hcb, "i", "j"), entry("C", *hc, "i", "n"), entry("B", *hb, "j", "n"), "n"),
        *bounded(
            "scores",
            ("h", "i", "j"),
            # the diagonal has a weight of its own, which then comes with the token's own input
            _keep(cb * decay(cs_i - cs_j) * weight, read),
            sympy.Eq(seq_i, seq_j),
        ),
        *bounded("left_decay", ("h", "i"), decay(cs_i), sympy.Eq(seq_i, seq_before)),
        *bounded("right_decay", ("h", "j"), weight * decay(cs_last - cs_j), sympy.Eq(seq_j, seq_last)),
        *bounded("centre_decay", ("h",), decay(cs_last), sympy.Eq(seq_last, seq_before)),
        Contract("y_state", ("h", "i", "p"), entry("C", *hc, "i", "n"), entry("state", "h", "p", "n"), "n"),
        Contract("y_diag", ("h", "i", "p"), entry("scores", "h", "i", "j"), entry("x", *hx, "j", "p"), "j"),
        Map(
            "y_later" if own else "y_ssm",
            ("h", "i", "p"),
            entry("left_decay", "h", "i") * entry("y_state", "h", "i", "p") + entry("y_diag", "h", "i", "p"),
        ),
        *(_diagonal(hb, hc, hcb, weight) if apart else ()),
        *(_own_input(hx, "own_skip" if apart else "own") if own else ()),
        Map(
            "y_skip",
            ("h", "i", "p"),
            formulas.skip(entry("y_ssm", "h", "i", "p"), entry("D", "h", "p"), entry("x", *hx, "i", "p")),
            "HAS_D",
            entry("y_ssm", "h", "i", "p"),
        ),
        Map(
            "y",
            ("h", "i", "p"),
            formulas.gate(entry("y_skip", "h", "i", "p"), entry("z", "h", "i", "p")),
            "HAS_Z",
            entry("y_skip", "h", "i", "p"),
        ),
        Map("x_weighted", ("h", "j", "p"), entry("x", *hx, "j", "p") * entry("right_decay", "h", "j")),
        Contract("local_state", ("h", "p", "n"), entry("x_weighted", "h", "j", "p"), entry("B", *hb, "j", "n"), "j"),
        Map(
            "state_out",
            ("h", "p", "n"),
            entry("centre_decay", "h") * entry("state", "h", "p", "n") + entry("local_state", "h", "p", "n"),
        ),
        Map("total_whole", ("h",), entry("total", "h") + cs_last),
        Map(
            "total_out",
            ("h",),
            sympy.Piecewise((entry("total_whole", "h"), sympy.Eq(seq_last, seq_before)), (-sympy.oo, True)),
            "HAS_SEQ_IDX",
            entry("total_whole", "h"),
        ),
    ]
    kind = f", {layer.discretisation.name}" if layer.discretisation.made else ""
    return Graph(f"chunk[{layer.family.name}, {layer.layout.name}{kind}]", tuple(nodes))


def _given(layer: Layer) -> list[Node]:
    """What a chunk is given of its steps: raw, or with their weights and decays made."""
    if layer.discretisation.made:
        found: list[Node] = [Input("dt", ("h", "j"), "weight of a token's input in what comes after it")]
        found += [Input("own", ("h", "j"), "weight of a token's input in its own output")]
        return found + ([Input("log_decay", ("h", "j"), "log2 of the decay of a step")] if layer.family.decays else [])
    about = "log-decay of a token" if layer.family.per_token else "decay rate of a head"
    return [
        Input("dt_raw", ("h", "j"), "step size before its transform"),
        Input("dt_bias", ("h",), "added to the step size"),
        Input("dt_min", (), "lower limit of the step size"),
        Input("dt_max", (), "upper limit of the step size"),
        Input("A", layer.family.rate("j"), about),
    ]


def _steps(layer: Layer) -> list[Node]:
    """The step size after its transform and the log-decay, unless they are given."""
    if layer.discretisation.made:
        return []
    low, high = sympy.symbols("dt_min dt_max", real=True)
    dt_raw, biased, positive = (entry(name, "h", "j") for name in ("dt_raw", "dt_biased", "dt_positive"))
    found: list[Node] = [
        Map("dt_biased", ("h", "j"), formulas.add_bias(dt_raw, entry("dt_bias", "h")), "HAS_DT_BIAS", dt_raw),
        Map("dt_positive", ("h", "j"), formulas.rectify(biased), "DT_SOFTPLUS", biased),
        Map("dt", ("h", "j"), formulas.clamp(positive, low, high)),
    ]
    if layer.family.decays:
        log_decay = layer.log_decay(entry("dt", "h", "j"), entry("A", *layer.family.rate("j"))) / sympy.log(2)
        found.append(Map("log_decay", ("h", "j"), log_decay))
    return found


def _diagonal(hb: tuple[str, ...], hc: tuple[str, ...], hcb: tuple[str, ...], weight: sympy.Expr) -> list[Node]:
    """The diagonal of the chunk's block, a number for each token: with D, where that is one for a head.

    hb, hc, hcb: the axis of heads in B, in C and in C B^T, where they have one.
    """
    axes = (*hcb, "j")
    products = entry("C", *hc, "j", "n") * entry("B", *hb, "j", "n")
    own, x = entry("own", "h", "j"), sympy.Symbol("x", real=True)
    given = sympy.expand(formulas.skip(formulas.own_input(sympy.Integer(0), own, x), entry("D_head", "h"), x))
    if sympy.diff(given, x, 2) != 0 or given.subs(x, 0) != 0:
        raise ValueError(f"what a token's own input gives, {given}, is no multiple of it; leave out apart")
    return [
        Input("D_head", ("h",), "skip weight of all channels of a head"),
        Map("CB_products", (*axes, "n"), products),
        Sum("CB_diagonal", axes, entry("CB_products", *axes, "n"), ("n",)),
        Map("own", ("h", "j"), entry("CB_diagonal", *axes) * weight),
        Map("own_skip", ("h", "j"), sympy.diff(given, x), "D_BY_HEAD", own),
    ]


def _own_input(hx: tuple[str, ...], weight: str) -> list[Node]:
    """The diagonal of the chunk's block, with its own weight."""
    y, own, x = entry("y_later", "h", "i", "p"), entry(weight, "h", "i"), entry("x", *hx, "i", "p")
    return [Map("y_ssm", ("h", "i", "p"), formulas.own_input(y, own, x))]
