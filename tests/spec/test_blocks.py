"""The decomposition as people see it: factors, shapes and ranks, and what is printed of them."""

from __future__ import annotations

import pytest
import sympy

from ssdgen.spec import notation, show
from ssdgen.spec.blocks import adjoints, blocks
from ssdgen.spec.counts import graph_of
from ssdgen.spec.dims import CHUNK, DSTATE, HEADDIM, NGROUPS, NHEADS, entry
from ssdgen.spec.graph import Cumsum, Input, Sum, reads
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import CONSTANT, FAMILIES, NONE
from ssdgen.spec.semiseparable import Tokens, matrix, rank

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
FULL = {"skip": "head", "gate": True, "dt_bias": True, "dt_softplus": True, "initial_states": True, "boundaries": True}


@families
@layouts
def test_four_factors_with_shapes_and_ranks(family, layout):
    found = blocks(Layer(family, layout))
    assert [factor.name for factor in found.factors] == ["diagonal", "right", "centre", "left"]
    assert found.diagonal.matrix == (CHUNK, CHUNK) and found.diagonal.rank == CHUNK
    assert found.right.matrix == (DSTATE, CHUNK) and found.left.matrix == (CHUNK, DSTATE)
    assert found.centre.matrix == (DSTATE, DSTATE) and found.centre.rank == DSTATE
    assert found.right.rank == found.left.rank == found.off_diagonal_rank == sympy.Min(CHUNK, DSTATE)
    assert found.right.shape == found.centre.shape == (NHEADS, HEADDIM, DSTATE)
    assert found.diagonal.shape == found.left.shape == (NHEADS, CHUNK, HEADDIM)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_stated_ranks_are_the_true_ones(chunk: int):
    tokens = Tokens(Layer(), seqlen=2 * chunk, dstate=2)
    found, dense = blocks(tokens.layer, chunk), matrix(tokens, 0)
    assert rank(dense[chunk:, chunk:]) == found.diagonal.rank
    assert rank(dense[chunk:, :chunk]) == found.off_diagonal_rank.subs(DSTATE, 2)


def test_formulas_are_the_layers():
    found = blocks(Layer())
    assert found.diagonal.text.splitlines() == [
        "CB[i, j] = sum over n of C[i, n] B[j, n]",
        "scores[h, i, j] = exp2(dA_cs[h, i] - dA_cs[h, j])*CB[i, j]*dt[h, j] where i >= j, else 0",
        "y_diag[h, i, p] = sum over j of scores[h, i, j] x[h, j, p]",
    ]
    assert found.right.contraction == "hjp,jn->hpn" and found.centre.contraction == ""
    assert r"{\lambda}_{h,i} = 2^{{s}_{h,i}}" in found.left.latex
    assert found.diagonal.equations[0].shape == (NGROUPS, CHUNK, CHUNK)
    assert [equation.text for equation in found.steps] == [
        "dt[h, j] = min(max(dt_min, dt_raw[h, j]), dt_max)",
        "log_decay[h, j] = A[h]*dt[h, j]/log(2)",
        "dA_cs[h, j] = sum over k <= j of log_decay[h, k]",
        "dA_last[h] = dA_cs[h, last]",
    ]


def test_the_description_is_what_is_shown():
    assert "log_decay[h, j] = A[h]/log(2)" in show.text(Layer(CONSTANT))
    plain = show.text(Layer(NONE))
    assert "exp2(dA" not in plain and "log_decay" not in plain
    assert "where seq[i] = seq[j], else 0" in show.text(Layer(boundaries=True))
    assert "sigmoid(z[h, i, p])" in show.text(Layer(gate=True))


@families
@layouts
def test_everything_can_be_shown(family, layout):
    layer = Layer(family, layout, **FULL)
    text, latex = show.text(layer, 64), show.latex(layer, 64)
    assert "matrix 64 x dstate, rank min(64, dstate)" in text
    assert "options: D per head, gate, dt_bias, dt_softplus, initial_states, boundaries" in text
    # nothing that only sympy or Python could have written
    assert not [
        word
        for word in ("Indexed", "Piecewise", "Dummy", "**", "chunk*", "True")
        if word in text.replace("2 ** min", "")
    ]
    for left, right in ("{}", (r"\begin{align*}", r"\end{align*}"), (r"\left(", r"\right)")):
        assert latex.count(left) == latex.count(right)
    assert "&=" in latex and "Indexed" not in latex


@families
@layouts
@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "every option"])
def test_adjoints_in_groups(family, layout, options):
    """Every adjoint once, none before what it reads, and factors beside their own products."""
    layer = Layer(family, layout, **options)
    found, graph = adjoints(layer, 64), graph_of(layer, backward=True)
    names = [equation.name for equations in found.groups.values() for equation in equations]
    expected = [node.name for node in graph.nodes if node.name.startswith("d_") and not isinstance(node, Input)]
    assert sorted(names) == sorted(expected)
    for place, name in enumerate(names):
        assert not set(names[place + 1 :]) & set(reads(graph[name]))
    groups = {title: {equation.name for equation in equations} for title, equations in found.groups.items()}
    assert {"d_scores", "d_C_CB", "d_B_CB", "d_x_y_diag", "d_dt_scores"} < groups["adjoint of the diagonal factor"]
    assert {"d_y_state", "d_C_y_state", "d_state_y_state"} <= groups["adjoint of the left factor"]
    assert {"d_x_weighted", "d_B_local_state"} < groups["adjoint of the right factor"]
    assert {"d_x", "d_B", "d_C", "d_state", "d_dt_raw"} <= groups["gradients"]
    assert ("adjoint of the output" in groups) == bool(options)


@families
@layouts
def test_every_adjoint_can_be_shown(family, layout):
    layer = Layer(family, layout, **FULL)
    text, latex = show.backward_text(layer, 64), show.backward_latex(layer, 64)
    assert "where seq[i] = seq[j], else 0" in text and "rank at most min(64, dstate)" in text
    assert ("d_v_scaled is d_v / log(2)" in text) == family.decays
    assert not [
        word for word in ("Indexed", "Piecewise", "Dummy", "**", "True", "zoo") if word in text.replace("2 ** min", "")
    ]
    for left, right in ("{}", (r"\begin{align*}", r"\end{align*}"), (r"\left(", r"\right)")):
        assert latex.count(left) == latex.count(right)
    assert r"{\overline{x}}_{" in latex and r"{\overline{\mathbf{h}}}_{h,p,n} &=" in latex and "Indexed" not in latex


def test_counts_of_the_adjoint_are_shown():
    text = show.backward_text(Layer(), 64)
    assert "d_scores         65*batch*headdim*nheads*seqlen" in text
    assert "total            5*batch*seqlen*(39*dstate*ngroups + 26*headdim*nheads + 2*dstate*headdim*nheads)" in text
    assert "total     batch*element_bytes*seqlen*(2*nheads + 4*dstate*ngroups + 3*headdim*nheads)" in text


def test_a_chunk_needs_a_position():
    for decomposed in (blocks, adjoints):
        with pytest.raises(ValueError, match="chunk is 0"):
            decomposed(Layer(), 0)


def test_the_roofline_table():
    sizes = {"batch": 8, "seqlen": 2048, "nheads": 80, "headdim": 64, "dstate": 128, "ngroups": 1, "element_bytes": 2}
    table = show.roofline_table(Layer(), **sizes, copy_tbs=4.3, bf16_tflops=790)
    rows = {words[0]: words[1:] for line in table.splitlines() if (words := line.split())}
    assert rows["64"][:4] == ["80.6", "bytes", "80.6", "61.4"]
    assert rows["256"][:4] == ["82.3", "flops", "80.6", "82.3"]
    assert float(rows["single_pass"][0]) < float(rows["segments"][0]) < float(rows["split"][0])
    assert "batch 8, seqlen 2048, nheads 80" in table
    backward = show.roofline_table(Layer(), **sizes, copy_tbs=4.3, bf16_tflops=790, chunks=(64,), backward=True)
    assert backward.splitlines()[-1].split()[:5] == ["64", "150.2", "flops", "122.2", "150.2"]
    assert "schedule" not in backward


def test_sums_as_text_and_latex():
    of, total = entry("x", "h", "j"), entry("x", "h", "j", "p")
    down, heads = Cumsum("dA_cs", ("h", "j"), of, "j", reverse=True), Sum("dA_last", ("j",), total, ("h", "p"))
    assert notation.text(down) == "dA_cs[h, j] = sum over k >= j of x[h, k]"
    assert notation.text(heads) == "dA_last[j] = sum over h, p of x[h, j, p]"
    assert r"\sum_{k \ge j} {x}_{h,k}" in notation.latex(down)
    assert r"\sum_{h,p} {x}_{h,j,p}" in notation.latex(heads)
