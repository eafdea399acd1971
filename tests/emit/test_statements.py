"""Each statement of a plan becomes the Triton that it says, one idiom each."""

from __future__ import annotations

import pytest

from ssdgen.emit.statements import StatementPrinter, scalar
from ssdgen.pack import templates
from ssdgen.plan import ir
from ssdgen.spec.dims import entry

ROW = ir.Span("i", "row", "CHUNK", "row0", "row_in")
COL = ir.Span("p", "p", "BLOCK_P", "p0", "p_in")
X = ir.Tensor("x", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", strided="unit")
DT = ir.Tensor("dt", ("batch", "nheads", "padded"), "float32")
A = ir.Tensor("A", ("nheads",), "any")
Y = ir.Tensor("y", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", out=True)
SEQ = ir.Tensor("seq_idx", ("batch", "seqlen"), "int", flag="HAS_SEQ_IDX")
ENDS = ir.Tensor("cu_seqlens", ("sequences",), "index", flag="HAS_CU_SEQLENS")
TILE = ir.Value("x", ("i", "p"), "operand")


@pytest.fixture(autouse=True)
def _templates() -> None:
    templates.load()


def lines(*body: ir.Stmt) -> list[str]:
    kernel = ir.Kernel("k", "about", (), (X, DT, A, Y, SEQ, ENDS), (), (), (), (), (), body)
    return StatementPrinter(kernel).lines(body, 4)


def one(stmt: ir.Stmt) -> str:
    found = " ".join(line.strip() for line in lines(stmt))
    return found.replace("( ", "(").replace(", )", ")").replace(" )", ")")


@pytest.mark.parametrize(
    ("stmt", "text"),
    [
        (ir.Scalar("b", "program_id(2)", wide=True), "b = tl.cast(tl.program_id(2), tl.int64)"),
        (ir.Scalar("n", "cdiv(stop, CHUNK)", narrow=True), "n = tl.cast(tl.cdiv(stop, CHUNK), tl.int32)"),
        (ir.Scalar("stop", "minimum(start + 4, seqlen)"), "stop = tl.minimum(start + 4, seqlen)"),
        (ir.Arange("row", "i", "CHUNK"), "row = tl.arange(0, CHUNK)"),
        (ir.Mask("row_in", "i", "row", "seqlen - row0"), "row_in = row < seqlen - row0"),
        (ir.Full(ir.Value("s", ("n", "p")), ("N", "P")), "s = tl.zeros([N, P], dtype=tl.float32)"),
        (ir.Full(ir.Value("s", ("n",)), ("N",), 1.0), "s = tl.full([N], 1.0, dtype=tl.float32)"),
        (ir.Full(ir.Value("total", ()), ()), "total = 0.0"),
        (ir.Cumsum(ir.Value("s", ("h", "j")), ir.Value("a", ("h", "j")), "j"), "s = tl.cumsum(a, axis=1)"),
        (ir.Sum(ir.Value("s", ("h",)), ir.Value("a", ("j", "h")), "j"), "s = tl.sum(a, axis=0)"),
        (
            ir.Split(ir.Value("x_0", ("i", "r")), ir.Value("x_1", ("i", "r")), ir.Value("x", ("i", "n")), ("I", "R")),
            "x_0, x_1 = tl.split(x.reshape(I, R, 2))",
        ),
        (
            ir.Join(ir.Value("x", ("n",)), ir.Value("x_0", ("r",)), ir.Value("x_1", ("r",)), ("2 * R",)),
            "x = tl.join(x_0, x_1).reshape(2 * R)",
        ),
        (ir.Note("why"), "# why"),
        (ir.Load(ir.Value("A", ()), "A", ("head",)), "A = tl.load(A_ptr + head).to(tl.float32)"),
        (ir.Load(ir.Value("stop", (), "int"), "cu_seqlens", ("b",)), "stop = tl.load(cu_seqlens_ptr + b).to(tl.int64)"),
        (
            ir.Load(TILE, "x", ("b", ROW, "head", COL), descriptor=True),
            # scalar dimensions first, so that the block is a matrix
            "x = x_desc.load([tl.cast(b, tl.int32), tl.cast(head, tl.int32), tl.cast(row0, tl.int32), p0]) "
            "x = x.reshape(CHUNK, BLOCK_P)",
        ),
        (
            ir.Store("y", ("b", ROW, "head", COL), TILE, descriptor=True),
            "y_desc.store([tl.cast(b, tl.int32), tl.cast(head, tl.int32), tl.cast(row0, tl.int32), p0], "
            "x.to(y_desc.dtype).reshape(1, 1, CHUNK, BLOCK_P))",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_idioms(stmt: ir.Stmt, text: str) -> None:
    assert one(stmt) == text


def test_halves_of_what_is_still_in_the_operands_dtype_are_too() -> None:
    halves = tuple(ir.Value(f"x_{k}", ("i", "r"), "operand") for k in (0, 1))
    added = entry("x_0", "i", "r") + entry("x_1", "i", "r")
    split, let = ir.Split(*halves, TILE, ("I", "R")), ir.Let(ir.Value("y", ("i", "r")), added, halves)
    assert lines(split, let)[1].strip() == "y = x_0.to(tl.float32) + x_1.to(tl.float32)"


def test_a_load_has_every_stride_and_mask() -> None:
    text = one(ir.Load(TILE, "x", ("b", ROW, "head", COL)))
    parts = ["b * stride_x_batch", "row0 * stride_x_seqlen", "row[:, None] * stride_x_seqlen", "head * stride_x_nheads"]
    for part in [*parts, "p0", "p[None, :]", "mask=row_in[:, None] & p_in[None, :]", "other=0.0"]:
        assert part in text
    # integers are padded with an integer
    whole = ir.Load(ir.Value("seq", ("i",), "int"), "seq_idx", ("b", ROW))
    assert "other=0)" in one(whole) and ".to(" not in one(whole)


def test_contiguous_offsets_start_from_the_64_bit_index() -> None:
    """(b * nheads + head) * padded: multiplied from the left, so that nothing wraps in 32 bits."""
    text = one(ir.Load(ir.Value("dt", ("i",)), "dt", ("b", "head", ir.Span("i", "row", "CHUNK", "row0"))))
    assert "(b * nheads + head) * padded" in text and "mask" not in text


def test_a_product_has_its_operands_in_order_and_rounded() -> None:
    scores, x, y = ir.Value("scores", ("i", "j")), ir.Value("x", ("j", "p"), "operand"), ir.Value("y", ("i", "p"))
    load = ir.Load(x, "x", ("b", ir.Span("j", "row", "CHUNK", "row0", "row_in"), "head", COL))

    def dot(*arguments, acc: bool = False) -> str:
        return lines(load, ir.Dot(*arguments, acc))[-1].strip()

    # x is in the operands' dtype already, scores are not
    assert dot(y, scores, x, "j") == "y = tl.dot(scores.to(DOT), x, input_precision=PRECISION)"
    assert dot(y, scores, x, "j", acc=True) == "y = tl.dot(scores.to(DOT), x, acc=y, input_precision=PRECISION)"
    # the operand with the rows of the result comes first, whichever it is
    assert dot(y, x, scores, "j") == "y = tl.dot(scores.to(DOT), x, input_precision=PRECISION)"
    turned = ir.Value("y", ("p", "i"))
    assert dot(turned, scores, x, "j") == "y = tl.dot(tl.trans(x), tl.trans(scores).to(DOT), input_precision=PRECISION)"


def test_options_and_loops_nest() -> None:
    add = ir.Let(ir.Value("y", ("i",)), entry("y", "i") + entry("D", "i"), ())
    body = ir.For("step", "cdiv(seqlen, CHUNK)", (ir.When("HAS_D", (add,), (ir.Note("none"),)),))
    assert (
        lines(body)
        == [
            "    for step in range(tl.cdiv(seqlen, CHUNK)):",
            "        if HAS_D:",
            "            y = D + y",
            "        else:",
            "            # none",
        ]
        or lines(body)[2] == "            y = y + D"
    )


def test_what_does_not_change_in_a_loop_stands_before_it() -> None:
    row0 = ir.Scalar("row0", "step * CHUNK")
    load = ir.Load(TILE, "x", ("b", ROW, "head", COL))
    text = lines(ir.For("step", "chunks", (row0, load)))
    assert text[0] == "    x_base = x_ptr + b * stride_x_batch + head * stride_x_nheads + p0"
    loop = text.index("    for step in range(chunks):")
    assert "x_base + row0 * stride_x_seqlen" in " ".join(text[loop:]) and "stride_x_batch" not in " ".join(text[loop:])


def test_an_unknown_statement_is_refused() -> None:
    with pytest.raises(TypeError, match="no idiom for the statement object"):
        lines(object())  # type: ignore[arg-type]


def test_only_whole_names_are_calls() -> None:
    assert scalar("minimum(a, cdiv(b, c))") == "tl.minimum(a, tl.cdiv(b, c))"
    assert scalar("maximum_of + program_id(1)") == "maximum_of + tl.program_id(1)"
