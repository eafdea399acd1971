"""One program walks the chunks of a run of tokens with the state in registers.  chunk_graph -> Kernel

With outputs it is the single pass (and the second pass of `segments`); without, it makes the summary (state, total
decay) of each segment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from ...spec.layer import Layer
from ..ir import Arange, For, Full, Kernel, Load, Scalar, Span, Stmt, Store, Tensor, Value, When
from ..lower import Lowering, Piece, Source, merge
from . import adjoint, common, consumers


@dataclass(frozen=True)
class Walk:
    """Shape of the code.

    heads: heads per program that share B, C and C B^T; n_tiles, p_tiles: tiles of dstate and headdim (96 = 64 + 32).
    row_tiles: sub-tiles of the chunk, so that those above the diagonal are left out.
    prepared: step sizes and running sums come from `dt_cumsum`; else the walk makes them, with consumers in a warp of
    their own.  descriptors: operands move by tensor descriptors.
    state_major: which of n and p the state's rows are; p transposes the outputs and the scores with it.
    two_terms: the scores go into their product as a sum of two tiles of the operands' dtype.
    consumers: 0, or groups of warps of a program that is specialised by warps: one warp moves tiles, and each group
    walks for one head or one tile of headdim; all are of one group of heads and share B and C.
    ahead: C B^T of the next chunk is issued once y is stored, and made while this one ends; scores are made while the
    state's part of y is under way.
    apart: the diagonal of the scores, which is half of what rounding them costs, reaches y in float32 beside D, from
    what `diagonal_products` has made.
    keeps: the state that enters each chunk is stored for the backward pass, which then has no walk of its own for it;
    with consumers, as there, what is scaled goes into the state in two terms.
    """

    outputs: bool = True
    heads: int = 1
    n_tiles: int = 1
    p_tiles: int = 1
    row_tiles: int = 1
    prepared: bool = True
    descriptors: bool = False
    state_major: str = "n"
    two_terms: bool = False
    consumers: int = 0
    ahead: bool = False
    apart: bool = False
    keeps: bool = False

    @property
    def name(self) -> str:
        """File and kernel name: what differs from the plainest shape, spelled out."""
        parts = ["single_pass" if self.outputs else "segment_state"]
        parts += [f"{self.heads}heads"] if self.heads > 1 else []
        parts += [f"{self.row_tiles}rows"] if self.row_tiles > 1 else []
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        parts += ["pmajor"] if self.state_major == "p" and not self.consumers else []
        parts += ["2terms"] if self.two_terms else ["apart"] if self.apart else []
        parts += [] if self.prepared else ["inline"]
        parts += ["tma"] if self.descriptors and not self.consumers else []
        parts += [f"{self.consumers}consumer" + "s" * (self.consumers > 1)] if self.consumers else []
        parts += ["ahead"] if self.ahead else []
        parts += ["keeping"] if self.keeps else []
        return "_".join(parts)


def sizes_of(stem: str, tiles: int) -> tuple[str, ...]:
    return (stem,) if tiles == 1 else tuple(f"{stem}_{k}" for k in range(tiles))


def kernel(layer: Layer, shape: Walk) -> Kernel:
    """The walk as a kernel of `layer` in the given shape.  Raises ValueError for shapes that cannot be."""
    if not shape.prepared and shape.row_tiles > 1:
        raise ValueError("running sums inside the kernel need one row tile per chunk; prepare them, or use row_tiles=1")
    if shape.consumers:
        _check_consumers(shape)
    elif shape.descriptors and (shape.n_tiles > 1 or shape.p_tiles > 1 or not shape.prepared):
        raise ValueError("tensor descriptors need one tile of dstate, one of headdim, and prepared step sizes")
    if shape.apart and not (shape.outputs and shape.consumers and not shape.two_terms):
        raise ValueError(f"the diagonal is apart from scores in one term of walks that have consumers, not of {shape}")
    if shape.two_terms and not shape.outputs:
        raise ValueError("the state of a segment is made without scores, which alone can be in two terms")
    if shape.keeps and not (shape.outputs and (shape.consumers or shape.prepared)):
        raise ValueError(f"the states of chunks are kept by walks with outputs over whole chunks, not by {shape}")
    if shape.ahead and not (shape.outputs and shape.consumers == 1 and shape.n_tiles == 1):
        # of two tiles ptxas runs all products one by one (C7512), since their registers do not suffice; two consumers
        # are slower with it (281 us against 230 on an H200)
        raise ValueError("C B^T is issued ahead in walks with outputs, one consumer and one tile of dstate")
    graph = consumers.graph(layer, shape.apart, shape.ahead)
    aside = shape.consumers > 0 and not shape.prepared
    rows = "CHUNK" if shape.row_tiles == 1 else "ROWS"
    varlen = not shape.prepared and not shape.descriptors
    batch = "row_b" if varlen else "b"
    heads = tuple(
        Piece(f"_h{k}", scalar="head" if shape.heads == 1 else f"head_{k}", order=k) for k in range(shape.heads)
    )
    row_pieces = tuple(
        Piece(
            f"_r{k}",
            Span(
                "i",
                "row",
                rows,
                "row0" if k == 0 else f"row0 + {k} * ROWS",
                "row_in" if shape.row_tiles == 1 else f"row_in_{k}",
            ),
            position="row",
            order=k,
        )
        for k in range(shape.row_tiles)
    )
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    if shape.consumers:
        n_sizes = ("BLOCK_N",) * shape.n_tiles  # one descriptor moves all tiles
    pieces = {
        "h": heads,
        "i": row_pieces,
        "j": row_pieces,
        "n": common.spans("n", "n", n_sizes, "0"),
        "p": common.spans("p", "p", p_sizes, "p0"),
    }
    state_axes = ("h", "n", "p") if shape.state_major == "n" else ("h", "p", "n")
    value_axes: dict[str, tuple[str, ...]] = dict.fromkeys(("state", "state_out", "local_state"), state_axes)
    if shape.state_major == "p":
        value_axes |= common.headdim_first(layer)
    lowering = Lowering(
        graph,
        pieces,
        _sources(layer, shape, batch),
        rename=common.RENAME,
        notes=dict(common.NOTES),
        zero_past_end=zero_past_end(layer),
        value_axes=value_axes,
        two_terms=frozenset({"scores"} if shape.two_terms else ())
        | ({"x_weighted"} if shape.keeps and shape.consumers else set()),
    )

    prologue: list[Stmt] = [*_indices(layer, shape, p_sizes), *_bounds(varlen)]
    prologue += [Scalar("chunks", "cdiv(stop - start, CHUNK)", narrow=True), Arange("row", "i", rows)]
    prologue += [Arange(p.span.offsets, axis, p.span.size) for axis in ("n", "p") for p in pieces[axis] if p.span]
    for axis, limit in (("n", "DSTATE"), ("p", "HEADDIM")):
        prologue += [common.mask(p.span, limit) for p in pieces[axis] if p.span]
    prologue += _entering(lowering, shape, state_axes)
    if shape.outputs and shape.consumers:
        prologue.append(When("HAS_SUMMARIES", (For("earlier", "segment", consumers.joined(lowering, state_axes)),)))
    for h in heads if not shape.outputs else ():
        total = Value(lowering.variable("total", {"h": h}), ())
        prologue.append(Full(total, ()))
        lowering.bind("total", {"h": h}, total, 1)

    if shape.keeps:
        _keep(lowering, shape, state_axes)
    steps = [consumers.steps(lowering, layer, batch, zero_past_end(layer), shape.apart)] if aside else []
    if shape.ahead:
        # C B^T is there already: what is issued first runs while scores are made
        common.made(lowering, "y_state")
    # the decays first: the order of the loads decides how many registers the compiler spills (9% of the time on sm90)
    for at in lowering.combinations(("h", "i")) if shape.outputs else []:
        lowering.need("left_decay", {"h": at["h"], "i": at["i"]})
    if shape.apart and not shape.ahead:
        common.made(lowering, "scores", "y_later")
    # with consumers the products of the state run while what follows y's own products is worked out
    first = ("y_later" if shape.apart and shape.ahead else "y_ssm") if shape.consumers else "y"
    for at in lowering.combinations(("h", "i", "p")) if shape.outputs else []:
        lowering.need(first, at)
    common.made(lowering, "state_out")
    for at in lowering.combinations(("h", "i", "p")) if shape.outputs else []:
        lowering.need("y", at)
    if shape.outputs:
        _store_outputs(lowering, shape, batch)  # last, so that the state's products do not wait for it
    if not shape.outputs:
        for h in heads:
            lowering.need("total_out", {"h": h})
    body = merge(
        common.loads_first(
            [
                Scalar("row0", "start + step * CHUNK"),
                *([Scalar("chunk", "segment * (segment_len // CHUNK) + step")] if shape.keeps else []),
                *_row_masks(pieces["i"]),
                *steps,
                *lowering.scopes[1],
            ]
        )
    )
    epilogue = _leaving(lowering, shape, state_axes)
    loop = For("step", "chunks", body)
    return Kernel(
        shape.name,
        _about(shape),
        _equations(shape),
        _tensors(layer, shape, varlen),
        _sizes(shape),
        () if shape.prepared else ("dt_min", "dt_max"),
        ("HEADDIM", "DSTATE", "CHUNK", *((rows,) if rows != "CHUNK" else ()), *dict.fromkeys(n_sizes), *p_sizes),
        _flags(shape, varlen),
        (_programs(layer, shape, p_sizes), "nsegments", "sequences" if varlen else "batch"),
        (*prologue, *merge(tuple(lowering.scopes[0])), loop, *epilogue),
        shape.consumers,
        ahead=shape.ahead,
    )


def _check_consumers(shape: Walk) -> None:
    """Raises ValueError for what does not go with warps that are specialised."""
    plain = Walk(shape.outputs, n_tiles=shape.n_tiles, descriptors=True, state_major="p", two_terms=shape.two_terms)
    if replace(shape, consumers=0, prepared=True, ahead=False, apart=False, keeps=False) != plain:
        raise ValueError(
            "consumers go with one head each, one tile of headdim, tensor descriptors and states by rows of headdim, "
            f"not with {shape}"
        )


def _sizes(shape: Walk) -> tuple[str, ...]:
    sizes = ("batch", "seqlen", "nheads", "ngroups", "nsegments", "segment_len")
    sizes += ("nentering", "nsummaries") if shape.outputs and shape.consumers else ()
    sizes += ("nchunks",) if shape.keeps else ()
    return (*sizes, "padded") if shape.prepared or shape.apart else sizes


def _programs(layer: Layer, shape: Walk, p_sizes: tuple[str, ...]) -> str:
    """Programs for the heads and, where one tile does not cover it, for headdim."""
    if shape.consumers:
        return consumers.programs(common.has_groups(layer, shape.outputs), shape.consumers)
    heads = shape.heads
    programs = "nheads" if heads == 1 else f"nheads // {heads}"
    return f"{programs} * cdiv(HEADDIM, BLOCK_P)" if len(p_sizes) == 1 else programs


def zero_past_end(layer: Layer) -> frozenset[str]:
    """Step sizes always; log-decays only where a zero step would still decay (constant decay).

    What has a number for every token is loaded as zero there.
    """
    rate = sympy.Integer(0) if layer.family.per_token else sympy.Symbol("A", real=True)
    still = layer.log_decay(sympy.Integer(0), rate)
    return frozenset({"dt"} | ({"log_decay"} if still != 0 else set()))


def _sources(layer: Layer, shape: Walk, batch: str) -> dict[str, Source]:
    sources = {
        name: common.operand_source(layer, name, batch, row, col, shape.descriptors)
        for name, row, col in (("x", "j", "p"), ("B", "j", "n"), ("C", "i", "n"))
    }
    sources |= common.option_sources(batch, level=1)
    sources |= common.seq_sources(batch, first="row0", last="minimum(row0 + CHUNK, stop) - 1")
    if shape.prepared:
        sources |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1", descriptor=shape.consumers > 0)
    elif not shape.consumers:
        sources |= common.raw_sources(layer, batch)
    if shape.apart and shape.prepared:
        sources |= common.diagonal_sources(layer, "b", descriptor=True)
    return sources


def _indices(layer: Layer, shape: Walk, p_sizes: tuple[str, ...]) -> list[Stmt]:
    if shape.consumers:
        return consumers.indices(common.has_groups(layer, shape.outputs), shape.consumers)
    one_p = len(p_sizes) == 1
    program = "program_id(0)"
    stmts: list[Stmt] = []
    if one_p:
        stmts += [Scalar("p_blocks", "cdiv(HEADDIM, BLOCK_P)"), Scalar("p0", f"{program} % p_blocks * BLOCK_P")]
        program = f"{program} // p_blocks"
    if shape.heads == 1:
        stmts.append(Scalar("head", program, wide=True))
    else:
        stmts.append(Scalar("head_0", f"{program} * {shape.heads}", wide=True))
        stmts += [Scalar(f"head_{k}", f"head_0 + {k}") for k in range(1, shape.heads)]
    if common.has_groups(layer, shape.outputs):
        stmts += [Scalar("group", common.group_expr(layer, "head" if shape.heads == 1 else "head_0"))]
    stmts += [Scalar("segment", "program_id(1)", wide=True), Scalar("b", "program_id(2)", wide=True)]
    return stmts


def _bounds(varlen: bool) -> list[Stmt]:
    whole: tuple[Stmt, ...] = (
        Scalar("start", "segment * segment_len"),
        Scalar("stop", "minimum(start + segment_len, seqlen)"),
    )
    if not varlen:
        return list(whole)
    ends = (
        Load(Value("start", (), "int"), "cu_seqlens", ("b",)),
        Load(Value("stop", (), "int"), "cu_seqlens", ("b + 1",)),
        Scalar("row_b", "0", wide=True),
    )
    return [When("HAS_CU_SEQLENS", ends, (*whole, Scalar("row_b", "b")))]


def _row_masks(rows: tuple[Piece, ...]) -> list[Stmt]:
    return [common.mask(piece.span, "stop") for piece in rows if piece.span]


def _entering(lowering: Lowering, shape: Walk, state_axes: tuple[str, ...]) -> list[Stmt]:
    loads: list[Stmt] = []
    zeros: list[Stmt] = []
    for at in lowering.combinations(state_axes):
        state = Value(lowering.variable("state", at), state_axes[1:])
        segment = "minimum(segment, nentering - 1)" if shape.consumers else "segment"
        index = ("b", segment, at["h"].scalar, common.on(at["p"], "p"), common.on(at["n"], "n"))
        loads.append(Load(state, "entering", index))
        zeros.append(Full(state, tuple(span.size for axis in state_axes[1:] if (span := at[axis].span))))
        lowering.bind("state", at, state, 1)
    return [When("HAS_ENTERING", tuple(loads), tuple(zeros))] if shape.outputs else zeros


def _store_outputs(lowering: Lowering, shape: Walk, batch: str) -> None:
    for at in lowering.combinations(("h", "i", "p")):
        made = lowering.need("y", at)
        assert made is not None
        index = (batch, common.on(at["i"], "i"), at["h"].scalar, common.on(at["p"], "p"))
        lowering.emit(1, Store("y", index, made[0], shape.descriptors), "walk < walks" if shape.consumers else None)


def _keep(lowering: Lowering, shape: Walk, state_axes: tuple[str, ...]) -> None:
    """Store the state as a chunk finds it."""
    for at in lowering.combinations(state_axes):
        state = Value(lowering.variable("state", at), state_axes[1:])
        index = ("b", "chunk", at["h"].scalar, common.on(at["p"], "p"), common.on(at["n"], "n"))
        condition = "walk < walks" if shape.consumers else None
        lowering.emit(1, Store("states", index, state, vectors=shape.consumers > 0), condition)


def _leaving(lowering: Lowering, shape: Walk, state_axes: tuple[str, ...]) -> list[Stmt]:
    stores: list[Stmt] = []
    for at in lowering.combinations(state_axes):
        state = Value(lowering.variable("state", at), state_axes[1:])
        where = ("b",) if shape.outputs else ("b", "segment")
        index = (*where, at["h"].scalar, common.on(at["p"], "p"), common.on(at["n"], "n"))
        stores.append(Store("final_states" if shape.outputs else "summary", index, state))
    if shape.outputs:
        if shape.consumers:
            stores = [When("(walk < walks) & (segment == nsegments - 1)", tuple(stores))]
        return [When("STORE_FINAL", tuple(stores))]
    totals = tuple(
        Store("total", ("b", "segment", h.scalar), Value(lowering.variable("total", {"h": h}), ()))
        for h in lowering.pieces["h"]
    )
    # programs that share out headdim all have the total: one of them stores it
    if shape.consumers:
        return [When("walk < walks", (*stores, When("p0 == 0", totals)))]
    return [*stores, When("p0 == 0", totals)] if len(lowering.pieces["p"]) == 1 else [*stores, *totals]


def _tensors(layer: Layer, shape: Walk, varlen: bool) -> tuple[Tensor, ...]:
    # packed sequences count like rows of a batch
    rows, state = "sequences" if varlen else "batch", ("nheads", "HEADDIM", "DSTATE")
    found = [common.operand(layer, "x", "HEADDIM"), common.operand(layer, "B", "DSTATE")]
    if shape.outputs:
        found.append(common.operand(layer, "C", "DSTATE"))
    found += common.prepared_tensors(layer, outputs=shape.outputs) if shape.prepared else common.raw_tensors(layer)
    found.append(common.seq_tensor())
    if varlen:
        found.append(Tensor("cu_seqlens", ("sequences + 1",), "index", flag="HAS_CU_SEQLENS"))
    if shape.apart:
        found += [common.diagonal_tensor(layer), Tensor("D_head", ("nheads",), "any", strided="all", flag="D_BY_HEAD")]
    if shape.outputs:
        found += [common.skip_tensor(), common.gate_tensor()]
        entering = "nentering" if shape.consumers else "nsegments"
        found.append(Tensor("entering", (rows, entering, *state), "state", flag="HAS_ENTERING"))
        if shape.consumers:
            found.append(Tensor("summary", (rows, "nsummaries", *state), "state", flag="HAS_SUMMARIES"))
            found.append(Tensor("total", (rows, "nsummaries", "nheads"), "float32", flag="HAS_SUMMARIES"))
        found.append(Tensor("y", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", out=True))
        found.append(Tensor("final_states", (rows, *state), "state", flag="STORE_FINAL", out=True))
        found += [adjoint.states_tensor("states", out=True)] if shape.keeps else []
    else:
        found.append(Tensor("summary", (rows, "nsegments", *state), "state", out=True))
        found.append(Tensor("total", (rows, "nsegments", "nheads"), "float32", out=True))
    return tuple(found)


def _flags(shape: Walk, varlen: bool) -> tuple[str, ...]:
    flags = ["HAS_SEQ_IDX"]
    flags += [] if shape.prepared else ["HAS_DT_BIAS", "DT_SOFTPLUS"]
    flags += ["HAS_D", "HAS_Z", "HAS_ENTERING", "STORE_FINAL"] if shape.outputs else []
    flags += ["HAS_SUMMARIES"] if shape.outputs and shape.consumers else []
    flags += ["D_BY_HEAD"] if shape.apart else []
    flags += ["HAS_CU_SEQLENS"] if varlen else []
    return tuple(flags)


def _about(shape: Walk) -> str:
    run = "all chunks of a sequence" if shape.outputs else "the chunks of a segment"
    end = "y, and the final state" if shape.outputs else "the state a segment leaves behind and its total decay"
    heads = f"{shape.heads} heads" if shape.heads > 1 else "one head"
    who = "Each of {shape.consumers} groups of warps" if shape.consumers > 1 else "One program"
    text = f"{who.format(shape=shape)} walks {run} for {heads}, the state in registers; it writes {end}."
    return text + (" Another warp moves the tiles that they read, stages ahead." if shape.consumers else "")


def _equations(shape: Walk) -> tuple[str, ...]:
    return ("y", "state_out") if shape.outputs else ("state_out", "total_out")


__all__ = ["Walk", "kernel", "sizes_of", "zero_past_end"]
