"""The adjoint as a graph: what it is made of, exactly in symbols, printable, and nothing in it is without effect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy

from ssdgen.emit.formula import FormulaPrinter
from ssdgen.spec import notation
from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.dims import entry, name_of
from ssdgen.spec.entries import Entries
from ssdgen.spec.functions import sigmoid
from ssdgen.spec.gradient import NotDifferentiable, adjoint, chunk_adjoint, gradients
from ssdgen.spec.graph import Contract, Cumsum, Graph, Input, Last, Map, Sum
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_CONTRACT, MULTI_HEAD
from ssdgen.spec.masks import FAMILIES, NONE
from ssdgen.spec.oracle_gradient import backward
from ssdgen.spec.specialise import specialise
from tests.spec.autograd import automatic
from tests.spec.cases import Sizes
from tests.spec.test_broken import broken_formulas, with_node
from tests.spec.test_gradient import EVERYTHING, problem

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
FULL = Layer(skip="headdim", **EVERYTHING)


def added(layer: Layer) -> tuple:
    """The nodes that are not the forward graph's."""
    return chunk_adjoint(layer).nodes[len(chunk_graph(layer).nodes) :]


def equations(layer: Layer) -> list[str]:
    """The adjoints for the layer's own options, as text."""
    graph = chunk_adjoint(layer)
    nodes = specialise(graph, layer.flags(), gradients(layer, graph)).nodes
    return [notation.text(node) for node in nodes if node.name.startswith("d_") and not isinstance(node, Input)]


@families
@layouts
def test_it_is_the_forward_graph_and_more(family, layout):
    forward, graph = chunk_graph(Layer(family, layout)), chunk_adjoint(Layer(family, layout))
    assert graph.nodes[: len(forward.nodes)] == forward.nodes
    more = graph.nodes[len(forward.nodes) :]
    assert [node.name for node in more if isinstance(node, Input)] == ["d_y", "d_state_out"]
    assert all(node.name.startswith("d_") for node in more)
    for name in ("x", "B", "C", "D", "z", "dt_raw", "dt_bias", "state", *(["A"] if family.uses_a else [])):
        assert graph[f"d_{name}"].axes == forward[name].axes
    assert "d_seq" not in graph and "d_total" not in graph and ("d_A" in graph) == family.uses_a


def test_the_plain_layer_reads_like_the_mathematics():
    assert equations(Layer()) == [
        "d_centre_decay_terms[h, p, n] = d_state_out[h, p, n]*state[h, p, n]",
        "d_centre_decay[h] = sum over p, n of d_centre_decay_terms[h, p, n]",
        "d_x_weighted[h, j, p] = sum over n of B[j, n] d_state_out[h, p, n]",
        "d_B_local_state[h, j, n] = sum over p of x[h, j, p] d_state_out[h, p, n]",
        "d_right_decay_terms[h, j, p] = d_x_weighted[h, j, p]*x[h, j, p]",
        "d_right_decay[h, j] = sum over p of d_right_decay_terms[h, j, p]",
        "d_C_y_state[h, i, n] = sum over p of d_y[h, i, p] state[h, p, n]",
        "d_left_decay_terms[h, i, n] = C[i, n]*d_C_y_state[h, i, n]",
        "d_left_decay[h, i] = sum over n of d_left_decay_terms[h, i, n]",
        "d_scores[h, i, j] = sum over p of d_y[h, i, p] x[h, j, p]",
        "d_x_y_diag[h, j, p] = sum over i of scores[h, i, j] d_y[h, i, p]",
        "d_y_state[h, i, p] = left_decay[h, i]*d_y[h, i, p]",
        "d_state_y_state[h, p, n] = sum over i of d_y_state[h, i, p] C[i, n]",
        "d_dA_last_right_decay_terms[h, j] = d_right_decay[h, j]*right_decay[h, j]",
        "d_dA_last_right_decay[h] = sum over j of d_dA_last_right_decay_terms[h, j]",
        "d_dA_cs_scores_terms[h, i, j] = d_scores[h, i, j]*scores[h, i, j]",
        "d_dA_cs_scores_rows[h, i] = sum over j of d_dA_cs_scores_terms[h, i, j]",
        "d_dA_cs_scores_columns[h, j] = sum over i of d_dA_cs_scores_terms[h, i, j]",
        "d_dt_scores_terms[h, i, j] = exp2(dA_cs[h, i] - dA_cs[h, j])*CB[i, j]*d_scores[h, i, j] where i >= j, else 0",
        "d_dt_scores[h, j] = sum over i of d_dt_scores_terms[h, i, j]",
        "d_CB_head[h, i, j] = exp2(dA_cs[h, i] - dA_cs[h, j])*dt[h, j]*d_scores[h, i, j] where i >= j, else 0",
        "d_CB[i, j] = sum over h of d_CB_head[h, i, j]",
        "d_C_CB[i, n] = sum over j of d_CB[i, j] B[j, n]",
        "d_B_CB[j, n] = sum over i of d_CB[i, j] C[i, n]",
        "d_dA_last_scaled[h] = centre_decay[h]*d_centre_decay[h] + d_dA_last_right_decay[h]",
        "d_dA_cs_scaled[h, j] = d_left_decay[h, j]*left_decay[h, j] + d_dA_cs_scores_rows[h, j]"
        " - d_right_decay[h, j]*right_decay[h, j] - d_dA_cs_scores_columns[h, j]",
        "d_log_decay_dA_cs[h, j] = sum over k >= j of d_dA_cs_scaled[h, k]",
        "d_log_decay_scaled[h, j] = d_dA_last_scaled[h] + d_log_decay_dA_cs[h, j]",
        "d_A_terms[h, j] = d_log_decay_scaled[h, j]*dt[h, j]",
        "d_A[h] = sum over j of d_A_terms[h, j]",
        "d_dt[h, j] = exp2(dA_last[h] - dA_cs[h, j])*d_right_decay[h, j] + A[h]*d_log_decay_scaled[h, j]"
        " + d_dt_scores[h, j]",
        "d_dt_raw[h, j] = d_dt[h, j] where dt_raw[h, j] = min(max(dt_min, dt_raw[h, j]), dt_max), else 0",
        "d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]",
        "d_C_head[h, i, n] = left_decay[h, i]*d_C_y_state[h, i, n]",
        "d_C_heads[i, n] = sum over h of d_C_head[h, i, n]",
        "d_C[i, n] = d_C_CB[i, n] + d_C_heads[i, n]",
        "d_B_head[h, j, n] = right_decay[h, j]*d_B_local_state[h, j, n]",
        "d_B_heads[j, n] = sum over h of d_B_head[h, j, n]",
        "d_B[j, n] = d_B_CB[j, n] + d_B_heads[j, n]",
        "d_x[h, j, p] = right_decay[h, j]*d_x_weighted[h, j, p] + d_x_y_diag[h, j, p]",
    ]


def test_heads_that_share_nothing_are_summed_over_nowhere():
    for family in FAMILIES.values():
        assert not [node for node in added(Layer(family, MULTI_HEAD)) if isinstance(node, Sum) and "h" in node.over]
    shared = {node.name for node in added(Layer(layout=MULTI_CONTRACT)) if isinstance(node, Sum) and "h" in node.over}
    assert shared == {"d_x", "d_B"}


@families
@layouts
def test_the_strict_printer_prints_every_formula(family, layout):
    for node in added(Layer(family, layout)):
        if isinstance(node, Map):
            assert FormulaPrinter(node.axes).print(node.formula)
            # an option is an update in place
            assert (node.option is None) == (node.otherwise is None)
            assert node.otherwise is None or isinstance(node.otherwise, sympy.Indexed)


@families
@layouts
def test_constants_cancel_and_sums_start_from_products(family, layout):
    graph = chunk_adjoint(Layer(family, layout))
    maps = {node.name: node for node in added(Layer(family, layout)) if isinstance(node, Map)}
    assert not [name for name, node in maps.items() if node.formula.has(sympy.log)]
    for name, product in (("d_x", "d_x_y_diag"), ("d_C", "d_C_CB"), ("d_B", "d_B_CB"), ("d_state", "d_state_y_state")):
        whole = next(maps[n] for n in (f"{name}_head_base", f"{name}_base", f"{name}_head", name) if n in maps)
        if product not in {name_of(term) for term in whole.formula.args if isinstance(term, sympy.Indexed)}:
            whole = maps[name]
        assert product in {name_of(term) for term in whole.formula.args if isinstance(term, sympy.Indexed)}
        assert isinstance(graph[product], Contract)


@families
def test_exactly_in_symbols(family):
    """A chunk of two positions: every adjoint is the derivative of sum(d_y y) + sum(d_state_out state_out)."""
    layer = Layer(family, skip="headdim", gate=True)
    graph, sizes = chunk_adjoint(layer), {"h": 2, "i": 2, "p": 1, "n": 1}
    symbols: dict[str, dict[tuple[int, ...], sympy.Symbol]] = {}

    def given(name: str, **assumptions: bool):
        def read(*at: int) -> sympy.Symbol:
            known = symbols.setdefault(name, {})
            return known.setdefault(at, sympy.Symbol(f"{name}{''.join(map(str, at))}", real=True, **assumptions))

        return read

    names = ("x", "B", "C", "D", "z", "state", "d_y", "d_state_out")
    inputs = {name: given(name) for name in names} | {"dt_raw": given("dt_raw", positive=True)}
    inputs |= {"A": given("A", negative=True), "dt_min": lambda: sympy.Integer(0), "dt_max": lambda: sympy.oo}
    entries = Entries(graph, inputs, sizes, layer.flags())

    def over(axes: tuple[str, ...]):
        return np.ndindex(*(sizes["i" if axis == "j" else axis] for axis in axes))

    loss = sympy.Add(
        *(
            entries(f"d_{name}", *at) * entries(name, *at)
            for name in ("y", "state_out")
            for at in over(graph[name].axes)
        )
    )
    for name in gradients(layer, graph):
        own = name.removeprefix("d_")
        for at in over(graph[name].axes):
            expected = loss.diff(inputs[own](*at))
            difference = (entries(name, *at) - expected).rewrite(sympy.exp)
            values = {symbol: 0.3 + 0.1 * k for k, symbol in enumerate(sorted(difference.free_symbols, key=str))}
            values = {symbol: -value if str(symbol)[0] == "A" else value for symbol, value in values.items()}
            assert sympy.simplify(difference) == 0 or abs(difference.evalf(40, subs=values)) < 1e-30, (name, at)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [Layer(initial_states=True), FULL], ids=["plain", "every option"])
def test_every_broken_adjoint_is_noticed(layer: Layer, seed: int):
    """Each sign, factor, term and condition that was derived matters."""
    arrays, d_y, d_states = problem(layer, Sizes(1, 8, 2, 2, 2), seed, (0.3, 1.2))
    if layer.boundaries:
        # within two chunks of 3, with states that pass between them
        arrays["seq_idx"] = np.array([[0, 0, 0, 0, 1, 1, 1, 2]])
    expected = automatic(layer, arrays, d_y, d_states)
    graph = chunk_adjoint(layer)

    def noticed(broken: Graph) -> bool:
        found = backward(layer, arrays, d_y, d_states, chunk=3, graph=broken)
        return any(abs(found[name] - value).max() > 1e-7 for name, value in expected.items())

    assert not noticed(graph)
    needed = specialise(graph, layer.flags(), gradients(layer, graph))
    cases = []
    for node in added(layer):
        on = isinstance(node, Map) and (node.option is None or layer.flags()[node.option])
        if node.name in needed and isinstance(node, Map) and on:
            cases += [(f"{node.name} {what}", replace(node, formula=f)) for what, f in broken_formulas(node.formula)]
        if isinstance(node, Cumsum):
            cases.append((f"{node.name} from the start", replace(node, reverse=False)))
    assert len(cases) > 60
    assert [what for what, node in cases if not noticed(with_node(graph, node))] == []


def test_a_broken_derivative_is_noticed(seed: int, monkeypatch):
    layer = Layer(gate=True)
    arrays, d_y, d_states = problem(layer, Sizes(), seed)
    expected = automatic(layer, arrays, d_y, d_states)["d_z"]
    monkeypatch.setattr(sigmoid, "fdiff", lambda self, argindex=1: sigmoid(self.args[0]))
    found = backward(layer, arrays, d_y, d_states, chunk=3, graph=chunk_adjoint(layer))["d_z"]
    assert abs(found - expected).max() > 1e-3


def test_gradients_are_those_of_the_options():
    assert gradients(Layer(), chunk_adjoint(Layer())) == ("d_dt_raw", "d_A", "d_x", "d_B", "d_C", "d_state")
    assert {"d_D", "d_z", "d_dt_bias"} < {*gradients(FULL, chunk_adjoint(FULL))}
    assert "d_A" not in gradients(Layer(NONE), chunk_adjoint(Layer(NONE)))


X = Input("x", ("h", "j"), "x")


def test_an_adjoint_of_some_inputs_only():
    graph = adjoint(chunk_graph(Layer()), inputs=("x",))
    assert "d_x" in graph and not {"d_B", "d_C", "d_dt_raw", "d_scores", "d_dA_cs_scaled"} & {
        n.name for n in graph.nodes
    }


def test_every_kind_of_node_twice_over():
    """The adjoint of a running sum from the end is one from the start, that of a sum is spread."""
    of = entry("x", "h", "j")
    nodes = (
        X,
        Cumsum("down", ("h", "j"), of, "j", reverse=True),
        Map("twice", ("h", "j"), entry("down", "h", "j") ** 2),
        Sum("out", ("h",), entry("twice", "h", "j"), ("j",)),
    )
    found = adjoint(Graph("g", nodes), ("out",))
    assert [notation.text(node) for node in found.nodes[5:]] == [
        "d_twice[h, j] = d_out[h]",
        "d_down[h, j] = 2*d_twice[h, j]*down[h, j]",
        "d_x[h, j] = sum over k <= j of d_down[h, k]",
    ]


def test_what_no_rule_covers_is_refused():
    last = Graph("g", (X, Last("last", ("h",), entry("x", "h", "j"), "j")))
    with pytest.raises(NotDifferentiable, match="last is the last entry of x, which is no running sum"):
        adjoint(last, ("last",))
    wide = (Input("w", ("h", "i", "p"), "w"), Input("v", ("p",), "v"))
    product = Graph("g", (*wide, Contract("u", ("h", "i"), entry("w", "h", "i", "p"), entry("v", "p"), "p")))
    with pytest.raises(NotDifferentiable, match="is no product over one axis"):
        adjoint(product, ("u",))
