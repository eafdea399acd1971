"""Gradients of B and C of one chunk, added up over the heads that share them.  chunk_adjoint -> Kernel

The heads of a group are a loop of one program, so that what they share is written once.  Where B or C is per head a
program has one head, and its part of what is shared is added up afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...spec.dims import entry
from ...spec.graph import Contract
from ...spec.layer import Layer
from ..ir import For, Full, Kernel, Let, Scalar, Stmt, Tensor, Value, When
from ..lower import Lowering, merge
from . import adjoint, common
from .reverse import row_mask, row_pieces, tile_offsets
from .walk import sizes_of

OUTSIDE, LOOP, AFTER = 0, 1, 2
# of kernels that are specialised by warps: who has the tokens that read along its rows, and who those that are read
ROLES = ("rows", "columns")
# sums over the heads of a group, and a head's addend
SUMMED = {"d_CB": "d_CB_head", "d_B_heads": "d_B_head", "d_C_heads": "d_C_head"}
# the same where a third has what is a sum over whole states: most of what the columns' role computes, and no products
THREE_ROLES = (*ROLES, "states")
# registers of a thread: the states' role adds up as it reads; that of the rows has what these leave
OF_THREE = (176, 72)
ABOUT_ROLES = (
    " One group of warps has the tokens that read along the rows of its tiles, another those that are read; a warp "
    "moves the tiles that they need, stages ahead."
)
ABOUT_THREE = " A third adds up what is a sum over whole states."
NOTES = {"d_CB_head": "diagonal block", "d_C_CB": "what all heads gave, through C B^T"}


@dataclass(frozen=True)
class Groups:
    """Shape of the code: tiles of dstate and headdim.

    blocks: programs share out dstate instead. Each makes the scores' adjoint, and leaves its part of what decays get.
    specialised: by warps, in the two roles of ROLES; tiles of headdim are then of one extent. three: in THREE_ROLES.
    """

    n_tiles: int = 1
    p_tiles: int = 1
    blocks: bool = False
    specialised: bool = False
    three: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        return () if not self.specialised else THREE_ROLES if self.three else ROLES

    @property
    def name(self) -> str:
        parts = ["group_gradients"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        parts += ["blocks"] if self.blocks else []
        parts += [f"{len(self.roles)}consumers"] if self.specialised else []
        return "_".join(parts)


def kernel(layer: Layer, shape: Groups) -> Kernel:
    """d_B and d_C of a chunk, and the adjoints of the decays that meet the entering state.

    Raises ValueError for shapes that cannot be.
    """
    if shape.blocks and shape.n_tiles > 1:
        raise ValueError(f"where programs share out dstate each has one tile of it, not {shape.n_tiles}")
    if shape.specialised and not (shape.blocks and adjoint.loops(layer)):
        raise ValueError(
            f"two roles go with a tile of dstate for each program and with shared B and C, not with {shape}"
        )
    if shape.three and not adjoint.there(layer, *adjoint.NUMBERS):
        raise ValueError(f"without decays nothing is a sum over states, and two roles do what there is, not {shape}")
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    if shape.specialised:
        p_sizes = ("BLOCK_P",) * shape.p_tiles  # one descriptor moves all tiles
    pieces = row_pieces(n_sizes, p_sizes, "0", "n0" if shape.blocks else "0")
    loops = adjoint.loops(layer)
    parts = [_body(layer, pieces, shape, role) for role in shape.roles or ("",)]
    if shape.specialised:
        # seen from the loading warp, the tiles of both are those of one stage
        body = tuple(When(f"consumer == {number}", stmts) for number, stmts in enumerate(parts))
    else:
        (body,) = parts
    vectors = adjoint.there(layer, *adjoint.GROUP_VECTORS, *adjoint.NUMBERS)
    owner, programs = ("group", "ngroups") if loops else ("head", "nheads")
    return Kernel(
        shape.name,
        f"One program makes the gradients of B and C of one chunk{', for a tile of dstate,' * shape.blocks} for "
        + ("the heads of a group, one after the other." if loops else "one head.")
        + (ABOUT_ROLES if shape.specialised else "")
        + (ABOUT_THREE if shape.three else ""),
        (*(("d_B", "d_C") if loops else (adjoint.head_part(layer, name) for name in ("d_B", "d_C"))), *vectors),
        _tensors(layer, shape),
        ("batch", "seqlen", "nheads", "ngroups", "nchunks", "padded"),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *n_sizes, *dict.fromkeys(p_sizes)),
        ("HAS_SEQ_IDX", "HAS_Z", "NEEDS_B", "NEEDS_C", *(("NEEDS_DT",) if vectors else ())),
        (f"{programs} * cdiv(DSTATE, BLOCK_N)" if shape.blocks else programs, "nchunks", "batch"),
        (
            *(_blocks(owner, bool(vectors)) if shape.blocks else (Scalar(owner, "program_id(0)", wide=True),)),
            *(() if loops or not common.has_groups(layer) else (Scalar("group", common.group_expr(layer, "head")),)),
            Scalar("chunk", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("row0", "chunk * CHUNK"),
            *tile_offsets(pieces, "CHUNK"),
            row_mask(pieces, "seqlen"),
            *body,
        ),
        len(shape.roles),
        shape.roles,
        given=("dt", "dA_cs", "dA_last"),
        registers=OF_THREE if shape.three else (),
    )


def _body(layer: Layer, pieces: dict, shape: Groups, role: str) -> tuple[Stmt, ...]:
    """What one role does, or a program that has both (role "")."""
    loops = adjoint.loops(layer)
    lowering = Lowering(
        adjoint.graph(layer),
        pieces,
        sources(layer, descriptor=shape.specialised),
        rename=adjoint.RENAME,
        notes=dict(NOTES),
        kept=adjoint.KEPT,
        value_axes=columns_first(layer) if role == "columns" else {},
        scopes=[[], [], []],
    )
    # the columns' role has fewer sums of its own to hold, and the state is there for both
    decays = {"": (*adjoint.GROUP_VECTORS, *adjoint.NUMBERS), "rows": adjoint.GROUP_VECTORS}
    decays["states" if shape.three else "columns"] = adjoint.NUMBERS
    summed = {"rows": ("d_CB", "d_C_heads"), "columns": ("d_CB", "d_B_heads"), "states": ()}.get(role, tuple(SUMMED))
    first = {"rows": ("d_y_skip", "d_scores", "y_state", "left_decay"), "columns": ("d_y_skip", "d_scores")}
    for name in first.get(role, ()):
        # under way together, and worked on while they are
        for at in lowering.combinations(("h", *(axis for axis in lowering.graph[name].axes if axis != "h"))):
            lowering.need(name, at)
    if role == "rows":
        _decays(lowering, layer, shape, decays[role])
    zeros = [stmt for name in (summed if loops else ()) for stmt in add_up(lowering, name)]
    if role != "rows":
        _decays(lowering, layer, shape, decays.get(role, ()))
    for name, owner in (("B", "columns"), ("C", "rows")):
        if role in ("", owner):
            _shared(lowering, layer, name)
    outside, inside, after = lowering.scopes
    inside = common.loads_first(inside)
    heads = [Scalar("head", "group * (nheads // ngroups) + step")]
    body = [For("step", "nheads // ngroups", merge((*heads, *inside)))] if loops else merge(inside)
    return (*merge(common.loads_first(outside)), *zeros, *body, *merge(tuple(after)))


def _shared(lowering: Lowering, layer: Layer, name: str) -> None:
    """The gradient of B or C, once all heads have given their part."""
    loops = adjoint.loops(layer)
    wanted = f"d_{name}" if loops else adjoint.head_part(layer, f"d_{name}")
    for at in lowering.combinations(lowering.graph[wanted].axes):
        rows, columns = (common.on(at[axis], axis) for axis in lowering.graph[wanted].axes if axis != "h")
        index = ("b", rows, "group" if loops else "head", columns)
        lowering.store(AFTER if loops else LOOP, wanted, at, f"d_{name}", index, flag=f"NEEDS_{name}")


def columns_first(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Axes of the columns' role: the tokens that are read along the rows of what has both."""
    return {
        node.name: tuple(axis for axis in ("h", "j", "i") if axis in node.axes)
        for node in adjoint.graph(layer).nodes
        if set(node.axes) >= {"i", "j"}
    }


def _blocks(owner: str, parts: bool) -> tuple[Scalar, ...]:
    """Which tile of dstate a program has; those of one group and chunk are neighbours and read the same tokens.

    parts: it leaves its part of something, by the number of the tile.
    """
    return (
        Scalar("n_blocks", "cdiv(DSTATE, BLOCK_N)"),
        *((Scalar("n_block", "program_id(0) % n_blocks", wide=True),) if parts else ()),
        Scalar("n0", "program_id(0) % n_blocks * BLOCK_N"),
        Scalar(owner, "program_id(0) // n_blocks", wide=True),
    )


def _decays(lowering: Lowering, layer: Layer, shape: Groups, names: tuple[str, ...]) -> None:
    """What the decays that meet the entering state get."""
    part = ("n_block",) if shape.blocks else ()
    for name in adjoint.there(layer, *names):
        for at in lowering.combinations(lowering.graph[name].axes):
            index = adjoint.number_index(at) if name in adjoint.NUMBERS else adjoint.vector_index(at)
            lowering.store(LOOP, name, at, name, (*part, *index), flag="NEEDS_DT")


def add_up(lowering: Lowering, name: str) -> list[Stmt]:
    """A sum over heads goes on by the addend of this one.  Returns: how it begins, before the loop over heads."""
    (head,) = lowering.pieces["h"]
    addend = lowering.graph[SUMMED[name]]
    axes = lowering.node_axes(addend.name)[1:]
    zeros: list[Stmt] = []
    for at in lowering.combinations(axes):
        total, here = Value(lowering.variable(name, at), axes), {**at, "h": head}
        zeros.append(Full(total, tuple(span.size for axis in axes if (span := at[axis].span))))
        if isinstance(addend, Contract):
            lowering.contract(addend, here, total, acc=True)
        else:
            made = lowering.need(addend.name, here)
            assert made is not None
            added = entry(total.name, *axes) + entry(made[0].name, *axes)
            lowering.emit(LOOP, Let(total, added, (total, made[0])))
        lowering.bind(name, at, total, AFTER)
    return zeros


def sources(layer: Layer, descriptor: bool = False):
    """What a program that has one chunk and loops over heads reads; without a loop everything is at one level."""
    outside = OUTSIDE if adjoint.loops(layer) else LOOP
    found = adjoint.operand_sources(layer, LOOP, "B", "C", shared_level=outside, descriptor=descriptor)
    found |= common.option_sources("b", level=LOOP)
    found["D"] = replace(found["D"], level=LOOP)
    last = "minimum(row0 + CHUNK, seqlen) - 1"
    found |= common.seq_sources("b", first="row0", last=last, level=outside, scalar_level=outside)
    found |= common.prepared_sources(layer, "b", last="row0 + CHUNK - 1", descriptor=descriptor, near=descriptor)
    found["state"] = adjoint.state_source("states", ("p", "n"), LOOP, descriptor)
    found["d_state_out"] = adjoint.state_source("d_states", ("p", "n"), LOOP, descriptor)
    return found


def _tensors(layer: Layer, shape: Groups) -> tuple[Tensor, ...]:
    loops = adjoint.loops(layer)
    found = [common.operand(layer, name, last) for name, last in (("x", "HEADDIM"), ("B", "DSTATE"), ("C", "DSTATE"))]
    found += [adjoint.d_y_tensor(), *common.prepared_tensors(layer), common.seq_tensor(), common.gate_tensor()]
    found += [adjoint.states_tensor("states"), adjoint.states_tensor("d_states")]
    for name in ("B", "C"):
        whole = loops or layer.layout.per_head(name)
        dims = ("batch", "seqlen", "ngroups" if loops else "nheads", "DSTATE")
        found.append(Tensor(f"d_{name}", dims, "operand" if whole else "float32", flag=f"NEEDS_{name}", out=True))
    blocks = "n_blocks" if shape.blocks else None
    return (*found, *adjoint.vector_tensors(layer, adjoint.GROUP_VECTORS, adjoint.NUMBERS, True, blocks))


__all__ = ["ABOUT_ROLES", "AFTER", "LOOP", "ROLES", "Groups", "add_up", "columns_first", "kernel", "sources"]
