"""The kernels that ship: which shapes of code a package holds.  layer -> [Kernel]

Every shape of code is a file; numbers (tile sizes, warps) are not.  A shape is here because it is faster somewhere
(heads that share B and C, states by rows of headdim, descriptors) or because something cannot run without it (two tiles
of an odd size, packed sequences).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ..spec.layer import Layer
from .ir import Kernel
from .schedules import passing, prepare, scan, walk
from .schedules.scan import Scan
from .schedules.walk import Walk

CONSUMERS = (1, 2)  # of a program that is specialised by warps: with three their registers spill
TILES = ((1, 1), (2, 1), (1, 2), (2, 2))  # tiles of dstate and headdim


def walks(outputs: bool) -> tuple[Walk, ...]:
    """Shapes of the walk, the plainest first.  outputs: the single pass, else the segments' states."""
    shapes = [Walk(outputs, n_tiles=n, p_tiles=p) for n, p in TILES]
    shapes += [Walk(outputs, heads=heads, descriptors=True) for heads in ((2,) if outputs else (2, 4))]
    shapes += [Walk(outputs, descriptors=True)]
    shapes += [Walk(outputs, state_major="p", descriptors=described) for described in (False, True)]
    if outputs:
        shapes += [Walk(n_tiles=n, p_tiles=p, prepared=False) for n, p in TILES]
    shapes += [
        Walk(outputs, n_tiles=tiles, descriptors=True, state_major="p", two_terms=outputs, consumers=consumers)
        for tiles, consumers in product((1, 2), CONSUMERS)
    ]
    return tuple(shapes)


def scans() -> tuple[Scan, ...]:
    return tuple(Scan(n_tiles=n, p_tiles=p) for n, p in TILES)


def kernels(layer: Layer) -> tuple[Kernel, ...]:
    """Every kernel of a package for `layer`, in the order in which a schedule may launch them."""
    found = [prepare.kernel(layer)]
    found += [walk.kernel(layer, shape) for shape in walks(outputs=False)]
    found.append(passing.kernel(layer))
    found += [walk.kernel(layer, shape) for shape in walks(outputs=True)]
    found += [scan.kernel(layer, shape) for shape in scans()]
    return tuple(found)


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
    yield from scans()
