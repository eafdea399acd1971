"""C B^T of each token with itself, once for all heads that share both.  chunk_graph -> Kernel

Nothing decays on the diagonal of a chunk's block, so that it is the same for all heads but for their step sizes: a
number for each token, which a walk multiplies its input by in float32.
"""

from __future__ import annotations

from ...spec.decompose import chunk_graph
from ...spec.layer import Layer
from ..ir import Arange, Kernel, Mask, Scalar, Span
from ..lower import Lowering, Piece
from . import common

NAME = "diagonal_products"


def kernel(layer: Layer) -> Kernel:
    """The diagonal of C B^T, padded to whole chunks."""
    row = Piece("", Span("j", "row", "CHUNK", "row0", "row_in"), position="row")
    columns = Span("n", "n", "BLOCK_N", "0", "n_in")
    at = {"i": row, "j": row, "n": Piece("", columns), "h": Piece("", scalar="head")}
    lowering = Lowering(
        chunk_graph(layer, apart=True),
        {axis: (piece,) for axis, piece in at.items()},
        {name: common.operand_source(layer, name, "b", axis, "n", False) for name, axis in (("B", "j"), ("C", "i"))},
    )
    owner, owners = common.diagonal_owner(layer)
    lowering.store(1, "CB_diagonal", at, "CB_diagonal", ("b", owner, Span("j", "row", "CHUNK", "row0", None)))
    operands = tuple(common.operand(layer, name, "DSTATE") for name in ("B", "C"))
    of_group = owner == "head" and any(not layer.layout.per_head(name) for name in ("B", "C"))
    return Kernel(
        NAME,
        f"One program multiplies C and B of each token of a chunk, for one {owner}.",
        ("CB_diagonal",),
        (*operands, common.diagonal_tensor(layer, out=True)),
        ("batch", "seqlen", *dict.fromkeys((owners, *(tensor.dims[2] for tensor in operands))), "padded"),
        (),
        ("DSTATE", "CHUNK", "BLOCK_N"),
        (),
        (owners, "padded // CHUNK", "batch"),
        (
            Scalar(owner, "program_id(0)", wide=True),
            *((Scalar("group", common.group_expr(layer, "head")),) if of_group else ()),
            Scalar("row0", "program_id(1) * CHUNK", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Arange("row", "j", "CHUNK"),
            Arange("n", "n", "BLOCK_N"),
            Mask("row_in", "j", "row", "seqlen - row0"),
            common.mask(columns, "DSTATE"),
            *lowering.scopes[0],
            *lowering.scopes[1],
        ),
    )
