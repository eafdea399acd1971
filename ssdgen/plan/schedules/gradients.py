"""Every gradient of one chunk but the states', the heads of a group one after the other.  chunk_adjoint -> Kernel

The states that enter the chunks and the adjoints of those that leave them are there: no chunk waits for another, and
what heads share is written once.  Where B or C is per head a program has one head, and its part of what is shared is
added up afterwards.

With consumers a program is specialised by warps: one warp moves tiles, and two groups of warps share out the work by
what they hold in registers.  The rows' has everything with the tokens that read along its rows (d_C, d_z, the decays on
the left), the columns' everything with the tokens that are read (d_x, d_B, the decays on the right).  Each makes the
tiles of the mask once more in its own order: nothing is exchanged and nothing turned.  The stages are the heads of a
group; where every head is a group of its own, they are chunks of one head (`by_head`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...spec.dims import name_of
from ...spec.graph import Map, Sum
from ...spec.layer import Layer
from ..ir import For, Kernel, Scalar, Stmt, Tensor, Value, When
from ..ir import Store as StoreStmt
from ..lower import Lowering, Pieces, merge
from . import adjoint, common
from .groups import ABOUT_ROLES, ABOUT_THREE, AFTER, LOOP, ROLES, THREE_ROLES, add_up, columns_first, sources
from .reverse import row_mask, row_pieces, tile_offsets
from .walk import sizes_of

# registers of a thread of the columns' and of the states' role, of three; the rows' has what they leave
OF_THREE = (240, 56)
NOTES = {
    "CB": "what all heads share",
    "d_scores": "diagonal block",
    "y_state": "left factor: the state that enters the chunk",
    "d_x_weighted": "right factor: the state that leaves the chunk",
    "d_C_CB": "what all heads gave, through C B^T",
    "d_B_CB": "what all heads gave, through C B^T",
}


# where a program has one head
BY_HEAD = {"CB": "diagonal block", "d_C_CB": "through C B^T", "d_B_CB": "through C B^T"}


@dataclass(frozen=True)
class Gradients:
    """Shape of the code: tiles of dstate and headdim; specialised: by warps, in the two roles of ROLES.

    three: in THREE_ROLES, of which the third has the sums over states and over tokens that no other tile is made for.
    by_head: every head is a group, and a program has a run of the chunks of one, one after the other.
    """

    n_tiles: int = 1
    p_tiles: int = 1
    specialised: bool = False
    three: bool = False
    by_head: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        return () if not self.specialised else THREE_ROLES if self.three else ROLES

    @property
    def name(self) -> str:
        parts = ["chunk_gradients"]
        parts += [f"{self.n_tiles}n"] if self.n_tiles > 1 else []
        parts += [f"{self.p_tiles}p"] if self.p_tiles > 1 else []
        parts += ["by_head"] if self.by_head else []
        parts += [f"{len(self.roles)}consumers"] if self.specialised else []
        return "_".join(parts)


def kernel(layer: Layer, shape: Gradients) -> Kernel:
    """The gradients of x, z, D, B and C of a chunk, and what its decays and step sizes get.

    Raises ValueError for shapes that cannot be.
    """
    loops = adjoint.loops(layer)
    if shape.three and not adjoint.there(layer, *adjoint.NUMBERS):
        raise ValueError(f"without decays nothing is a sum over states, and two roles do what there is, not {shape}")
    if shape.specialised and (shape.n_tiles > 1 or shape.p_tiles > 1 or not loops):
        raise ValueError(
            f"two roles go with one tile of dstate and of headdim and with shared B and C, not with {shape}"
        )
    if shape.by_head and not shape.specialised:
        raise ValueError(f"chunk after chunk go the kernels that are specialised by warps, not {shape}")
    n_sizes, p_sizes = sizes_of("BLOCK_N", shape.n_tiles), sizes_of("BLOCK_P", shape.p_tiles)
    pieces = row_pieces(n_sizes, p_sizes, "0")
    parts = [_Part(layer, pieces, shape, role) for role in shape.roles or ("",)]
    body = [part.body() for part in parts]
    if shape.specialised:
        # seen from the loading warp, the tiles of both are those of one stage
        inside = tuple(When(f"consumer == {number}", stmts) for number, stmts in enumerate(body))
    else:
        (inside,) = body
    return Kernel(
        shape.name,
        _about(layer, shape),
        _equations(layer),
        _tensors(layer),
        ("batch", "seqlen", "nheads", "ngroups", "nchunks", "padded", *_counted(shape, loops)),
        (),
        ("HEADDIM", "DSTATE", "CHUNK", *n_sizes, *p_sizes),
        ("HAS_SEQ_IDX", "HAS_D", "HAS_Z", *(f"NEEDS_{name}" for name in ("X", "Z", "D", "B", "C", "DT"))),
        _grid(shape, loops),
        (*(_run(pieces) if shape.by_head else _prologue(layer, pieces)), *inside),
        len(shape.roles),
        shape.roles,
        given=("dt", "dA_cs", "dA_last"),
        registers=OF_THREE if shape.three else (),
    )


def _counted(shape: Gradients, loops: bool) -> tuple[str, ...]:
    """Integers that say what a program has: parts of a group's heads, or chunks of a run."""
    return ("parts", "run") if shape.by_head else ("parts",) if loops else ()


def _grid(shape: Gradients, loops: bool) -> tuple[str, ...]:
    if shape.by_head:
        return "nheads", "cdiv(nchunks, run)", "batch"
    return "ngroups * parts" if loops else "nheads", "nchunks", "batch"


def _run(pieces: dict) -> list[Stmt]:
    """Which head a program has, the only one of its group, and which run of its chunks."""
    return [
        Scalar("head", "program_id(0)", wide=True),
        Scalar("group", "head"),
        Scalar("first", "program_id(1) * run", wide=True),
        Scalar("chunks", "minimum(run, nchunks - first)", narrow=True),
        Scalar("b", "program_id(2)", wide=True),
        *tile_offsets(pieces, "CHUNK"),
    ]


def _prologue(layer: Layer, pieces: dict) -> list[Stmt]:
    """Which chunk a program has, and which heads."""
    if adjoint.loops(layer):
        stmts: list[Stmt] = [
            Scalar("group", "program_id(0) // parts", wide=True),
            Scalar("part", "program_id(0) % parts"),
            Scalar("heads", "nheads // ngroups // parts"),
        ]
    else:
        stmts = [Scalar("head", "program_id(0)", wide=True)]
        stmts += [Scalar("group", common.group_expr(layer, "head"))] if common.has_groups(layer) else []
    stmts += [
        Scalar("chunk", "program_id(1)", wide=True),
        Scalar("b", "program_id(2)", wide=True),
        Scalar("row0", "chunk * CHUNK"),
    ]
    return [*stmts, *tile_offsets(pieces, "CHUNK"), row_mask(pieces, "seqlen")]


class _Part:
    """What one role does, or a program that has all of it (role "")."""

    def __init__(self, layer: Layer, pieces: dict, shape: Gradients, role: str) -> None:
        self.layer, self.pieces, self.shape, self.role = layer, pieces, shape, role
        self.loops = adjoint.loops(layer)
        self.zeros: list[Stmt] = []
        self.lowering = Lowering(
            adjoint.graph(layer),
            pieces,
            sources(layer, descriptor=shape.specialised),
            rename=adjoint.RENAME,
            notes={**NOTES, **(BY_HEAD if shape.by_head else {})},
            kept=adjoint.KEPT,
            value_axes=columns_first(layer) if role == "columns" else _sums_last(layer) if role else {},
            scopes=[[], [], []],
        )

    def body(self) -> tuple[Stmt, ...]:
        """Statements before, in and after the loop over heads."""
        if self.role in ("", "rows"):
            self._rows()
        if self.role in ("", "states") or not self.shape.three and self.role == "rows":
            self._sums()
        if self.role in ("", "columns"):
            self._columns()
        for name, role in (("C", "rows"), ("B", "columns")):
            if self.role in ("", role):
                self._shared(name)
        outside, inside, after = self.lowering.scopes
        inside = common.loads_first(inside)
        if self.shape.by_head:
            chunk = (Scalar("chunk", "first + step"), Scalar("row0", "chunk * CHUNK"), row_mask(self.pieces, "seqlen"))
            stage = (*chunk, *common.loads_first(outside), *self.zeros, *inside, *after)
            return (For("step", "chunks", merge(stage)),)
        if not self.loops:
            return merge((*outside, *inside, *after))
        head = Scalar("head", "group * (nheads // ngroups) + part * heads + step")
        loop = For("step", "heads", merge((head, *inside)))
        return (*merge(common.loads_first(outside)), *self.zeros, loop, *merge(tuple(after)))

    # ---- what is made

    def _each(self, *axes: str) -> list[Pieces]:
        return self.lowering.combinations(("h", *axes))

    def _need(self, name: str, at: Pieces) -> Value:
        made = self.lowering.need(name, at)
        assert made is not None
        return made[0]

    def _rows(self) -> None:
        """What has the reading tokens along its rows."""
        lowering = self.lowering
        common.made(self.lowering, "CB", "d_y_skip", "d_scores", "y_state", "left_decay", adjoint.DECAYS)
        self._summed("d_CB")
        self._vectors("d_dA_cs_scores_rows", "d_left_decay", "d_own")
        self._summed("d_C_heads")
        if not self.role:
            common.made(self.lowering, "D", *adjoint.there(self.layer, "own"), "scores")
        with lowering.under("NEEDS_Z"):
            for at in self._each("i", "p"):
                self._tokens("d_z", "d_z", at, "i", None)

    def _sums(self) -> None:
        """What is added up over all tokens or over all of a state."""
        lowering, layer = self.lowering, self.layer
        if self.role == "states":
            common.made(self.lowering, "d_y_skip", "x")
        with lowering.under("NEEDS_D"):
            for at in self._each("p"):
                index = ("b", "chunk", "head", common.on(at["p"], "p"))
                lowering.emit(LOOP, StoreStmt("d_D", index, self._need("d_D", at)))
        for name in adjoint.there(layer, *adjoint.NUMBERS):
            for at in self._each():
                lowering.store(LOOP, name, at, name, adjoint.number_index(at), flag="NEEDS_DT")

    def _columns(self) -> None:
        """What has the tokens that are read along its rows."""
        lowering = self.lowering
        common.made(self.lowering, "CB", "d_y_skip", "d_scores", adjoint.DECAYS, "scores")
        if self.role:
            self._summed("d_CB")
        self._vectors("d_dt_scores")
        common.made(self.lowering, "d_x_weighted")
        self._vectors("d_right_decay")
        part = adjoint.head_part(self.layer, "d_x")
        for at in self._each("j", "p"):
            # products first: what follows them is worked out while those of d_B run
            lowering.need(f"{part}_base" if f"{part}_base" in lowering.graph else part, at)
        self._summed("d_B_heads")
        for at in self._each("j", "p"):
            self._tokens("d_x", part, at, "j", "NEEDS_X")

    def _tokens(self, tensor: str, value: str, at: Pieces, axis: str, flag: str | None) -> None:
        index = ("b", common.on(at[axis], axis), "head", common.on(at["p"], "p"))
        made = self._need(value, at)
        self.lowering.emit(LOOP, StoreStmt(tensor, index, made, self.shape.specialised), flag)

    def _vectors(self, *names: str) -> None:
        for name in adjoint.there(self.layer, *names):
            (axis,) = (axis for axis in self.lowering.graph[name].axes if axis != "h")
            for at in self._each(axis):
                self.lowering.store(LOOP, name, at, name, adjoint.vector_index(at), flag="NEEDS_DT")

    def _summed(self, name: str) -> None:
        if self.loops:
            self.zeros += add_up(self.lowering, name)

    def _shared(self, name: str) -> None:
        """The gradient of B or C, once all heads have given their part."""
        lowering, loops = self.lowering, self.loops
        wanted = f"d_{name}" if loops else adjoint.head_part(self.layer, f"d_{name}")
        for at in lowering.combinations(lowering.graph[wanted].axes):
            rows, columns = (common.on(at[axis], axis) for axis in lowering.graph[wanted].axes if axis != "h")
            index = ("part", "b", rows, "group", columns) if loops else ("b", rows, "head", columns)
            if self.shape.by_head:
                stored = StoreStmt(f"d_{name}", ("0", *index[1:]), self._need(wanted, at), vectors=True)
                lowering.emit(AFTER, stored, f"NEEDS_{name}")
                continue
            lowering.store(AFTER if loops else LOOP, wanted, at, f"d_{name}", index, flag=f"NEEDS_{name}")


def _sums_last(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Axes of what is summed over the tokens for each of headdim, as d_D is: tokens along the columns.

    A thread has sixteen of these and a warp all.  Along the rows they would be spread over all warps: each sum would go
    through shuffles, memory and barriers.
    """
    graph, found = adjoint.graph(layer), {}
    for node in graph.nodes:
        if isinstance(node, Sum) and set(node.axes) == {"h", "p"} and isinstance(graph[name_of(node.of)], Map):
            terms = name_of(node.of)
            found[terms] = ("h", "p", *(axis for axis in graph[terms].axes if axis not in "hp"))
    return found


def _about(layer: Layer, shape: Gradients) -> str:
    heads = "the heads of a group, one after the other" if adjoint.loops(layer) else "one head"
    text = f"One program makes all gradients of one chunk but the states' for {heads}."
    if shape.by_head:
        text = "One program makes all gradients but the states' of a run of chunks of one head, one after the other."
    return text + (ABOUT_ROLES if shape.specialised else "") + (ABOUT_THREE if shape.three else "")


def _equations(layer: Layer) -> tuple[str, ...]:
    heads = [name if adjoint.loops(layer) else adjoint.head_part(layer, name) for name in ("d_C", "d_B")]
    vectors = adjoint.there(layer, *adjoint.VECTORS, *adjoint.NUMBERS)
    return ("d_z", "d_D", *heads, adjoint.head_part(layer, "d_x"), *vectors)


def _tensors(layer: Layer) -> tuple[Tensor, ...]:
    loops, per_head = adjoint.loops(layer), layer.layout.per_head
    tokens = ("batch", "seqlen", "nheads", "HEADDIM")
    found = [common.operand(layer, name, last) for name, last in (("x", "HEADDIM"), ("B", "DSTATE"), ("C", "DSTATE"))]
    found += [adjoint.d_y_tensor(), *common.prepared_tensors(layer, outputs=True), common.seq_tensor()]
    found += [common.skip_tensor(), common.gate_tensor()]
    found += [adjoint.states_tensor("states"), adjoint.states_tensor("d_states")]
    # where heads share x, each leaves its part
    found.append(Tensor("d_x", tokens, "operand" if per_head("x") else "float32", flag="NEEDS_X", out=True))
    found.append(Tensor("d_z", tokens, "operand", flag="NEEDS_Z", out=True))
    found.append(Tensor("d_D", ("batch", "nchunks", "nheads", "HEADDIM"), "float32", flag="NEEDS_D", out=True))
    for name in ("B", "C"):
        rows = ("batch", "seqlen", "ngroups" if loops else "nheads", "DSTATE")
        dims = ("parts", *rows) if loops else rows
        dtype = "any" if loops else "operand" if per_head(name) else "float32"
        found.append(Tensor(f"d_{name}", dims, dtype, flag=f"NEEDS_{name}", out=True))
    return (*found, *adjoint.vector_tensors(layer, adjoint.VECTORS, adjoint.NUMBERS, out=True))


__all__ = ["Gradients", "kernel"]
