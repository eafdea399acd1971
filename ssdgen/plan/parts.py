"""The kernels of the layer's other parts that ship, each with the graph that its equations are of.  -> emit.package"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

from ..spec.conv import WIDTHS, conv_adjoint, conv_graph
from ..spec.graph import Graph
from ..spec.norm import KINDS, norm_adjoint, norm_graph
from .ir import Kernel
from .schedules import conv_tile, conv_update, conv_walk, norm, sum_heads, sum_parts


@lru_cache(maxsize=1)
def kernels() -> dict[str, tuple[Kernel, Graph]]:
    """{name: (kernel, graph)}."""
    found: list[tuple[Kernel, Graph]] = []
    for width, backward in product(WIDTHS, (False, True)):
        graph = conv_adjoint(width) if backward else conv_graph(width)
        found.append((conv_walk.kernel(conv_walk.Walk(width, backward)), graph))
        found.append((conv_tile.kernel(conv_tile.Tile(width, backward)), graph))
    found += [(conv_update.kernel(width), conv_graph(width)) for width in WIDTHS]
    # they have no equation of their own: any graph does
    sums = (sum_parts.kernel(), sum_parts.kernel(True), sum_heads.kernel())
    found += [(kernel, conv_graph(WIDTHS[0])) for kernel in sums]
    for kind in KINDS:
        found += [(norm.kernel(norm.Rows(kind, False, tiles)), norm_graph(kind)) for tiles in norm.FORWARD_TILES]
        found += [(norm.kernel(norm.Rows(kind, True, tiles)), norm_adjoint(kind)) for tiles in norm.BACKWARD_TILES]
    return {kernel.name: (kernel, graph) for kernel, graph in found}
