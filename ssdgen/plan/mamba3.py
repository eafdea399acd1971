"""The kernels of Mamba-3's package, each with the graph that its equations are of.  spec.mamba3 -> emit.mamba3"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from ..spec.decompose import chunk_graph
from ..spec.graph import Graph
from ..spec.layouts import MULTI_INPUT
from ..spec.mamba3 import (
    LAYER,
    angles_adjoint,
    angles_graph,
    entering_adjoint,
    entering_graph,
    step_graph,
    tokens_adjoint,
    tokens_graph,
)
from .ir import Kernel
from .schedules import adjoint, gradients, mamba3, mamba3_adjoint, mamba3_angles, mamba3_step, states, walk

# the same layer, each head a group of its own: kernels that are specialised by warps read operands of groups
GROUPED = replace(LAYER, layout=MULTI_INPUT)
# of what the chunks leave for the adjoints of the steps
VECTORS = tuple(name for name in adjoint.VECTORS if name in adjoint.graph(LAYER))


@cache
def before() -> dict[str, tuple[Kernel, Graph]]:
    """{name: (kernel, graph)} of what comes before the chunks, and of its backward pass."""
    chunk = adjoint.graph(LAYER)
    found = [
        (mamba3.steps(), mamba3.steps_graph()),
        (mamba3_angles.passing(), angles_graph()),
        (mamba3.turn(), tokens_graph()),
        (mamba3.entering(), entering_graph()),
        (mamba3_adjoint.weights(), chunk),
        (mamba3_adjoint.turn_back(), tokens_adjoint()),
        (mamba3_angles.passing_back(), angles_adjoint()),
        (mamba3_adjoint.steps_back(), tokens_adjoint()),
        (mamba3_adjoint.entering_back(), entering_adjoint()),
    ]
    return {kernel.name: (kernel, graph) for kernel, graph in found}


@cache
def chunks() -> dict[str, tuple[Kernel, Graph]]:
    """The same of the chunks: the kernels that Mamba-2 has, for this layer."""
    forward, backward = chunk_graph(LAYER), adjoint.graph(LAYER)
    found = [
        (walk.kernel(LAYER, walk.Walk()), forward),
        (states.kernel(LAYER, states.States()), forward),
        (states.kernel(LAYER, states.States(adjoint=True)), backward),
        (gradients.kernel(LAYER, gradients.Gradients()), backward),
    ]
    return {kernel.name: (kernel, graph) for kernel, graph in found}


@cache
def by_warps() -> dict[str, tuple[Kernel, Graph]]:
    """The same kernels for Hopper, specialised by warps: those that Mamba-2 has, for this layer."""
    forward, backward = chunk_graph(GROUPED), adjoint.graph(GROUPED)
    one = walk.Walk(descriptors=True, state_major="p", two_terms=True, consumers=1)
    found = [
        (walk.kernel(GROUPED, one), forward),
        (states.kernel(GROUPED, states.States(consumers=1)), forward),
        (states.kernel(GROUPED, states.States(adjoint=True, consumers=1)), backward),
        (gradients.kernel(GROUPED, gradients.Gradients(specialised=True, by_head=True)), backward),
    ]
    return {kernel.name: (kernel, graph) for kernel, graph in found}


@cache
def token() -> dict[str, tuple[Kernel, Graph]]:
    """The same of one token."""
    kernel = mamba3_step.kernel()
    return {kernel.name: (kernel, step_graph())}


def every() -> dict[str, tuple[Kernel, Graph]]:
    return {**before(), **chunks(), **by_warps(), **token()}


__all__ = ["GROUPED", "VECTORS", "before", "by_warps", "chunks", "every", "token"]
