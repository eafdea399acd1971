"""What the kernels of the backward pass share: their graph, names and sources.  chunk_adjoint -> states, reverse, ..

The adjoint of a chunk is cut into kernels where a value has to wait for others: sums over tokens wait for all of a
chunk, what heads share waits for all heads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import sympy

from ...spec.derivative import cases
from ...spec.dims import entry
from ...spec.gradient import chunk_adjoint
from ...spec.graph import Contract, Graph, Map, Node, reads
from ...spec.layer import Layer
from ..ir import Index, Span, Tensor
from ..lower import Pieces, Source
from . import common

Level = common.Level

# vectors over tokens that other kernels leave for `dt_gradients`, and numbers of a chunk; a sum over the third, along
# the tokens of a chunk, in the kernel that makes it breaks Triton's compiler for sm_100 (3.7.1)
WALK_VECTORS, GROUP_VECTORS = ("d_dA_cs_scores_rows", "d_dt_scores", "d_right_decay", "d_own"), ("d_left_decay",)
VECTORS, NUMBERS = (*WALK_VECTORS, *GROUP_VECTORS), ("d_centre_decay",)

RENAME = {
    **{name: common.RENAME[name] for name in common.RENAME if name.endswith("_whole") or name.startswith("y_")},
    "d_state_out": "d_state",
    "d_right_decay_whole": "d_right_decay",
    "d_left_decay_whole": "d_left_decay",
    "d_centre_decay_whole": "d_centre_decay",
    "d_scores_whole": "d_scores",
    "d_dt_positive": "d_dt",
    "d_dt_biased": "d_dt",
    "d_dt_raw": "d_dt",
    "d_x_base": "d_x",
    "d_x_head": "d_x",
    "d_x_head_base": "d_x",
}
# the decays of the mask without the step sizes, and the adjoint of the scores times them
DECAYS, DECAYED = "mask_decay", "d_scores_decayed"
# read without their option too
KEPT = frozenset({"d_y_skip", "dt_biased", "dt_positive"})


@cache
def graph(layer: Layer) -> Graph:
    """The adjoint of a chunk of `layer`, its products and sums arranged for kernels."""
    # the graph holds every option
    return _scaled_first(
        _factored(chunk_adjoint(Layer(layer.family, layer.layout, discretisation=layer.discretisation)))
    )


def _factored(whole: Graph) -> Graph:
    """The graph with what the tiles as large as the scores have in common as values of their own.

    Scores and their adjoints all have the decays of the mask: DECAYS is made once. The decayed adjoint of the scores
    times the step sizes is C B^T's; that times C B^T are the terms of the rows of the decays' adjoint, of which the
    columns are the step sizes' own sums times the step sizes. Few tiles then live at a time, and one sum is spared.
    """
    scores, terms, products = (whole[n] for n in ("scores_whole", "d_dt_scores_terms", head_of(whole, "d_CB")))
    assert isinstance(scores, Map) and isinstance(terms, Map) and isinstance(products, Map)
    (made, causal) = cases(scores.formula)[0]
    of_scores, of_terms, of_products = (sympy.Mul.make_args(cases(n.formula)[0][0]) for n in (scores, terms, products))
    shared: Any = set(of_scores) & set(of_terms) & set(of_products)
    decays = sympy.Mul(*shared)
    adjoint: Any = set(of_terms) & set(of_products) - shared
    mask, decayed = entry(DECAYS, *scores.axes), entry(DECAYED, *terms.axes)
    rest_of_terms = sympy.Mul(*of_terms) / decays / sympy.Mul(*adjoint)
    rest_of_products = sympy.Mul(*of_products) / decays / sympy.Mul(*adjoint)
    nodes: dict[str, Node] = {
        DECAYS: Map(DECAYS, scores.axes, sympy.Piecewise((decays, causal), (0, True))),
        scores.name: replace(scores, formula=mask * made / decays),
        DECAYED: Map(DECAYED, terms.axes, mask * sympy.Mul(*adjoint)),
        terms.name: replace(terms, formula=decayed * rest_of_terms),
        products.name: replace(products, formula=decayed * rest_of_products),
    }
    if (name := "d_dA_cs_scores_terms") in whole:
        nodes[name] = Map(name, terms.axes, entry(products.name, *products.axes) * rest_of_terms)
        columns, of_steps = whole["d_dA_cs_scores_columns"], entry("d_dt_scores", "h", "j")
        nodes[columns.name] = Map(columns.name, columns.axes, rest_of_products * of_steps)
    first = [nodes.pop(DECAYS), nodes.pop(DECAYED)]
    return Graph(whole.name, in_order([*first, *(nodes.get(node.name, node) for node in whole.nodes)]))


def _scaled_first(whole: Graph) -> Graph:
    """The graph with what decays scale scaled before it is multiplied, not after.

    The products of all heads then add up in the accumulator of the matrix unit. What the left decay gets is the same
    sum taken over headdim instead of over dstate, of a tile that is half as large.
    """
    changed: dict[str, Node] = {}
    for name, product, operand in (
        ("d_C_head", "d_C_y_state", "d_y_state"),
        ("d_B_head", "d_B_local_state", "x_weighted"),
    ):
        head, made = whole[name] if name in whole else None, whole[product]
        # heads share it, and no other addend
        if isinstance(head, Map) and head.formula.is_Mul and product in reads(head):
            assert isinstance(made, Contract)
            left = entry(operand, *whole[operand].axes)
            changed[name] = Contract(name, head.axes, left, made.right, made.over)
    if "d_C_head" in changed and "d_left_decay" in whole:
        terms, axes = "d_left_decay_terms", whole["d_y_skip"].axes
        changed[terms] = Map(terms, axes, entry("d_y_skip", *axes) * entry("y_state", *axes))
        changed["d_left_decay"] = replace(whole["d_left_decay"], of=entry(terms, *axes), over=("p",))
    return Graph(whole.name, in_order([changed.get(node.name, node) for node in whole.nodes]))


def in_order(nodes: list[Node]) -> tuple[Node, ...]:
    """The nodes, each after what it reads, and otherwise as they were."""
    found: dict[str, Node] = {}
    while nodes:
        ready = next(node for node in nodes if all(name in found for name in reads(node)))
        found[ready.name] = ready
        nodes.remove(ready)
    return tuple(found.values())


def there(layer: Layer, *names: str) -> tuple[str, ...]:
    """Those of `names` that the adjoint of the layer has: without a decay there is less."""
    return tuple(name for name in names if name in graph(layer))


def head_of(whole: Graph, name: str) -> str:
    """Name of one head's part of what heads may share, which is all of it where no heads share it."""
    return f"{name}_head" if f"{name}_head" in whole else name


def head_part(layer: Layer, name: str) -> str:
    """Name of one head's part of the gradient of x, B or C, which is all of it where no heads share it."""
    return head_of(graph(layer), name)


def loops(layer: Layer) -> bool:
    """Whether B and C are both shared, so that one program adds up the heads of a group."""
    return not layer.layout.per_head("B") and not layer.layout.per_head("C")


# ---- tensors


def d_y_tensor() -> Tensor:
    return Tensor("d_y", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", strided="unit")


def states_tensor(name: str, out: bool = False, flag: str | None = None) -> Tensor:
    """A state, or its adjoint, for each chunk."""
    return Tensor(name, ("batch", "nchunks", "nheads", "HEADDIM", "DSTATE"), "state", flag=flag, out=out)


def vector_tensors(
    layer: Layer, vectors: tuple[str, ...], numbers: tuple[str, ...], out: bool = False, blocks: str | None = None
):
    """Vectors over tokens, padded to whole chunks, and numbers of a chunk; fp32.

    blocks: number of programs that leave a part of each, one after the other.
    """
    flag, lead = "NEEDS_DT" if out else None, (blocks,) if blocks else ()
    found = [Tensor(name, (*lead, "batch", "nheads", "padded"), "float32", flag=flag, out=out) for name in vectors]
    found += [Tensor(name, (*lead, "batch", "nchunks", "nheads"), "float32", flag=flag, out=out) for name in numbers]
    return tuple(tensor for tensor in found if tensor.name in graph(layer))


# ---- sources


def vector_index(at: Pieces) -> tuple[Index, ...]:
    """Place of a vector over tokens; the buffers are padded, so no mask is needed."""
    span = common.on(at["i"], "i") if "i" in at else common.on(at["j"], "j")
    assert isinstance(span, Span)
    return "b", common.on(at["h"], "h"), replace(span, mask=None)


def number_index(at: Pieces) -> tuple[Index, ...]:
    return "b", "chunk", common.on(at["h"], "h")


def operand_sources(
    layer: Layer, level: Level, *shared: str, shared_level: Level = 1, descriptor: bool = False
) -> dict[str, Source]:
    """x, B, C and d_y; those in `shared` at a level of their own."""
    places = {"x": ("j", "p"), "B": ("j", "n"), "C": ("i", "n")}
    found = {
        name: common.operand_source(layer, name, "b", *axes, descriptor, shared_level if name in shared else level)
        for name, axes in places.items()
    }
    found["d_y"] = Source(
        "d_y",
        lambda at: ("b", common.on(at["i"], "i"), at["h"].scalar, common.on(at["p"], "p")),
        level=level,
        dtype="operand",
        descriptor=descriptor,
    )
    return found


def state_source(tensor: str, axes: tuple[str, ...], level: int = 1, descriptor: bool = False) -> Source:
    """A state of the chunk, as it lies in memory."""
    return Source(
        tensor,
        lambda at: ("b", "chunk", at["h"].scalar, common.on(at["p"], "p"), common.on(at["n"], "n")),
        level=level,
        dtype="stored",
        descriptor=descriptor,
        axes=axes,
    )


__all__ = ["KEPT", "RENAME", "graph", "head_part", "in_order", "loops", "there"]
