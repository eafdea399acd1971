"""One token of the recurrence, as a graph: what decoding computes.  layer -> graph

The formulas are those of the layer and of the block decomposition.  With a replay the state is that of some tokens
before, whose inputs were kept: the block decomposition once more, with these tokens as columns and the new one as the
only row.
"""

from __future__ import annotations

from typing import Any

import sympy

from . import layer as formulas
from . import storage
from .decompose import decay
from .dims import entry
from .functions import rsqrt
from .graph import Contract, Cumsum, Graph, Input, Largest, Last, Map, Node, Sum
from .layer import Layer


def step_graph(
    layer: Layer, tied: bool = True, replay: bool = False, merged: bool = False, units: bool = False
) -> Graph:
    """y[h, p] and state_out[h, p, n] of one token from its operands and the state before it.

    tied: step size and decay rate are one number for a head, as in Mamba-2; else dt[h, p] and A[h, p, n].
    replay: the state is that before the kept tokens, j; state_out is still that after one token.
    merged: the scale of a row and its decay are one factor, `carried`, of the numbers as they are stored; the scale is
        1 where nothing is scaled.  With a replay state_out is then that after all tokens, kept and new.  D may then be
        one number for a head, `D_head`.
    units: merged, and that factor is what the state is counted in until it is stored, `in_units`: a row has one product
        less for each number, and is divided once.  Of scaled states, without a replay.
    """
    hx, hb, hc = (("h",) if layer.layout.per_head(operand) else () for operand in ("x", "B", "C"))
    step = ("h",) if tied else ("h", "p")
    rate = ("h",) if tied else ("h", "p", "n")
    low, high, stored_step = sympy.symbols("dt_min dt_max stored_step", real=True)
    dt_raw, dt = entry("dt_raw", *step), entry("dt", *step)
    state = entry("state", "h", "p", "n")
    nodes: list[Node] = [
        Input("dt_raw", step, "step size before its transform"),
        Input("dt_bias", step, "added to the step size"),
        Input("dt_min", (), "lower limit of the step size"),
        Input("dt_max", (), "upper limit of the step size"),
        Input("A", rate, "decay rate"),
        Input("x", (*hx, "p"), "input"),
        Input("B", (*hb, "n"), "expansion into the state"),
        Input("C", (*hc, "n"), "contraction out of the state"),
        Input("D", ("h", "p"), "skip weight"),
        Input("z", ("h", "p"), "gate"),
        Input("stored", ("h", "p", "n"), "state before the token, as it is stored"),
        Input("scale", ("h", "p"), "scale of a row of the stored state"),
        Input("stored_step", (), "one over the largest stored number"),
        Map("dt_biased", step, formulas.add_bias(dt_raw, entry("dt_bias", *step)), "HAS_DT_BIAS", dt_raw),
        Map(
            "dt_positive",
            step,
            formulas.rectify(entry("dt_biased", *step)),
            "DT_SOFTPLUS",
            entry("dt_biased", *step),
        ),
        Map("dt", step, formulas.clamp(entry("dt_positive", *step), low, high)),
    ]
    log_decay: sympy.Expr = sympy.Integer(0)
    centre_decay: sympy.Expr = sympy.Integer(1)
    if layer.family.decays:
        kept = rate if layer.family.uses_a else step
        log_decay, centre_decay = entry("log_decay", *kept), entry("centre_decay", *kept)
        nodes += [
            Map("log_decay", kept, layer.log_decay(dt, entry("A", *rate)) / sympy.log(2)),
            Map("centre_decay", kept, decay(log_decay)),
        ]
    x, b, c = entry("x", *hx, "p"), entry("B", *hb, "n"), entry("C", *hc, "n")
    after = entry("state_out", "h", "p", "n")
    if units:
        nodes += _in_units(centre_decay, stored_step, (hx, hb, hc))
        nodes += [*_of_heads(x), *_gated(x, entry("y_own", "h", "p"))]
        return Graph(f"step in units[{layer.family.name}, {layer.layout.name}]", tuple(nodes))
    if merged:
        nodes += [*_merged(layer, centre_decay, log_decay, replay, (hx, hb, hc)), *_of_heads(x)]
        nodes += [*_gated(x, entry("y_own", "h", "p")), *_scaled(after, stored_step)]
        return Graph(f"merged {'replay' if replay else 'step'}[{layer.family.name}, {layer.layout.name}]", tuple(nodes))
    nodes += [
        Map(
            "state",
            ("h", "p", "n"),
            storage.restore(entry("stored", "h", "p", "n"), entry("scale", "h", "p")),
            "HAS_SCALE",
            entry("stored", "h", "p", "n"),
        ),
        Map("x_weighted", ("h", "p"), x * formulas.input_weight(dt)),
        Map(
            "state_out",
            ("h", "p", "n"),
            centre_decay * state + entry("x_weighted", "h", "p") * b,
        ),
    ]
    if replay:
        nodes += _replayed(layer, log_decay, hx, hb, hc)
    else:
        nodes += [Map("y_terms", ("h", "p", "n"), after * c), _over_n("y_ssm", ("h", "p"), "y_terms", ("h", "p", "n"))]
    nodes += [*_gated(x, entry("y_ssm", "h", "p")), *_scaled(after, stored_step)]
    kind = ("replay" if replay else "step") + ("" if tied else ", untied")
    return Graph(f"{kind}[{layer.family.name}, {layer.layout.name}]", tuple(nodes))


def _scaled(after: sympy.Indexed, stored_step: sympy.Symbol) -> list[Node]:
    """The state as it is stored."""
    return [
        Largest("largest", ("h", "p"), after, ("n",)),
        Map("scale_out", ("h", "p"), storage.scale_of(entry("largest", "h", "p"), stored_step)),
        Map("inverse_scale", ("h", "p"), storage.inverse(entry("scale_out", "h", "p"))),
        Map("state_scaled", ("h", "p", "n"), storage.scaled(after, entry("inverse_scale", "h", "p"))),
    ]


def _of_heads(x: sympy.Indexed) -> list[Node]:
    """What D gives where it is one number for a head: then there is no D of channels."""
    y_ssm = entry("y_ssm", "h", "p")
    return [
        Input("D_head", ("h",), "skip weight of all channels of a head"),
        Map("y_own", ("h", "p"), formulas.skip(y_ssm, entry("D_head", "h"), x), "D_BY_HEAD", y_ssm),
    ]


def _gated(x: sympy.Indexed, before: sympy.Indexed) -> list[Node]:
    """y from what comes before its skip and its gate."""
    y_skip = entry("y_skip", "h", "p")
    return [
        Map("y_skip", ("h", "p"), formulas.skip(before, entry("D", "h", "p"), x), "HAS_D", before),
        Map("y", ("h", "p"), formulas.gate(y_skip, entry("z", "h", "p")), "HAS_Z", y_skip),
    ]


def _merged(
    layer: Layer,
    centre_decay: sympy.Expr,
    log_decay: sympy.Expr,
    replay: bool,
    shared: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
) -> list[Node]:
    """y_ssm and state_out from the numbers as they are stored, with one factor for each row."""
    hx, hb, hc = shared
    stored, carried = entry("stored", "h", "p", "n"), entry("carried", "h", "p")
    added = entry("x_weighted", "h", "p") * entry("B", *hb, "n")
    nodes: list[Node] = [
        Map("x_weighted", ("h", "p"), entry("x", *hx, "p") * formulas.input_weight(entry("dt", "h"))),
    ]
    if not replay:
        return [
            *nodes,
            Map("carried", ("h", "p"), centre_decay * entry("scale", "h", "p")),
            Map("state_out", ("h", "p", "n"), carried * stored + added),
            Map("y_terms", ("h", "p", "n"), entry("state_out", "h", "p", "n") * entry("C", *hc, "n")),
            _over_n("y_ssm", ("h", "p"), "y_terms", ("h", "p", "n")),
        ]
    x_kept = entry("kept_x", *hx, "j", "p") * entry("weights", "h", "j")
    state = entry("kept_state", "h", "p", "n")
    return [
        *nodes,
        *_replayed(layer, log_decay, hx, hb, hc, merged=True),
        Map("x_kept", ("h", "j", "p"), x_kept),
        Contract("kept_added", ("h", "p", "n"), entry("x_kept", "h", "j", "p"), entry("kept_B", *hb, "j", "n"), "j"),
        # a value of its own: what the product leaves is added to the state where that is
        Map("kept_state", ("h", "p", "n"), entry("kept_added", "h", "p", "n")),
        Map("state_out", ("h", "p", "n"), carried * stored + added + state),
    ]


def _in_units(
    centre_decay: sympy.Expr,
    stored_step: sympy.Symbol,
    shared: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
) -> list[Node]:
    """y_ssm and the state as it is stored, from numbers as they were stored: what is new is divided by their unit.

    Reciprocals are squares of reciprocal roots: three instructions, where a quotient takes about ten.
    """
    hx, hb, hc = shared
    carried, after = entry("carried", "h", "p"), entry("in_units", "h", "p", "n")
    largest, step = entry("largest", "h", "p"), entry("step_units", "h", "p")
    unit_root, step_root = entry("unit_root", "h", "p"), entry("step_root", "h", "p")
    of_unit: Any = rsqrt(carried)
    of_step: Any = rsqrt(step)
    nodes: list[Node] = [
        Map("x_weighted", ("h", "p"), entry("x", *hx, "p") * formulas.input_weight(entry("dt", "h"))),
        Map("carried", ("h", "p"), storage.unit_of(centre_decay * entry("scale", "h", "p"))),
        Map("unit_root", ("h", "p"), of_unit),
        Map("x_units", ("h", "p"), entry("x_weighted", "h", "p") * unit_root**2),
        Map(
            "in_units",
            ("h", "p", "n"),
            entry("stored", "h", "p", "n") + entry("x_units", "h", "p") * entry("B", *hb, "n"),
        ),
        Map("y_terms", ("h", "p", "n"), after * entry("C", *hc, "n")),
        _over_n("y_units", ("h", "p"), "y_terms", ("h", "p", "n")),
        Map("y_ssm", ("h", "p"), carried * entry("y_units", "h", "p")),
        Largest("largest", ("h", "p"), after, ("n",)),
        Map("step_units", ("h", "p"), storage.scale_of(largest, stored_step)),
        Map("scale_out", ("h", "p"), carried * step),
        Map("step_root", ("h", "p"), of_step),
        Map("inverse_scale", ("h", "p"), step_root**2),
        Map("state_scaled", ("h", "p", "n"), storage.scaled(after, entry("inverse_scale", "h", "p"))),
    ]
    return nodes


def _replayed(
    layer: Layer,
    log_decay: sympy.Expr,
    hx: tuple[str, ...],
    hb: tuple[str, ...],
    hc: tuple[str, ...],
    merged: bool = False,
) -> list[Node]:
    """y_ssm of the new token from the state before the kept ones: its left factor, and a row of the diagonal block."""
    dt = entry("kept_dt", "h", "j")
    hcb = ("h",) if hb or hc else ()
    x, b, c = entry("x_weighted", "h", "p"), entry("B", *hb, "n"), entry("C", *hc, "n")
    nodes: list[Node] = [
        Input("kept_dt", ("h", "j"), "step size of a kept token, after its transform"),
        Input("kept_x", (*hx, "j", "p"), "input of a kept token"),
        Input("kept_B", (*hb, "j", "n"), "expansion of a kept token"),
    ]
    since, passed = log_decay, log_decay
    if layer.family.decays:
        nodes += [
            Map("kept_log_decay", ("h", "j"), layer.log_decay(dt, entry("A", "h")) / sympy.log(2)),
            Cumsum("dA_cs", ("h", "j"), entry("kept_log_decay", "h", "j"), "j"),
            Last("dA_last", ("h",), entry("dA_cs", "h", "j"), "j"),
        ]
        since = entry("dA_last", "h") + log_decay
        passed = since - entry("dA_cs", "h", "j")
    scores, row = entry("kept_CB", *hcb, "j"), entry("kept_scores", "h", "j")
    weights, of_state = decay(passed) * formulas.input_weight(dt), entry("left_decay", "h")
    nodes += [Map("left_decay", ("h",), decay(since))]
    if merged:
        nodes += [
            Map("weights", ("h", "j"), weights),
            Map("carried", ("h", "p"), of_state * entry("scale", "h", "p")),
        ]
        weights, of_state = entry("weights", "h", "j"), entry("carried", "h", "p")
    nodes += [
        Map("y_terms", ("h", "p", "n"), entry("stored" if merged else "state", "h", "p", "n") * c),
        _over_n("y_state", ("h", "p"), "y_terms", ("h", "p", "n")),
        Map("CB_terms", (*hcb, "n"), c * b),
        _over_n("CB", hcb, "CB_terms", (*hcb, "n")),
        Map("kept_CB_terms", (*hcb, "j", "n"), c * entry("kept_B", *hb, "j", "n")),
        _over_n("kept_CB", (*hcb, "j"), "kept_CB_terms", (*hcb, "j", "n")),
        Map("kept_scores", ("h", "j"), scores * weights),
        Map("y_kept_terms", ("h", "j", "p"), row * entry("kept_x", *hx, "j", "p")),
        Sum("y_kept", ("h", "p"), entry("y_kept_terms", "h", "j", "p"), ("j",)),
        Map(
            "y_ssm",
            ("h", "p"),
            of_state * entry("y_state", "h", "p")
            + entry("y_kept", "h", "p")
            + (entry("CB", *hcb) if hcb else sympy.Symbol("CB", real=True)) * x,
        ),
    ]
    return nodes


def _over_n(name: str, axes: tuple[str, ...], of: str, whole: tuple[str, ...]) -> Sum:
    return Sum(name, axes, entry(of, *whole), ("n",))
