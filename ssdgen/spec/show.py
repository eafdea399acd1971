"""The description as a person reads it: equations, blocks, ranks, counts, floors.  blocks, counts -> text, LaTeX"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sympy

from . import counts, mamba3
from .blocks import Adjoints, Blocks, Equation, Factor, adjoints, blocks
from .dims import BATCH, CHUNK, DSTATE, HEADDIM, NGROUPS, NHEADS, SEQLEN
from .graph import Input
from .layer import Layer
from .notation import formula_latex, formula_text
from .notation import text as node_text
from .roofline import floor

CLAMP_NOTE = "exp2(u) is 2 ** min(u, 0): no exponent is positive, but a difference of rounded sums can come out so."
SCALED_NOTE = "d_v_scaled is d_v / log(2): the factor that sums in base 2 would bring in, and divide out again."


def text(layer: Layer, chunk: int | None = None) -> str:
    """The decomposition of `layer` and its counts as plain text; chunk: positions per chunk, a symbol if None."""
    found = blocks(layer, CHUNK if chunk is None else chunk)
    parts = [_heading(layer), "", "before the factors", *_lines(found.steps)]
    for factor in found.factors:
        parts += ["", f"{factor.name} factor: {factor.about}", *_lines(factor.equations), *_lines_of(factor)]
    parts += ["", "output", *_lines(found.output), "", CLAMP_NOTE]
    parts += [f"A block strictly below the diagonal has rank at most {formula_text(found.off_diagonal_rank)}."]
    parts += ["", "FLOPs of the matrix products", *_table(_counts(counts.flops(layer), found))]
    parts += ["", "special functions", *_table(_counts(counts.exponentials(layer), found))]
    parts += ["", "bytes, each array once", *_table(_counts(counts.least_bytes(layer), found))]
    for schedule in counts.SCHEDULES:
        extra = counts.extra_bytes(layer, schedule)
        parts += ["", f"bytes that {schedule} adds", *_table(_counts(extra, found))]
    return "\n".join(parts) + "\n"


def latex(layer: Layer, chunk: int | None = None) -> str:
    """The same equations, ranks and counts as LaTeX paragraphs (amsmath), to be put into a document."""
    found = blocks(layer, CHUNK if chunk is None else chunk)
    parts = [_paragraph("Before the factors", found.steps)]
    for factor in found.factors:
        rows, columns = (formula_latex(extent) for extent in factor.matrix)
        about = f"{factor.name.capitalize()} factor: {factor.about}"
        rank = rf"As a matrix ${rows} \times {columns}$, of rank ${formula_latex(factor.rank)}$."
        parts.append(_paragraph(about, factor.equations) + rank + "\n")
    parts.append(_paragraph("Output", found.output))
    return "\n".join([*parts, _least_work(found)])


def mamba3_text(backward: bool = False, chunk: int | None = None) -> str:
    """Mamba-3's description as plain text: tokens, the state that enters, and the chunks, or the adjoints of these."""
    layer = replace(mamba3.LAYER, skip="head", gate=True)
    graphs = {
        "steps and operands of a run of tokens; r: pairs of state dimensions": mamba3.tokens_graph(),
        "the state that the first chunk takes": mamba3.entering_graph(),
    }
    if backward:
        whole, entering = mamba3.tokens_adjoint(), mamba3.entering_adjoint()
        made = dict(zip(graphs, (whole, entering), strict=True))
        parts = [backward_text(layer, chunk)]
        for title, forward in graphs.items():
            own = [node for node in made[title].nodes if node.name not in forward and not isinstance(node, Input)]
            parts += [f"adjoint of {title}", *(f"  {node_text(node)}" for node in own), ""]
        return "\n".join(parts)
    parts = []
    for title, graph in graphs.items():
        parts += [title, *(f"  {node_text(node)}" for node in graph.nodes if not isinstance(node, Input)), ""]
    return "\n".join([*parts, text(layer, chunk)])


def backward_text(layer: Layer, chunk: int | None = None) -> str:
    """The adjoint of a chunk of `layer` and its counts as plain text; chunk: positions per chunk, a symbol if None."""
    found = adjoints(layer, CHUNK if chunk is None else chunk)
    parts = [_heading(layer), "", "from the forward pass, computed again", *_lines(found.again)]
    for title, equations in found.groups.items():
        parts += ["", title, *_lines(equations)]
    parts += ["", CLAMP_NOTE]
    if any(equation.name.endswith("_scaled") for equations in found.groups.values() for equation in equations):
        parts.append(SCALED_NOTE)
    rank = formula_text(found.off_diagonal_rank)
    parts.append(f"The matrix from d_y to d_x is the transpose: a block above its diagonal has rank at most {rank}.")
    flops = counts.flops(layer, backward=True)
    parts += ["", "FLOPs of the matrix products", *_table(_counts(_with_total(flops), found))]
    parts += ["", "special functions", *_table(_counts(counts.exponentials(layer, backward=True), found))]
    least = counts.least_bytes(layer, backward=True)
    parts += ["", "bytes, each array once", *_table(_counts(_with_total(least), found))]
    return "\n".join(parts) + "\n"


def backward_latex(layer: Layer, chunk: int | None = None) -> str:
    """The same equations and the totals as LaTeX paragraphs (amsmath), to be put into a document."""
    found = adjoints(layer, CHUNK if chunk is None else chunk)
    parts = [_paragraph("From the forward pass, computed again", found.again)]
    parts += [_paragraph(title.capitalize(), equations) for title, equations in found.groups.items()]
    return "\n".join([*parts, _least_work(found, backward=True)])


def roofline_table(
    layer: Layer,
    batch: int,
    seqlen: int,
    nheads: int,
    headdim: int,
    dstate: int,
    ngroups: int,
    element_bytes: int,
    copy_tbs: float,
    bf16_tflops: float,
    chunks: Sequence[int] = (64, 128, 256),
    segment: int = 512,
    state_bytes: int = 2,
    backward: bool = False,
) -> str:
    """Least time for some chunk sizes, and what each schedule adds to the bytes, as plain text.

    Sizes and rates as in `roofline.floor`; segment: tokens per segment; state_bytes: of a state between kernels;
    backward: of the backward pass, the least time alone.
    """
    sizes = (batch, seqlen, nheads, headdim, dstate, ngroups, element_bytes)
    floors = {chunk: floor(layer, *sizes, chunk, copy_tbs, bf16_tflops, backward=backward) for chunk in chunks}
    rows = [("chunk", "floor us", "binds", "bytes us", "FLOPs us", "MB", "GFLOP")]
    for chunk, least in floors.items():
        times = [f"{value:.1f}" for value in (least.us, least.bytes_us, least.flops_us)]
        work = (f"{least.bytes / 1e6:.1f}", f"{least.flops / 1e9:.1f}")
        rows.append((str(chunk), times[0], least.binds, times[1], times[2], *work))
    names = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups", "element_bytes")
    described = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    parts = [_heading(layer), described, f"{copy_tbs:g} TB/s copy, {bf16_tflops:g} TFLOP/s dense", ""]
    if backward:
        return "\n".join([*parts, "backward pass", *_table(rows), ""])
    values = dict(zip((BATCH, SEQLEN, NHEADS, HEADDIM, DSTATE, NGROUPS, counts.ELEMENT_BYTES), sizes, strict=True))
    values |= {counts.SEGMENT: segment, counts.STATE_BYTES: state_bytes}
    added = [("schedule", *(f"chunk {chunk}" for chunk in chunks))]
    for schedule in counts.SCHEDULES:
        extra = sympy.Add(*counts.extra_bytes(layer, schedule).values())
        times = (counts.at(extra, {**values, CHUNK: chunk}) / copy_tbs / 1e6 for chunk in chunks)
        added.append((schedule, *(f"{time:.1f}" for time in times)))
    title = f"us of bytes that a schedule adds (segments of {segment}, states between kernels of {state_bytes} bytes)"
    return "\n".join([*parts, *_table(rows), "", title, *_table(added), ""])


def _heading(layer: Layer) -> str:
    options = [f"D per {layer.skip}"] if layer.skip != "none" else []
    switches = ("gate", "dt_bias", "dt_softplus", "initial_states", "boundaries")
    options += [name for name in switches if getattr(layer, name)]
    return "\n".join(
        [
            f"mask: {layer.family.name} ({layer.family.about})",
            f"heads: {layer.layout.name} ({layer.layout.about})",
            *([f"inputs: {rule.name} ({rule.about})"] if (rule := layer.discretisation).made else []),
            f"options: {', '.join(options) or 'none'}",
        ]
    )


def _lines(equations: Iterable[Equation]) -> list[str]:
    return [f"  {equation.text}" for equation in equations]


def _lines_of(factor: Factor) -> list[str]:
    rows, columns = (formula_text(extent) for extent in factor.matrix)
    shape = ", ".join(formula_text(extent) for extent in factor.shape)
    how = f"contraction {factor.contraction}" if factor.contraction else "element-wise"
    return [f"  -> [{shape}]; {how}; matrix {rows} x {columns}, rank {formula_text(factor.rank)}"]


def _least_work(found: Blocks | Adjoints, backward: bool = False) -> str:
    total = sympy.Add(*_at(found, counts.flops(found.layer, backward)).values())
    least = sympy.Add(*_at(found, counts.least_bytes(found.layer, backward=backward)).values())
    return "\\paragraph{Least work}\n" + _align(
        [rf"\text{{FLOPs}} &= {formula_latex(total)}", rf"\text{{bytes}} &= {formula_latex(least)}"]
    )


def _with_total(counted: dict[str, sympy.Expr]) -> dict[str, sympy.Expr]:
    return {**counted, "total": sympy.Add(*counted.values())}


def _at(found: Blocks | Adjoints, counted: dict[str, sympy.Expr]) -> dict[str, Any]:
    """The counts for the chunk of the blocks."""
    return {name: sympy.factor(expr.subs(CHUNK, found.chunk)) for name, expr in counted.items()}


def _counts(counted: dict[str, sympy.Expr], found: Blocks | Adjoints) -> list[tuple[str, ...]]:
    rows = [(name, formula_text(expr)) for name, expr in _at(found, counted).items()]
    return rows or [("none", "0")]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns: the first to the left; more than two columns are numbers, to the right."""
    if len(rows[0]) == 2:
        width = max(len(row[0]) for row in rows)
        return [f"  {row[0].ljust(width)}  {row[1]}" for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _paragraph(title: str, equations: Iterable[Equation]) -> str:
    return f"\\paragraph{{{title}}}\n" + _align([equation.latex.replace(" = ", " &= ", 1) for equation in equations])


def _align(lines: Sequence[str]) -> str:
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}\n"
