"""What the kernels of the backward pass share: their graph, names and sources.  chunk_adjoint -> states, reverse, ..

The adjoint of a chunk is cut into kernels where a value has to wait for others: sums over tokens wait for all of a
chunk, what heads share waits for all heads.  A sum of which one kernel has some addends and a later one the others is
made in two parts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import sympy

from ...spec.derivative import cases
from ...spec.dims import entry, name_of
from ...spec.gradient import chunk_adjoint
from ...spec.graph import Graph, Map, Node, reads
from ...spec.layer import Layer
from ..ir import Index, Span, Tensor
from ..lower import Pieces, Source
from . import common

Level = common.Level

# what the addends that `reverse_walk` leaves must not need: the first two are made from the entering states; a sum over
# the third, along the tokens of a chunk, in the kernel that makes it breaks Triton's compiler for sm_100 (3.7.1)
LATE = ("d_left_decay", "d_centre_decay", "d_right_decay")
# vectors over tokens that `reverse_walk` and `group_gradients` leave for `dt_gradients`, and numbers of a chunk
WALK_VECTORS, GROUP_VECTORS = ("d_dA_cs_walk", "d_dt_walk", "d_right_decay"), ("d_left_decay",)
GROUP_NUMBERS = ("d_centre_decay",)

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
# the mask without the step sizes
UNIT = "scores_unit"
# read without their option too
KEPT = frozenset({"d_y_skip", "dt_biased", "dt_positive"})


@cache
def graph(layer: Layer) -> Graph:
    """The adjoint of a chunk of `layer`, its sums cut where one kernel ends."""
    # the graph holds every option
    found = _factored(chunk_adjoint(Layer(layer.family, layer.layout)))
    for name, part in (("d_dA_cs_scaled", "d_dA_cs_walk"), ("d_dt", "d_dt_walk")):
        found = _parted(found, name, part) if name in found else found
    return found


def _parted(whole: Graph, name: str, part: str) -> Graph:
    """The graph with `part`, the addends of the sum `name` that need nothing of LATE, as a value of its own."""
    node = whole[name]
    assert isinstance(node, Map) and node.option is None
    terms: Any = sympy.Add.make_args(node.formula)
    early = sympy.Add(*(term for term in terms if not _waits(whole, term)))
    axes = node.axes
    cut: list[Node] = [Map(part, axes, early), replace(node, formula=node.formula - early + entry(part, *axes))]
    at = whole.nodes.index(node)
    return Graph(whole.name, (*whole.nodes[:at], *cut, *whole.nodes[at + 1 :]))


def _factored(whole: Graph) -> Graph:
    """The graph with what scores and the terms of their step sizes' adjoint have in common as a value of its own.

    The terms of the decays' adjoint are then those of the step sizes' times the step sizes: of all tiles as large as
    the scores only two have to live at a time.
    """
    scores, terms = whole["scores_whole"], whole["d_dt_scores_terms"]
    assert isinstance(scores, Map) and isinstance(terms, Map)
    (product, causal), (other, _) = (cases(node.formula)[0] for node in (scores, terms))
    factors: Any = set(sympy.Mul.make_args(product)) & set(sympy.Mul.make_args(other))
    common = sympy.Mul(*factors)
    unit = entry(UNIT, *scores.axes)
    made: dict[str, Node] = {
        UNIT: Map(UNIT, scores.axes, sympy.Piecewise((common, causal), (0, True))),
        scores.name: replace(scores, formula=unit * product / common),
        terms.name: replace(terms, formula=unit * other / common),
    }
    if (name := "d_dA_cs_scores_terms") in whole:
        decays = whole[name]
        assert isinstance(decays, Map)
        expanded: Any = decays.formula.xreplace({entry(scores.name, *scores.axes): unit * product / common})
        made[name] = replace(decays, formula=expanded / (unit * other / common) * entry(terms.name, *terms.axes))
    nodes = [made.pop(UNIT), *(made.get(node.name, node) for node in whole.nodes)]
    return Graph(whole.name, _in_order(nodes))


def _in_order(nodes: list[Node]) -> tuple[Node, ...]:
    """The nodes, each after what it reads, and otherwise as they were."""
    found: dict[str, Node] = {}
    while nodes:
        ready = next(node for node in nodes if all(name in found for name in reads(node)))
        found[ready.name] = ready
        nodes.remove(ready)
    return tuple(found.values())


def _waits(whole: Graph, term: sympy.Expr) -> bool:
    names = tuple(name_of(read) for read in term.atoms(sympy.Indexed))
    return any(node.name in LATE for node in whole.closure(names, frozenset()))


def there(layer: Layer, *names: str) -> tuple[str, ...]:
    """Those of `names` that the adjoint of the layer has: without a decay there is less."""
    return tuple(name for name in names if name in graph(layer))


def head_part(layer: Layer, name: str) -> str:
    """Name of one head's part of the gradient of x, B or C, which is all of it where no heads share it."""
    return f"{name}_head" if f"{name}_head" in graph(layer) else name


def loops(layer: Layer) -> bool:
    """Whether B and C are both shared, so that one program adds up the heads of a group."""
    return not layer.layout.per_head("B") and not layer.layout.per_head("C")


# ---- tensors


def d_y_tensor() -> Tensor:
    return Tensor("d_y", ("batch", "seqlen", "nheads", "HEADDIM"), "operand", strided="unit")


def states_tensor(name: str, out: bool = False, flag: str | None = None) -> Tensor:
    """A state, or its adjoint, for each chunk."""
    return Tensor(name, ("batch", "nchunks", "nheads", "HEADDIM", "DSTATE"), "state", flag=flag, out=out)


def vector_tensors(layer: Layer, vectors: tuple[str, ...], numbers: tuple[str, ...], out: bool = False):
    """Vectors over tokens, padded to whole chunks, and numbers of a chunk; fp32."""
    flag = "NEEDS_DT" if out else None
    found = [Tensor(name, ("batch", "nheads", "padded"), "float32", flag=flag, out=out) for name in vectors]
    found += [Tensor(name, ("batch", "nchunks", "nheads"), "float32", flag=flag, out=out) for name in numbers]
    return tuple(tensor for tensor in found if tensor.name in graph(layer))


# ---- sources


def vector_index(at: Pieces) -> tuple[Index, ...]:
    """Place of a vector over tokens; the buffers are padded, so no mask is needed."""
    span = common.on(at["i"], "i") if "i" in at else common.on(at["j"], "j")
    assert isinstance(span, Span)
    return "b", common.on(at["h"], "h"), replace(span, mask=None)


def number_index(at: Pieces) -> tuple[Index, ...]:
    return "b", "chunk", common.on(at["h"], "h")


def operand_sources(layer: Layer, level: Level, *shared: str, shared_level: Level = 1) -> dict[str, Source]:
    """x, B, C and d_y; those in `shared` at a level of their own."""
    places = {"x": ("j", "p"), "B": ("j", "n"), "C": ("i", "n")}
    found = {
        name: common.operand_source(layer, name, "b", *axes, False, shared_level if name in shared else level)
        for name, axes in places.items()
    }
    found["d_y"] = Source(
        "d_y",
        lambda at: ("b", common.on(at["i"], "i"), at["h"].scalar, common.on(at["p"], "p")),
        level=level,
        dtype="operand",
    )
    return found


def state_source(tensor: str, axes: tuple[str, ...], level: int = 1) -> Source:
    """A state of the chunk, as it lies in memory."""
    return Source(
        tensor,
        lambda at: ("b", "chunk", at["h"].scalar, common.on(at["p"], "p"), common.on(at["n"], "n")),
        level=level,
        dtype="stored",
        axes=axes,
    )


__all__ = ["KEPT", "RENAME", "graph", "head_part", "loops", "there"]
