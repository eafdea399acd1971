"""The launchers of the layer's other parts as text.  plan.parts -> text -> package"""

from __future__ import annotations

from ..plan import parts
from ..plan.schedules import conv_tile, conv_update, conv_walk, norm, sum_parts
from ..spec.conv import WIDTHS
from ..spec.norm import KINDS
from .environment import render


def conv_launcher() -> str:
    """The launcher of the convolution."""
    tables = {
        "CONV_WALK": {width: conv_walk.Walk(width).name for width in WIDTHS},
        "CONV_WALK_BACKWARD": {width: conv_walk.Walk(width, True).name for width in WIDTHS},
        "CONV_TILE": {width: conv_tile.Tile(width).name for width in WIDTHS},
        "CONV_TILE_BACKWARD": {width: conv_tile.Tile(width, True).name for width in WIDTHS},
        "CONV_UPDATE": {width: conv_update.name(width) for width in WIDTHS},
    }
    every = {name for rows in tables.values() for name in rows.values()}
    return render(
        "launchers/conv.py.jinja",
        modules=sorted((*every, sum_parts.NAME, sum_parts.EARLY)),
        tables=[(table, list(rows.items())) for table, rows in tables.items()],
        dims=[(f"{kind}_DIMS", dims(*_of(tables, kind))) for kind in ("WALK", "TILE", "UPDATE")],
    )


def norm_launcher() -> str:
    """The launcher of the gated norms."""
    tables = {
        table: [
            (f"({kind.rms}, {kind.gate_first}, {tiles})", norm.Rows(kind, backward, tiles).name)
            for kind in KINDS
            for tiles in counts
        ]
        for table, backward, counts in (
            ("FORWARD", False, norm.FORWARD_TILES),
            ("BACKWARD", True, norm.BACKWARD_TILES),
        )
    }
    every = [name for rows in tables.values() for _, name in rows]
    modules = sorted((*every, sum_parts.NAME, sum_parts.EARLY))
    return render(
        "launchers/norm.py.jinja",
        modules=modules,
        tables=list(tables.items()),
        dims=dims(*every),
    )


def _of(tables: dict[str, dict[int, str]], kind: str) -> list[str]:
    return [name for table, rows in tables.items() if kind in table for name in rows.values()]


def dims(*names: str) -> list[tuple[str, str]]:
    """(tensor, its dimensions as text) of every tensor of these kernels that has stride parameters."""
    found = {
        tensor.name: ", ".join(f'"{dim}"' for dim in tensor.dims)
        for name in names
        for tensor in parts.kernels()[name][0].tensors
        if tensor.stride_parameters()
    }
    return sorted(found.items())
