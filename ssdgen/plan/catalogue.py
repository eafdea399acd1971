"""The kernels that ship: which shapes of code a package holds.  layer -> [Kernel]

Every shape of code is a file; numbers (tile sizes, warps) are not.  A shape is here because it is faster somewhere
(heads that share B and C, states by rows of headdim, descriptors) or because something cannot run without it (two tiles
of an odd size, packed sequences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product

from ..spec.graph import Graph
from ..spec.layer import Layer
from ..spec.layouts import MULTI_CONTRACT, MULTI_EXPAND, MULTI_INPUT, HeadLayout
from ..spec.masks import GATED, SSD
from ..spec.step import step_graph
from ..spec.upper import upper_graph
from .ir import Kernel
from .schedules import (
    adjoint,
    consumers,
    decode,
    diagonal,
    gradients,
    groups,
    mirror,
    passing,
    prepare,
    replay,
    reverse,
    reverse_tiles,
    scan,
    states,
    step_tiles,
    steps,
    walk,
)
from .schedules.decode import Step
from .schedules.gradients import Gradients
from .schedules.groups import Groups
from .schedules.replay import Replay
from .schedules.reverse import Reverse
from .schedules.scan import Scan
from .schedules.states import States
from .schedules.steps import Steps
from .schedules.walk import Walk

CONSUMERS = (1, 2)  # of a program that is specialised by warps: with three their registers spill
TILES = ((1, 1), (2, 1), (1, 2), (2, 2))  # tiles of dstate and headdim
# the kernels of the backward pass by name
BACKWARD: dict[str, Callable[[Layer], Kernel]] = {
    **{(shape := States(n_tiles=n)).name: partial(states.kernel, shape=shape) for n in (1, 2)},
    **{
        (shape := States(True, each, n)).name: partial(states.kernel, shape=shape)
        for each, n in product((False, True), (1, 2))
    },
    "adjoint_passing": partial(passing.kernel, reverse=True),
    "both_passing": passing.both,
    **{(shape := Reverse(n, p)).name: partial(reverse.kernel, shape=shape) for n, p in TILES},
    **{(shape := Groups(n, p)).name: partial(groups.kernel, shape=shape) for n, p in TILES},
    **{(shape := Reverse(n, blocks=True)).name: partial(reverse.kernel, shape=shape) for n in (1, 2)},
    **{(shape := Groups(p_tiles=p, blocks=True)).name: partial(groups.kernel, shape=shape) for p in (1, 2)},
    **{(shape := Gradients(n, p)).name: partial(gradients.kernel, shape=shape) for n, p in TILES},
    **{(shape := Steps(blocks)).name: partial(steps.kernel, shape=shape) for blocks in (False, True)},
}
# those of them that are specialised by warps, where B and C are shared
SPECIALISED: dict[str, Callable[[Layer], Kernel]] = {
    **{
        (shape := States(back, each, n, consumers)).name: partial(states.kernel, shape=shape)
        for (back, each), n, consumers in product(((False, True), (True, False), (True, True)), (1, 2), CONSUMERS)
    },
    **{
        (shape := Reverse(n, blocks=True, consumers=2, left=left)).name: partial(reverse.kernel, shape=shape)
        for left, n in product((False, True), (2, 4))
    },
    **{
        (shape := Gradients(specialised=True, three=three, by_head=by_head)).name: partial(
            gradients.kernel, shape=shape
        )
        for three, by_head in ((False, False), (True, False), (False, True))
    },
    **{
        (shape := Groups(p_tiles=p, blocks=True, specialised=True, three=three)).name: partial(
            groups.kernel, shape=shape
        )
        for three, p in product((False, True), (1, 2))
    },
}

THREE_ROLES = (
    Gradients(specialised=True, three=True).name,
    *(Groups(p_tiles=p, blocks=True, specialised=True, three=True).name for p in (1, 2)),
)

# those of a decode step
DECODE: dict[str, Callable[[Layer], Kernel]] = {
    **{
        (shape := Step(n, tied)).name: partial(decode.kernel, shape=shape) for tied, n in product((True, False), (1, 2))
    },
    **{(shape := Replay(n)).name: partial(replay.kernel, shape=shape) for n in (1, 2)},
    # heads after heads, where dstate is one tile
    (shape := Step(heads=True)).name: partial(decode.kernel, shape=shape),
    (shape := Replay(heads=True)).name: partial(replay.kernel, shape=shape),
    "replay_advance": replay.advance,
}
# those of one token whose programs have tiles of headdim, where B and C are shared
TILED: dict[str, Callable[[Layer], Kernel]] = {
    **{shape.name: partial(step_tiles.kernel, shape=shape) for shape in step_tiles.shapes()},
    "replay_scores": step_tiles.scores,
}


def walks(outputs: bool) -> tuple[Walk, ...]:
    """Shapes of the walk, the plainest first.  outputs: the single pass, else the segments' states."""
    shapes = [Walk(outputs, n_tiles=n, p_tiles=p) for n, p in TILES]
    shapes += [Walk(outputs, heads=heads, descriptors=True) for heads in ((2,) if outputs else (2, 4))]
    shapes += [Walk(outputs, descriptors=True)]
    shapes += [Walk(outputs, state_major="p", descriptors=described) for described in (False, True)]
    if outputs:
        shapes += [Walk(n_tiles=n, p_tiles=p, prepared=False) for n, p in TILES]
    shapes += [
        Walk(outputs, n_tiles=tiles, descriptors=True, state_major="p", two_terms=terms, consumers=consumers)
        for terms, tiles, consumers in product((True, False) if outputs else (False,), (1, 2), CONSUMERS)
    ]
    shapes += [replace(shape, apart=True) for shape in shapes if outputs and shape.consumers and not shape.two_terms]
    one = [shape for shape in shapes if outputs and shape.consumers == 1 and shape.n_tiles == 1]
    shapes += [replace(shape, ahead=True) for shape in one]
    shapes += [replace(shape, prepared=False) for shape in shapes if made_aside(shape)]
    return tuple(shapes)


def keeping() -> tuple[Walk, ...]:
    """Shapes of the single pass that also store the state that enters each chunk: plain ones, and with consumers.

    With consumers and two tiles of dstate registers do not suffice (665 us on an H200, and 437 in two kernels).
    """
    shapes = [Walk(n_tiles=n, p_tiles=p) for n, p in TILES]
    whole = [shape for shape in walks(outputs=True) if shape.consumers and shape.n_tiles == 1]
    shapes += [shape for shape in whole if shape.two_terms or shape.apart]
    return tuple(replace(shape, keeps=True) for shape in shapes)


def made_aside(shape: Walk) -> bool:
    """Whether a walk of this shape also comes with step sizes that a warp of its own makes.

    Of one consumer: with two, the warps that make them and those that multiply are too many for the registers.
    """
    return shape.ahead or not shape.outputs and shape.consumers == 1 and shape.n_tiles == 1


def scans() -> tuple[Scan, ...]:
    return tuple(Scan(n_tiles=n, p_tiles=p) for n, p in TILES)


def kernels(layer: Layer) -> tuple[Kernel, ...]:
    """Every kernel of the forward pass for `layer`, in the order in which a schedule may launch them."""
    found = [prepare.kernel(layer)]
    found += [walk.kernel(layer, shape) for shape in walks(outputs=False)]
    found.append(passing.kernel(layer))
    found.append(diagonal.kernel(layer))
    found += [walk.kernel(layer, shape) for shape in (*walks(outputs=True), *keeping())]
    found += [scan.kernel(layer, shape) for shape in scans()]
    return tuple(found)


def backward(layer: Layer) -> tuple[Kernel, ...]:
    """The kernels that the backward pass has beside those of the forward pass, in order."""
    return tuple(make(layer) for make in (*BACKWARD.values(), *specialised(layer).values()))


def specialised(layer: Layer) -> dict[str, Callable[[Layer], Kernel]]:
    """Those of the backward pass that are specialised by warps, by name.

    Without decays nothing is a sum over states, for which some have a third role.
    """
    if not adjoint.loops(layer):
        return {}
    return {name: make for name, make in SPECIALISED.items() if layer.family.decays or name not in THREE_ROLES}


@cache
def gated(layer: Layer) -> tuple[Kernel, ...]:
    """What calls with a decay for every token launch instead of `dt_cumsum`, `dt_gradients` and the inline walks.

    All other kernels read running sums and are the same. A family without decays has no sums to put there.
    """
    if not layer.family.decays:
        return ()
    own = replace(layer, family=GATED)
    made = [
        prepare.kernel(own),
        *(walk.kernel(own, shape) for shape in walks(True) if not (shape.prepared or shape.consumers)),
    ]
    made += [steps.kernel(own, Steps(blocks)) for blocks in (False, True)]
    return tuple(replace(kernel, name=gated_name(kernel.name)) for kernel in made)


def gated_name(name: str) -> str:
    return f"{name}_gated"


def variants(layer: Layer) -> tuple[HeadLayout, ...]:
    """The head layouts that a package for `layer` has kernels for, beside its own.

    Mamba-2's alone has others. With multi-input ones multi-head needs none: there every head is a group.
    """
    return (MULTI_CONTRACT, MULTI_EXPAND) if layer.layout is MULTI_INPUT and layer.family is SSD else ()


@cache
def variant(layer: Layer, layout: HeadLayout) -> tuple[tuple[Kernel, ...], tuple[Kernel, ...]]:
    """The kernels of both passes that read x, B or C for another layout: the plain ones, that need no tuner.

    Each head has scores and a state of its own there, so that nothing is gained by heads that share a program.
    """
    plain, per_token = replace(layer, layout=layout), replace(layer, layout=layout, family=GATED)
    forward = [walk.kernel(plain, Walk(outputs, n_tiles=n, p_tiles=p)) for outputs in (False, True) for n, p in TILES]
    forward += [walk.kernel(per_token, Walk(n_tiles=n, p_tiles=p, prepared=False)) for n, p in TILES]
    forward += mirrors(plain)
    backward: list[Kernel] = []
    for n in (1, 2):
        backward += [states.kernel(plain, shape) for shape in (States(n_tiles=n), States(True, False, n))]
    backward += [reverse.kernel(plain, Reverse(n, p)) for n, p in TILES]
    backward += [groups.kernel(plain, Groups(n, p)) for n, p in TILES]

    def named(kernels: list[Kernel]) -> tuple[Kernel, ...]:
        return tuple(replace(kernel, name=variant_name(kernel.name, layout)) for kernel in kernels)

    return named(forward), named(backward)


@cache
def mirrors(layer: Layer) -> tuple[Kernel, ...]:
    """The walks that add what a two-sided mask has above the diagonal, for the layout of `layer`."""
    return tuple(mirror.kernel(layer, n) for n in (1, 2)) if layer.family.decays else ()


def variant_name(name: str, layout: HeadLayout) -> str:
    return f"{name}_{layout.name.replace('-', '_')}"


def everything(layer: Layer) -> Iterator[tuple[Layer, tuple[Kernel, ...]]]:
    """The kernels of the layer that a package for `layer` holds, and with which layer each is to be read."""
    yield layer, (*kernels(layer), *backward(layer), *decoding(layer), *gated(layer), *mirrors(layer))
    for layout in variants(layer):
        forward, back = variant(layer, layout)
        yield replace(layer, layout=layout), (*forward, *back)


def beside(layer: Layer) -> set[str]:
    """Names of the kernels that `ssd` alone launches: those of `gated` and of the variants."""
    _, *others = everything(layer)
    own = (*gated(layer), *mirrors(layer))
    return {kernel.name for every in (own, *(every for _, every in others)) for kernel in every}


def decoding(layer: Layer) -> tuple[Kernel, ...]:
    """The kernels of a decode step."""
    tiled = TILED if step_tiles.applies(layer) else {}
    return tuple(make(layer) for make in (*DECODE.values(), *tiled.values()))


def graph(kernel: Kernel, layer: Layer) -> Graph:
    """The graph that a kernel's equations are of: that of a chunk, its adjoint, or that of one token."""
    if kernel.name.startswith("mirror"):
        return upper_graph(layer)
    if kernel.name in TILED:
        return step_tiles.graph(layer, kernel.name.startswith("replay"), kernel.name.endswith("units"))
    if kernel.name in DECODE:
        return step_graph(layer, "untied" not in kernel.name, kernel.name.startswith("replay"))
    if any(tensor.name == "A" and len(tensor.dims) == 3 for tensor in kernel.tensors):
        layer = replace(layer, family=GATED)
    if kernel.spare:
        return reverse_tiles.graph(layer)
    apart = any(tensor.name == "CB_diagonal" for tensor in kernel.tensors)
    forward = consumers.graph(layer, apart, kernel.ahead)
    return forward if all(name in forward for name in kernel.equations) else adjoint.graph(layer)


def every_shape() -> Iterator[Walk | Scan]:
    """All shapes that can be asked for by name, those that do not ship too."""
    options = product(
        (True, False), (1, 2, 4), (1, 2), (1, 2), (1, 2), (True, False), (False, True), ("n", "p"), (False, True)
    )
    yield from (Walk(*chosen) for chosen in options)
    yield from (
        Walk(outputs, n_tiles=tiles, descriptors=True, state_major="p", two_terms=terms, consumers=consumers)
        for outputs, tiles, terms, consumers in product((True, False), (1, 2), (False, True), (1, 2, 3))
    )
    yield from (shape for shape in walks(outputs=True) if shape.ahead or shape.apart)
    yield from scans()
