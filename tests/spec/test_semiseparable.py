"""Exactly, with a symbol for every entry: dense matrix == recurrence == blocks, and the ranks of the blocks."""

from __future__ import annotations

import itertools

import pytest
import sympy

from ssdgen.spec.chain import Summary, chunked, combine, factored, identity, segmented, summary
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, HeadLayout
from ssdgen.spec.masks import CONSTANT, FAMILIES, SSD, MaskFamily
from ssdgen.spec.semiseparable import Outcome, Tokens, matrix, rank, recurrence, same

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
EVERYTHING = {"skip": "headdim", "gate": True, "dt_bias": True, "dt_softplus": True, "initial_states": True}


def equal(left: Outcome, right: Outcome) -> bool:
    return (
        left.y.keys() == right.y.keys()
        and all(same(left.y[key], right.y[key]) for key in left.y)
        and all(equal_matrices(left.state[head], right.state[head]) for head in left.state)
    )


def equal_matrices(left: sympy.Matrix, right: sympy.Matrix) -> bool:
    return left.shape == right.shape and all(same(a, b) for a, b in zip(left, right, strict=True))


def coefficients(tokens: Tokens, outcome: Outcome, head: int, p: int = 0) -> sympy.Matrix:
    """What each input adds to each output: the matrix that a linear map is, read off its result."""
    inputs = [tokens.operand("x", head, t, p) for t in range(tokens.seqlen)]
    return sympy.Matrix(
        tokens.seqlen, tokens.seqlen, lambda i, j: sympy.expand(outcome.y[head, int(i), p]).coeff(inputs[int(j)])
    )


@families
@layouts
def test_the_recurrence_is_the_dense_matrix(family: MaskFamily, layout: HeadLayout):
    tokens = Tokens(Layer(family, layout), seqlen=5, nheads=4, ngroups=2, dstate=2)
    outcome = recurrence(tokens)
    for head in (0, 3):
        assert equal_matrices(coefficients(tokens, outcome, head), matrix(tokens, head))


@families
@pytest.mark.parametrize("cuts", [(0, 2, 4, 6), (0, 3, 6), (0, 6), (0, 1, 2, 3, 4, 5, 6)], ids=str)
def test_the_blocks_reassembled_are_the_dense_matrix(family: MaskFamily, cuts: tuple[int, ...]):
    tokens = Tokens(Layer(family), seqlen=6, dstate=2)
    assert equal_matrices(coefficients(tokens, chunked(tokens, cuts), 0), matrix(tokens, 0))


@families
@layouts
def test_chunks_are_the_recurrence_in_every_layout(family: MaskFamily, layout: HeadLayout):
    tokens = Tokens(Layer(family, layout, initial_states=True), seqlen=5, nheads=4, ngroups=2, dstate=2)
    assert equal(chunked(tokens, (0, 2, 4, 5)), recurrence(tokens))


@families
def test_chunks_are_the_recurrence_with_every_option(family: MaskFamily):
    layer = Layer(family, boundaries=True, **EVERYTHING)
    tokens = Tokens(layer, seqlen=5, headdim=2, dstate=2, sequence=(0, 0, 0, 1, 1))
    assert equal(chunked(tokens, (0, 2, 4, 5)), recurrence(tokens))


@pytest.mark.parametrize(
    "sequence", list(itertools.product((0, 1), repeat=4)), ids=lambda bits: "".join(map(str, bits))
)
def test_every_place_of_a_boundary(sequence: tuple[int, ...]):
    # a new sequence wherever a bit is set
    numbers = tuple(itertools.accumulate((0, *sequence)))
    tokens = Tokens(Layer(boundaries=True, initial_states=True), seqlen=5, sequence=numbers)
    expected = recurrence(tokens)
    assert equal(chunked(tokens, (0, 2, 4, 5)), expected)
    assert equal(segmented(tokens, [(0, 1, 3), (3, 5)]), expected)


@families
@pytest.mark.parametrize("segments", [[(0, 2, 4), (4, 6)], [(0, 1), (1, 3, 5), (5, 6)], [(0, 2, 4, 6)]], ids=str)
def test_segments_of_chunks_are_chunks(family: MaskFamily, segments: list[tuple[int, ...]]):
    tokens = Tokens(Layer(family, initial_states=True), seqlen=6, headdim=2)
    assert equal(segmented(tokens, segments), recurrence(tokens))


def test_a_summary_does_not_depend_on_how_its_tokens_are_cut():
    tokens = Tokens(Layer(), seqlen=6, dstate=2)
    whole = summary(tokens, 0, (0, 6))
    parts = [summary(tokens, 0, cuts) for cuts in ((0, 2), (2, 3, 5), (5, 6))]
    left_first = combine(combine(parts[0], parts[1]), parts[2])
    for other in (summary(tokens, 0, (0, 2, 4, 6)), left_first):
        assert same(other.total, whole.total) and equal_matrices(other.state, whole.state)


@pytest.mark.parametrize("totals", [(-1, -2, -3), (0, -1, -sympy.oo), (-sympy.oo, -1, -2), (-1, -sympy.oo, 0)], ids=str)
def test_combining_summaries_is_associative(totals: tuple[sympy.Expr, ...]):
    states = (sympy.Matrix(1, 2, sympy.symbols(f"{name}0:2", real=True)) for name in "abc")
    first, second, third = (Summary(sympy.sympify(total), state) for total, state in zip(totals, states, strict=True))
    one, other = combine(combine(first, second), third), combine(first, combine(second, third))
    assert one.total == other.total and equal_matrices(one.state, other.state)


def test_no_tokens_are_the_identity():
    tokens = Tokens(Layer(), seqlen=2, dstate=2)
    some, none = summary(tokens, 0, (0, 2)), identity(tokens)
    for other in (combine(some, none), combine(none, some)):
        assert same(other.total, some.total) and equal_matrices(other.state, some.state)


@families
@layouts
def test_a_block_is_its_three_factors(family: MaskFamily, layout: HeadLayout):
    """left (rows x N) times centre times right (N x columns): so no block below the diagonal has a rank above N."""
    tokens, cuts = Tokens(Layer(family, layout), seqlen=7, nheads=2, dstate=2), (0, 2, 4, 7)
    for head in range(tokens.nheads):
        dense = matrix(tokens, head)
        for row, column in ((1, 0), (2, 0), (2, 1)):
            left, centre, right = factored(tokens, head, cuts, row, column)
            block = dense[cuts[row] : cuts[row + 1], cuts[column] : cuts[column + 1]]
            assert left.shape[1] == right.shape[0] == tokens.dstate
            assert equal_matrices(left * centre * right, block)


@pytest.mark.parametrize("family", [SSD, CONSTANT], ids=lambda family: family.name)
@pytest.mark.parametrize("dstate", [1, 2, 3])
def test_ranks(family: MaskFamily, dstate: int):
    """Every block strictly below the diagonal has rank min(N, rows, columns); the matrix itself has full rank."""
    dense = matrix(Tokens(Layer(family), seqlen=6, dstate=dstate), 0)
    for split in range(1, 6):
        assert rank(dense[split:, :split]) == min(dstate, split, 6 - split)
    assert rank(dense) == 6
    assert rank(dense[:3, :3]) == 3


def test_ranks_after_a_softplus():
    dense = matrix(Tokens(Layer(dt_softplus=True), seqlen=4), 0)
    assert rank(dense[2:, :2]) == 1 and rank(dense) == 4


def test_tokens_say_what_is_wrong():
    with pytest.raises(ValueError, match="nheads 3 is not divisible by ngroups 2"):
        Tokens(Layer(), seqlen=2, nheads=3, ngroups=2)
    with pytest.raises(ValueError, match="a layer with boundaries needs one per token"):
        Tokens(Layer(boundaries=True), seqlen=2)
